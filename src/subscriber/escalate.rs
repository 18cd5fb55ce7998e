//! Where an event goes that used up its attempts: its aggregate's detour, a retry topic, the dead letters.

use std::time::Duration;

use super::Escalation;
use super::attempt::{Runner, Settled};
use super::dead_letters::{DUE, Obituary, TIER, bare_letter, letter, origin_of, tier_of};
use super::handler::{HandlerError, Verdict};
use super::outage::Outage;
use super::statistics::Count;
use super::turn::Turn;
use crate::kafka::{Incoming, LetterError, Message};

/// Time until a letter that the broker refuses is tried again: its topic's settings change by hand.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Why a record is not in another topic.
enum Unburied {
    /// Kafka does not confirm it at the moment.
    Unavailable(HandlerError),
    /// The broker would refuse it again.
    Refused(LetterError),
}

impl From<LetterError> for Unburied {
    fn from(error: LetterError) -> Self {
        match error {
            LetterError::Refused { .. } => Self::Refused(error),
            LetterError::UnknownTopic(_) | LetterError::Unavailable { .. } => Self::Unavailable(HandlerError::unavailable(error)),
        }
    }
}

/// What goes to the dead letters.
#[derive(Clone, Copy)]
pub(super) struct Dead<'m> {
    record: &'m Incoming,
    /// What it is counted as; empty for a record that is no event.
    kind_of_event: &'m str,
    /// `None` of a record that is no event.
    message: Option<&'m Message>,
    kind: &'static str,
    attempts: u32,
    /// The record cannot be read, so that its producer decides how often this happens.
    is_unreadable: bool,
}

