//! The role of a topic, and tombstones.
//!
//! A record with a null value deletes its key, regardless of its headers, so it is never an event
//! of the type in its headers. Its aggregate determines its handlers.

use crate::kafka::{Incoming, Malformed, Message};

/// The role of a topic: the records that a subscriber expects in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// The type of records that have no type header.
    pub(crate) assumed_type: Option<&'static str>,
    /// The aggregate of tombstones that do not name one. `None` if several aggregates share the
    /// topic.
    pub(crate) aggregate: Option<&'static str>,
}

impl Source {
    /// Reads the record as an event or a tombstone.
    ///
    /// # Errors
    ///
    /// Returns the record and the reason if it is neither.
    pub(crate) fn read(&self, record: Incoming) -> Result<Message, (Malformed, Box<Incoming>)> {
        let message = Message::read(record, self.assumed_type)?;
        if !message.is_tombstone() {
            return Ok(message);
        }
        let aggregate = message
            .aggregate_type()
            .or(self.aggregate)
            .filter(|_| !message.aggregate_id().is_empty());
        let kind = aggregate.map_or_else(|| NAMELESS.to_owned(), tombstone_of);
        Ok(message.with_kind(kind))
    }
}

/// Kind of a tombstone without an aggregate, for counters.
const NAMELESS: &str = "tombstone";

/// Returns the kind of an aggregate's tombstones, for counters and registration.
pub(crate) fn tombstone_of(aggregate: &str) -> String {
    format!("tombstone of {aggregate}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Place;

    fn read(
        source: Source,
        key: Option<&str>,
        headers: &[(&str, &str)],
        value: Option<&str>,
    ) -> Message {
        let place = Place {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 0,
        };
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, Some(value.as_bytes())));
        let record = Incoming::new(
            place,
            key.map(str::as_bytes),
            value.map(str::as_bytes),
            headers,
        );
        source
            .read(record)
            .unwrap_or_else(|(malformed, _)| panic!("{malformed}"))
    }

    #[test]
    fn a_record_with_a_null_value_is_a_tombstone_of_its_aggregate_whatever_its_headers_say() {
        let source = Source {
            assumed_type: Some("OrderPlaced"),
            aggregate: Some("order"),
        };
        let event = [
            ("ce_specversion", "1.0"),
            ("ce_id", "1"),
            ("ce_type", "OrderPlaced"),
            ("ce_source", "/shop"),
        ];
        let other = [&event[..], &[("ce_aggregatetype", "customer")]].concat();
        for (headers, kind, event_type) in [
            (&[][..], "tombstone of order", "Tombstone"),
            (&event[..], "tombstone of order", "OrderPlaced"),
            (&other[..], "tombstone of customer", "OrderPlaced"),
            (
                &[("content-type", "application/cloudevents+json")][..],
                "tombstone of order",
                "Tombstone",
            ),
            (
                &[("content-type", "application/cloudevents+avro")][..],
                "tombstone of order",
                "Tombstone",
            ),
            (
                &[("ce_specversion", "1.0")][..],
                "tombstone of order",
                "Tombstone",
            ),
            (
                &[("ce_specversion", "9.9"), ("ce_dataversion", "x")][..],
                "tombstone of order",
                "Tombstone",
            ),
        ] {
            let message = read(source, Some("7"), headers, None);
            assert_eq!(
                (message.kind(), message.event_type(), message.is_tombstone()),
                (kind, event_type, true),
                "{headers:?}"
            );
        }
        assert_eq!(
            read(Source::default(), Some("7"), &[], None).kind(),
            "tombstone",
            "several aggregates share the topic"
        );
        assert_eq!(
            read(source, None, &[], None).kind(),
            "tombstone",
            "the record does not name the deleted aggregate"
        );
        assert_eq!(
            read(source, Some("7"), &event, Some("{}")).kind(),
            "OrderPlaced"
        );
        assert!(
            !read(source, Some("7"), &[], Some("null")).is_tombstone(),
            "JSON's null deletes nothing"
        );
    }
}
