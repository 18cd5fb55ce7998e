//! Checks before anything is sent: the limits of an event and a batch.

use std::collections::HashSet;

use super::Outbox;
use crate::{event::Envelope, outbox::PublishError};

impl Outbox {
    /// Refuses an event that could never be delivered.
    pub(crate) fn check(&self, envelope: &Envelope) -> Result<(), PublishError> {
        let event_type = || envelope.event_type.clone().into_owned();
        let invalid = |source| PublishError::Invalid {
            event_type: event_type(),
            source,
        };
        envelope.check().map_err(invalid)?;
        self.default_headers.check().map_err(invalid)?;
        let (bytes, max) = (envelope.payload.len(), self.max_event_bytes);
        if bytes > max {
            return Err(PublishError::PayloadTooLarge {
                event_type: event_type(),
                bytes,
                max,
            });
        }
        let (bytes, max) = (
            envelope.headers.byte_len() + self.default_headers.byte_len(),
            Self::MAX_HEADER_BYTES,
        );
        if bytes > max {
            return Err(PublishError::HeadersTooLarge {
                event_type: event_type(),
                bytes,
                max,
            });
        }
        Ok(())
    }
}

/// Refuses a call that would lock too many aggregates.
pub(super) fn check_aggregate_count(envelopes: &[Envelope]) -> Result<(), PublishError> {
    let aggregates: HashSet<_> = envelopes
        .iter()
        .map(|envelope| (&envelope.aggregate_type, &envelope.aggregate_id))
        .collect();
    let (count, max) = (aggregates.len(), Outbox::MAX_LOCKED_AGGREGATES);
    if count > max {
        return Err(PublishError::TooManyAggregates { count, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{AggregateId, InvalidEvent, Payload};

    fn envelope(payload: Payload) -> Envelope {
        Envelope::new(
            "order",
            AggregateId::new("7").expect("a valid id"),
            "OrderPlaced",
            payload,
        )
    }

    #[test]
    fn an_event_larger_than_a_record_may_be_is_refused() {
        let outbox = Outbox::new().max_event_bytes(3);
        assert!(outbox.check(&envelope(Payload::Bytes(vec![0; 3]))).is_ok());
        let error = outbox
            .check(&envelope(Payload::Bytes(vec![0; 4])))
            .expect_err("four bytes of three");
        assert!(
            matches!(
                error,
                PublishError::PayloadTooLarge {
                    bytes: 4,
                    max: 3,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn headers_are_counted_together_with_the_outboxs_own() {
        let outbox = Outbox::new().header("h", "x".repeat(Outbox::MAX_HEADER_BYTES / 2));
        let mut event = envelope(Payload::Tombstone);
        assert!(outbox.check(&event).is_ok());
        event
            .headers
            .insert("i", "x".repeat(Outbox::MAX_HEADER_BYTES / 2));
        assert!(matches!(
            outbox.check(&event),
            Err(PublishError::HeadersTooLarge { .. })
        ));
    }

    #[test]
    fn a_default_header_is_checked_like_the_events_own() {
        let error = Outbox::new()
            .header("ce_id", "")
            .check(&envelope(Payload::Tombstone))
            .expect_err("a reserved name");
        assert!(
            matches!(
                error,
                PublishError::Invalid {
                    source: InvalidEvent::ReservedHeader { .. },
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn locks_are_counted_by_aggregate_and_not_by_event() {
        let of = |count: usize| {
            let id = |n: usize| AggregateId::new(n.to_string()).expect("a valid id");
            (0..2 * count)
                .map(|n| Envelope::tombstone("order", id(n % count)))
                .collect::<Vec<_>>()
        };
        assert!(check_aggregate_count(&of(Outbox::MAX_LOCKED_AGGREGATES)).is_ok());
        let error = check_aggregate_count(&of(Outbox::MAX_LOCKED_AGGREGATES + 1))
            .expect_err("one too many");
        assert!(
            matches!(error, PublishError::TooManyAggregates { count: 1_001, .. }),
            "{error}"
        );
    }
}