impl<'m> Dead<'m> {
    /// An event that was tried this often since it was read.
    pub(super) fn event(message: &'m Message, attempts: u32) -> Self {
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

    /// A record that is no event.
    fn malformed(record: &'m Incoming) -> Self {
        Self { record, kind_of_event: "", message: None, kind: "malformed", attempts: 0, is_unreadable: true }
    }
}

impl Runner {
    /// Sends an event that used up its attempts where the subscriber's rules say, however long that takes: until then none is lost, and none is handled.
    pub(super) async fn end(&self, message: &Message, error: &HandlerError, failed: u32, turn: &mut Turn<'_>) -> Settled {
        let is_dead = error.verdict() == Verdict::DeadLetter;
        match &self.escalation {
            Escalation::Park(_) if !is_dead => {
                self.report_used_up(
                    message,
                    failed,
                    error,
                    "an event used up its attempts: it is parked in the table `detour` with the later ones of its aggregate, and tried from there",
                );
                return Settled::Park { attempts: failed, error: error.chain() };
            }
            Escalation::RetryTopics(delays) if !is_dead => {
                let tier = tier_of(message.as_it_came(), &self.name);
                if let Some(delay) = delays.get(tier) {
                    let mut outage = Outage::none(self);
                    loop {
                        match self.send_to_retry(message, error, failed, tier, *delay).await {
                            Ok(()) => return Settled::Finished,
                            Err(Unburied::Unavailable(unsent)) => {
                                if !turn.pause(outage.goes_on(&unsent)).await {
                                    return Settled::Abandoned;
                                }
                            }
                            Err(Unburied::Refused(refusal)) => {
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
        let dead = Dead { is_unreadable: error.is_undecodable(), ..Dead::event(message, failed) };
        self.bury_at_last(&dead, error, turn).await
    }

    /// Sends an event to the dead letters that shares its identity with one that was handled. No handler ran, so it says nothing
    /// about handlers: the kill switch does not count it.
    pub(super) async fn end_conflicting(&self, message: &Message, error: &HandlerError, failed: u32, turn: &mut Turn<'_>) -> Settled {
        let record = message.as_it_came();
        tracing::warn!(
            subscriber = self.name,
            event.id = &*message.id(),
            topic = &*record.topic,
            partition = record.partition,
            offset = record.offset,
            error = error.chain(),
            "an event shares its id with another one that was handled and becomes a dead letter; replay it under another id if it is genuine"
        );
        self.statistics.add(Count::Conflicting, message.kind(), 1);
        let dead = Dead { kind: "duplicate", ..Dead::event(message, failed) };
        self.bury_at_last(&dead, error, turn).await
    }

    /// Sends a record to the dead letters, however long that takes. One that the broker refuses is not given up: it is
    /// parked where that is possible, and otherwise tried again in front of its aggregate.
    pub(super) async fn bury_at_last(&self, dead: &Dead<'_>, error: &HandlerError, turn: &mut Turn<'_>) -> Settled {
        let mut outage = Outage::none(self);
        loop {
            let pause = match self.bury(dead, error).await {
                Ok(()) => return Settled::Finished,
                Err(Unburied::Unavailable(unsent)) => outage.goes_on(&unsent),
                Err(Unburied::Refused(refusal)) => {
                    outage.is_over();
                    let parks = self.core.inbox.is_some();
                    self.report_refused(dead, &refusal, error, parks);
                    if parks {
                        let error = format!("{refusal}; the event failed with: {}", error.chain());
                        return Settled::Refused { attempts: dead.attempts, error };
                    }
                    REFUSED_PAUSE
                }
            };
            if !turn.pause(pause).await {
                return Settled::Abandoned;
            }
        }
    }

    fn report_refused(&self, dead: &Dead<'_>, refusal: &LetterError, error: &HandlerError, parks: bool) {
        let record = dead.record;
        self.statistics.add(Count::RefusedLetters, dead.kind_of_event, 1);
        tracing::warn!(
            subscriber = self.name,
            topic = &*record.topic,
            partition = record.partition,
            offset = record.offset,
            bytes = record.size(),
            reason = error.chain(),
            %refusal,
            parked = parks,
            "the broker refuses a dead letter; the event stays and is tried again every {} s: raise max.message.bytes of the \
             dead letter topic, or correct its settings",
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
    ) -> Result<(), Unburied> {
        let origin = origin_of(&message.as_it_came().topic, &self.name);
        let why = Obituary { group: &self.name, error, kind: "handler", attempts: failed.saturating_add(message.attempts_before()) };
        let mut letter = letter(message.as_it_came(), retry_topic(origin, &self.name, delay), &why);
        let due = self.clock.utc() + delay;
        letter.headers.push((TIER.into(), Some((tier + 1).to_string().into_bytes())));
        letter.headers.push((DUE.into(), Some(due.timestamp_millis().to_string().into_bytes())));
        self.letterbox.send(&letter, origin).await?;
        self.statistics.add(Count::Retried, message.kind(), 1);
        self.report_used_up(message, failed, error, "an event used up its attempts: it is tried again from a retry topic");
        Ok(())
    }

    /// Sends a record to the dead letters. A letter that the broker refuses is sent once more with the record's own headers
    /// only.
    ///
    /// # Errors
    /// When it does not arrive there; it is not finished then.
    async fn bury(&self, dead: &Dead<'_>, error: &HandlerError) -> Result<(), Unburied> {
        let Dead { record, kind_of_event, message, kind, attempts, is_unreadable } = *dead;
        let id = message.map(|message| message.id().to_string());
        let origin = origin_of(&record.topic, &self.name);
        let (topic, partition, offset, reason) = (&*record.topic, record.partition, record.offset, error.chain());
        let Some(place) = self.dead_letters.topic_for(origin, &self.name) else {
            tracing::error!(subscriber = self.name, topic, partition, offset, reason, "an event cannot be handled and is discarded");
            self.statistics.add(Count::Discarded, kind_of_event, 1);
            return Ok(());
        };
        let why = Obituary { group: &self.name, error, kind, attempts };
        match self.letterbox.send(&letter(record, place.clone(), &why), origin).await {
            Err(LetterError::Refused { .. }) => self.letterbox.send(&bare_letter(record, place.clone()), origin).await?,
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
                "an event is dead"
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
                "a record cannot be read and becomes a dead letter; similar messages are logged every 10 s at most"
            );
        }
        self.statistics.add(Count::DeadLettered, kind_of_event, 1);
        Ok(())
    }

    /// Sends a record that is no event to the dead letters, however long that takes.
    pub(super) async fn settle_malformed(&self, record: &Incoming, reason: &str, turn: &mut Turn<'_>) -> Settled {
        let error = HandlerError::dead_letter(reason);
        self.bury_at_last(&Dead::malformed(record), &error, turn).await
    }
}

/// The topic in which an event waits for its next attempt.
pub(super) fn retry_topic(topic: &str, group: &str, delay: Duration) -> String {
    let seconds = delay.as_secs();
    let delay = match delay.subsec_millis() {
        0 if seconds > 0 && seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        0 if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        0 => format!("{seconds}s"),
        _ => format!("{}ms", delay.as_millis()),
    };
    format!("{topic}.{group}.retry.{delay}")
}

/// The delay of a retry topic of this group; `None` for every other topic.
pub(super) fn retry_delay(topic: &str, group: &str) -> Option<Duration> {
    let (before, delay) = topic.rsplit_once('.')?;
    before.strip_suffix("retry")?.strip_suffix('.')?.strip_suffix(group)?.strip_suffix('.')?;
    let digits = delay.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = delay.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
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
        for delay in [0, 1, 999, 1_000, 1_500, 60_000, 90_000, 3_600_000, 86_400_000] {
            let delay = Duration::from_millis(delay);
            assert_eq!(retry_delay(&retry_topic("a.b", "g", delay), "g"), Some(delay));
        }
        for other in
            ["order", "order.g.redrive", "order.h.retry.1m", "order.g.retry.", "order.g.retry.1d", "order.gg.retry.1m", "g.retry.1m"]
        {
            assert_eq!(retry_delay(other, "g"), None, "{other}");
        }
        assert_eq!(retry_delay("order.g.retry.18446744073709551615h", "g"), None);
    }

    #[test]
    fn a_refused_letter_is_no_outage_and_its_event_stays_parked() {
        let refused = LetterError::Refused { topic: "order.g.dlt".into(), reason: "too large".into() };
        assert!(matches!(Unburied::from(refused), Unburied::Refused(_)));
        for passing in [
            LetterError::UnknownTopic("order.g.dlt".into()),
            LetterError::Unavailable { topic: "order.g.dlt".into(), reason: "timed out".into() },
        ] {
            let Unburied::Unavailable(error) = Unburied::from(passing) else { panic!("an outage passes") };
            assert_eq!(error.verdict(), Verdict::Unavailable);
        }
        let stays = Settled::Refused { attempts: 3, error: "too large".into() }.parked(7);
        assert_eq!(stays, crate::subscriber::attempt::Parked::Again { after: REFUSED_PAUSE, attempts: 7, error: "too large".into() });
    }

    #[test]
    fn retry_topics_are_named_by_their_delay() {
        for (delay, name) in [(90, "90s"), (60, "1m"), (7_200, "2h"), (0, "0s")] {
            assert_eq!(retry_topic("order", "stock", Duration::from_secs(delay)), format!("order.stock.retry.{name}"));
        }
        assert_eq!(retry_topic("a", "b", Duration::from_millis(1_500)), "a.b.retry.1500ms");
    }
}
