//! Destination of an event that has used up its attempts: parked with its aggregate, a retry topic,
//! or the dead letters.

use std::time::Duration;

use super::{Runner, Settled, pause::Outage, permit::HandlerPermit};
use crate::{
    kafka::{Incoming, LetterError, Message},
    subscriber::{
        Escalation,
        failure::dead_letter::{DUE, FailureInfo, TIER, bare_letter, letter, origin_of, tier_of},
        handler::{HandlerError, Verdict},
        telemetry::statistics::Count,
    },
};

/// Pause before a letter that the broker rejected is sent again. It is long because an operator
/// must change the settings of the topic first.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Reason why a record was not stored in another topic.
enum Unsent {
    /// Kafka does not confirm the record at the moment.
    Unavailable(HandlerError),
    /// The broker would reject the record again.
    Refused(LetterError),
}

impl From<LetterError> for Unsent {
    fn from(error: LetterError) -> Self {
        match error {
            LetterError::Refused { .. } => Self::Refused(error),
            LetterError::UnknownTopic(_)
            | LetterError::Forbidden { .. }
            | LetterError::Unavailable { .. } => {
                Self::Unavailable(HandlerError::unavailable(error))
            }
        }
    }
}

/// A record for the dead letters.
#[derive(Clone, Copy)]
pub(crate) struct FailedRecord<'m> {
    record: &'m Incoming,
    /// The type for counters. Empty for a record that is not an event.
    kind_of_event: &'m str,
    /// `None` for a record that is not an event.
    message: Option<&'m Message>,
    kind: &'static str,
    attempts: u32,
    /// True if the record cannot be read. Such records arrive at the rate that their producer
    /// chooses, so log lines are limited.
    is_unreadable: bool,
}

impl<'m> FailedRecord<'m> {
    /// Returns an event that was tried `attempts` times since it was read.
    pub(crate) fn event(message: &'m Message, attempts: u32) -> Self {
        let attempts = attempts.saturating_add(message.attempts_before());
        Self {
            record: message.as_it_came(),
            kind_of_event: message.kind(),
            message: Some(message),
            kind: "handler",
            attempts,
            is_unreadable: false,
        }
    }

    /// Returns a record that is not an event.
    fn malformed(record: &'m Incoming) -> Self {
        Self {
            record,
            kind_of_event: "",
            message: None,
            kind: "malformed",
            attempts: 0,
            is_unreadable: true,
        }
    }
}

impl Runner {
    /// Sends an event that has used up its attempts to the destination that the options name.
    /// Retries without a limit: until the event is stored there, it is neither lost nor finished.
    pub(crate) async fn end(
        &self,
        message: &Message,
        error: &HandlerError,
        failed: u32,
        permit: &mut HandlerPermit<'_>,
    ) -> Settled {
        let is_dead = error.verdict() == Verdict::DeadLetter;
        match &self.escalation {
            Escalation::Park(_) if !is_dead => {
                self.report_used_up(
                    message,
                    failed,
                    error,
                    "an event used up its attempts: it is parked in the table `subscriber_parked` with the \
                     later ones of its aggregate, and tried from there",
                );
                return Settled::Park {
                    attempts: failed,
                    error: error.chain(),
                };
            }
            Escalation::RetryTopics(delays) if !is_dead => {
                let tier = tier_of(message.as_it_came(), &self.name);
                if let Some(delay) = delays.get(tier) {
                    let mut outage = Outage::none(&self.pause);
                    loop {
                        match self
                            .send_to_retry(message, error, failed, tier, *delay)
                            .await
                        {
                            Ok(()) => return Settled::Finished,
                            Err(Unsent::Unavailable(unsent)) => {
                                if !permit.pause(outage.continues(&unsent)).await {
                                    return Settled::Abandoned;
                                }
                            }
                            Err(Unsent::Refused(refusal)) => {
                                tracing::warn!(
                                    subscriber = self.name,
                                    event.id = &*message.id(),
                                    %refusal,
                                    "a retry topic refuses an event, which becomes a dead letter"
                                );
                                break;
                            }
                        }
                    }
                }
            }
            _ => {}
        }
        let dead = FailedRecord {
            is_unreadable: error.is_undecodable(),
            ..FailedRecord::event(message, failed)
        };
        self.dead_letter_until_sent(&dead, error, permit).await
    }

    /// Sends an event to the dead letters if it shares its identity with an event that was handled.
    /// No handler ran, so the kill switch does not count it.
    pub(crate) async fn end_conflicting(
        &self,
        message: &Message,
        error: &HandlerError,
        failed: u32,
        permit: &mut HandlerPermit<'_>,
    ) -> Settled {
        let record = message.as_it_came();
        tracing::warn!(
            subscriber = self.name,
            event.id = &*message.id(),
            topic = &*record.topic,
            partition = record.partition,
            offset = record.offset,
            error = error.chain(),
            "an event shares its id with another one that was handled and becomes a dead letter; \
             replay it under another id if it is genuine"
        );
        self.statistics.add(Count::Conflicting, message.kind(), 1);
        let dead = FailedRecord {
            kind: "duplicate",
            ..FailedRecord::event(message, failed)
        };
        self.dead_letter_until_sent(&dead, error, permit).await
    }

