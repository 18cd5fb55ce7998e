//! Judgement of a relay that ends before all sent events are durable.

use std::time::Duration;

use crate::relay::{RelayError, error::Interruption, sink::Outstanding};

/// Reason why a relay ends before its records are durable.
pub(super) enum Undrained {
    /// The work or the drain did not end within the shutdown grace. Contains the step that did not
    /// end.
    Late(String),
    Failed(Interruption),
}

impl Undrained {
    /// Returns the outcome of the relay, whose configured grace is `grace`. It succeeds if no event
    /// is outstanding: then only a position may be missing.
    ///
    /// # Errors
    ///
    /// Returns the number of outstanding events with the cause.
    pub(super) fn outcome(
        self,
        outstanding: &Outstanding,
        grace: Duration,
    ) -> Result<(), RelayError> {
        // A failed producer is the cause, even if it was noticed only at the end of the grace.
        let reason = outstanding.failure().map_or(self, Self::Failed);
        let under_way = outstanding.events();
        if under_way == 0 {
            let cause = match reason {
                Self::Late(waiting) => format!("the grace of {grace:?} ended ({waiting})"),
                Self::Failed(interruption) => interruption.explained(),
            };
            tracing::warn!(
                "no event is in flight, but the last position may be missing in Kafka: {cause}"
            );
            return Ok(());
        }
        Err(match reason {
            Self::Late(waiting) => RelayError::GraceExceeded {
                under_way,
                grace,
                waiting,
            },
            Self::Failed(interruption) => RelayError::NotDrained {
                under_way,
                cause: interruption.explained(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kafka::Failure, relay::sink::outstanding::tests::with_batch};

    const GRACE: Duration = Duration::from_secs(7);

    fn late(outstanding: &Outstanding) -> Option<String> {
        let outcome = Undrained::Late("it waited".into()).outcome(outstanding, GRACE);
        outcome.err().map(|error| error.to_string())
    }

    #[test]
    fn a_relay_without_outstanding_events_ends_well_even_if_its_position_was_not_acknowledged() {
        assert_eq!(late(&with_batch(0, None)), None);
        let failed = with_batch(0, Some(Failure::Fenced));
        assert_eq!(late(&failed), None);
    }

    #[test]
    fn outstanding_events_are_counted_without_the_position_and_the_failed_commit_is_the_cause() {
        let text = late(&with_batch(2, None)).unwrap_or_default();
        assert!(
            text.starts_with("2 events were sent") && text.contains("7s (it waited)"),
            "{text}"
        );
        let failure = Failure::Broken("the commit failed".into());
        let text = late(&with_batch(2, Some(failure))).unwrap_or_default();
        assert!(
            text.starts_with("2 events were sent and are not durable: the commit failed"),
            "{text}"
        );
    }
}
