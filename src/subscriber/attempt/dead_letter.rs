//! Records that become dead letters: sent until Kafka confirms them, or parked if the broker
//! rejects them.

use std::time::Duration;

use super::{Runner, Settled, pause::Outage, permit::HandlerPermit};
use crate::{
    kafka::{Incoming, LetterError, Message},
    subscriber::{
        failure::dead_letter::{FailureInfo, bare_letter, letter, origin_of},
        handler::HandlerError,
        telemetry::statistics::Count,
    },
};

/// Pause before a letter that the broker rejected is sent again. It is long because an operator
/// must change the settings of the topic first.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Reason why a record was not stored in another topic.
pub(super) enum Unsent {
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
    pub(super) record: &'m Incoming,
    /// The type for counters. Empty for a record that is not an event.
    pub(super) kind_of_event: &'m str,
    /// `None` for a record that is not an event.
    pub(super) message: Option<&'m Message>,
    pub(super) kind: &'static str,
    pub(super) attempts: u32,
    /// True if the record cannot be read. Such records arrive at the rate that their producer
    /// chooses, so log lines are limited.
    pub(super) is_unreadable: bool,
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
            kind,
            attempts,
            ..
        } = *dead;
        let origin = origin_of(&record.topic, &self.name);
        let Some(place) = self.dead_letters.topic_for(origin, &self.name) else {
            tracing::error!(
                subscriber = self.name,
                topic = &*record.topic,
                partition = record.partition,
                offset = record.offset,
                reason = error.chain(),
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
        self.report_dead_letter(dead, error, &place);
        self.statistics.add(Count::DeadLettered, kind_of_event, 1);
        Ok(())
    }

    /// Logs that a record becomes a dead letter. Log lines about unreadable records are limited.
    fn report_dead_letter(&self, dead: &FailedRecord<'_>, error: &HandlerError, place: &str) {
        let FailedRecord {
            record,
            message,
            attempts,
            is_unreadable,
            ..
        } = *dead;
        let (topic, partition, offset, reason) = (
            &*record.topic,
            record.partition,
            record.offset,
            error.chain(),
        );
        if !is_unreadable {
            tracing::error!(
                subscriber = self.name,
                event.id = message.map(|message| message.id().to_string()),
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