    /// Sends a record to the dead letters and retries without a limit. If the broker rejects the
    /// record, it is not given up: it is parked if there is an inbox, and otherwise tried again at
    /// the head of its aggregate.
    pub(crate) async fn dead_letter_until_sent(
        &self,
        dead: &FailedRecord<'_>,
        error: &HandlerError,
        permit: &mut HandlerPermit<'_>,
    ) -> Settled {
        let mut outage = Outage::none(&self.pause);
        loop {
            let pause = match self.send_dead_letter(dead, error).await {
                Ok(()) => return Settled::Finished,
                Err(Unsent::Unavailable(unsent)) => outage.continues(&unsent),
                Err(Unsent::Refused(refusal)) => {
                    outage.is_over();
                    let parks = self.core.inbox.is_some();
                    self.report_refused(dead, &refusal, error, parks);
                    if parks {
                        let error = format!("{refusal}; the event failed with: {}", error.chain());
                        return Settled::Refused {
                            attempts: dead.attempts,
                            error,
                        };
                    }
                    REFUSED_PAUSE
                }
            };
            if !permit.pause(pause).await {
                return Settled::Abandoned;
            }
        }
    }

    fn report_refused(
        &self,
        dead: &FailedRecord<'_>,
        refusal: &LetterError,
        error: &HandlerError,
        parks: bool,
    ) {
        let record = dead.record;
        self.statistics
            .add(Count::RefusedLetters, dead.kind_of_event, 1);
        tracing::warn!(
            subscriber = self.name,
            topic = &*record.topic,
            partition = record.partition,
            offset = record.offset,
            bytes = record.size(),
            reason = error.chain(),
            %refusal,
            parked = parks,
            "the broker refuses a dead letter; the event stays and is tried again every {} s: \
             raise max.message.bytes of the dead letter topic, or correct its settings and its \
             access control",
            REFUSED_PAUSE.as_secs()
        );
    }

    async fn send_to_retry(
        &self,
        message: &Message,
        error: &HandlerError,
        failed: u32,
        tier: usize,
        delay: Duration,
    ) -> Result<(), Unsent> {
        let origin = origin_of(&message.as_it_came().topic, &self.name);
        let why = FailureInfo {
            group: &self.name,
            error,
            kind: "handler",
            attempts: failed.saturating_add(message.attempts_before()),
        };
        let mut letter = letter(
            message.as_it_came(),
            retry_topic(origin, &self.name, delay),
            &why,
        );
        let due = self.clock.utc() + delay;
        letter
            .headers
            .push((TIER.into(), Some((tier + 1).to_string().into_bytes())));
        letter.headers.push((
            DUE.into(),
            Some(due.timestamp_millis().to_string().into_bytes()),
        ));
        self.dead_letter_sink.send(&letter, origin).await?;
        self.statistics.add(Count::Retried, message.kind(), 1);
        self.report_used_up(
            message,
            failed,
            error,
            "an event used up its attempts: it is tried again from a retry topic",
        );
        Ok(())
    }

    /// Sends a record to the dead letters. If the broker rejects the letter, it is sent once more
    /// with only the original headers of the record.
    ///
    /// # Errors
    ///
    /// Returns [`Unsent`] if the record was not stored. It is not finished then.
    async fn send_dead_letter(
        &self,
        dead: &FailedRecord<'_>,
        error: &HandlerError,
    ) -> Result<(), Unsent> {
        let FailedRecord {
            record,
            kind_of_event,
            message,
            kind,
            attempts,
            is_unreadable,
        } = *dead;
        let id = message.map(|message| message.id().to_string());
        let origin = origin_of(&record.topic, &self.name);
        let (topic, partition, offset, reason) = (
            &*record.topic,
            record.partition,
            record.offset,
            error.chain(),
        );
        let Some(place) = self.dead_letters.topic_for(origin, &self.name) else {
            tracing::error!(
                subscriber = self.name,
                topic,
                partition,
                offset,
                reason,
                "an event cannot be handled and is discarded"
            );
            self.statistics.add(Count::Discarded, kind_of_event, 1);
            return Ok(());
        };
        let why = FailureInfo {
            group: &self.name,
            error,
            kind,
            attempts,
        };
        match self
            .dead_letter_sink
            .send(&letter(record, place.clone(), &why), origin)
            .await
        {
            Err(LetterError::Refused { .. }) => {
                self.dead_letter_sink
                    .send(&bare_letter(record, place.clone()), origin)
                    .await?
            }
            // Concerns the events that fail. Others have no use for the topic and do not wait until
            // it is granted.
            Err(forbidden @ LetterError::Forbidden { .. }) => {
                return Err(Unsent::Refused(forbidden));
            }
            sent => sent?,
        }
        if !is_unreadable {
            tracing::error!(
                subscriber = self.name,
                event.id = id,
                event.r#type = message.map(Message::event_type),
                topic,
                partition,
                offset,
                handler = message.map(|message| self.core.router.handlers_of(message)),
                attempts,
                reason,
                dead_letters = place,
                "an event becomes a dead letter"
            );
        } else if let Some(suppressed) = self.unreadable.admit(std::time::Instant::now()) {
            tracing::warn!(
                subscriber = self.name,
                topic,
                partition,
                offset,
                reason,
                dead_letters = place,
                suppressed,
                "a record cannot be read and becomes a dead letter; similar messages are logged \
                 every 10 s at most"
            );
        }
        self.statistics.add(Count::DeadLettered, kind_of_event, 1);
        Ok(())
    }

    /// Sends a record that is not an event to the dead letters and retries without a limit.
    pub(crate) async fn settle_malformed(
        &self,
        record: &Incoming,
        reason: &str,
        permit: &mut HandlerPermit<'_>,
    ) -> Settled {
        let error = HandlerError::dead_letter(reason);
        self.dead_letter_until_sent(&FailedRecord::malformed(record), &error, permit)
            .await
    }
}

/// Returns the name of the topic where an event waits for its next attempt.
pub(crate) fn retry_topic(topic: &str, group: &str, delay: Duration) -> String {
    let seconds = delay.as_secs();
    let delay = match delay.subsec_millis() {
        0 if seconds > 0 && seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        0 if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        0 => format!("{seconds}s"),
        _ => format!("{}ms", delay.as_millis()),
    };
    format!("{topic}.{group}.retry.{delay}")
}

/// Returns the delay of a retry topic of this group. Returns `None` for every other topic.
pub(crate) fn retry_delay(topic: &str, group: &str) -> Option<Duration> {
    let (before, delay) = topic.rsplit_once('.')?;
    before
        .strip_suffix("retry")?
        .strip_suffix('.')?
        .strip_suffix(group)?
        .strip_suffix('.')?;
    let digits = delay.find(|character: char| !character.is_ascii_digit())?;
    let (number, item) = delay.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match item {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3_600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_of_a_retry_topic_is_read_from_its_name() {
        for delay in [
            0, 1, 999, 1_000, 1_500, 60_000, 90_000, 3_600_000, 86_400_000,
        ] {
            let delay = Duration::from_millis(delay);
            assert_eq!(
                retry_delay(&retry_topic("a.b", "g", delay), "g"),
                Some(delay)
            );
        }
        for other in [
            "order",
            "order.g.redrive",
            "order.h.retry.1m",
            "order.g.retry.",
            "order.g.retry.1d",
            "order.gg.retry.1m",
            "g.retry.1m",
        ] {
            assert_eq!(retry_delay(other, "g"), None, "{other}");
        }
        assert_eq!(
            retry_delay("order.g.retry.18446744073709551615h", "g"),
            None
        );
    }

    #[test]
    fn a_refused_letter_is_no_outage_and_its_event_stays_parked() {
        let refused = LetterError::Refused {
            topic: "order.g.dlt".into(),
            reason: "too large".into(),
        };
        assert!(matches!(Unsent::from(refused), Unsent::Refused(_)));
        for passing in [
            LetterError::UnknownTopic("order.g.dlt".into()),
            LetterError::Unavailable {
                topic: "order.g.dlt".into(),
                reason: "timed out".into(),
            },
        ] {
            let Unsent::Unavailable(error) = Unsent::from(passing) else {
                panic!("an outage passes")
            };
            assert_eq!(error.verdict(), Verdict::Unavailable);
        }
        let stays = Settled::Refused {
            attempts: 3,
            error: "too large".into(),
        }
        .of_parked(7);
        assert_eq!(
            stays,
            Settled::Again {
                after: REFUSED_PAUSE,
                attempts: 7,
                error: "too large".into()
            }
        );
    }

    #[test]
    fn retry_topics_are_named_by_their_delay() {
        for (delay, name) in [(90, "90s"), (60, "1m"), (7_200, "2h"), (0, "0s")] {
            assert_eq!(
                retry_topic("order", "stock", Duration::from_secs(delay)),
                format!("order.stock.retry.{name}")
            );
        }
        assert_eq!(
            retry_topic("a", "b", Duration::from_millis(1_500)),
            "a.b.retry.1500ms"
        );
    }
}
