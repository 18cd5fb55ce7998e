//! Identity of the event in a record, from its headers. Pure.
//!
//! | format | id | source |
//! |---|---|---|
//! | CloudEvents, binary | `ce_id` | `ce_source` |
//! | CloudEvents, structured | `id` of the value | `source` of the value |
//! | Debezium's EventRouter | header `id` | none |
//! | dead letter of a relay | `tidings_event_id` | none |
//!
//! `src/kafka/envelope.rs` writes these formats.

use std::borrow::Cow;

use chrono::DateTime;
use serde::Deserialize;
use uuid::Uuid;

use super::entry::{Origin, PlaceIndex, TopicRecord};
use crate::kafka::{Incoming, is_structured};

/// Attributes of a CloudEvent in structured mode.
#[derive(Deserialize)]
struct Attributes<'v> {
    #[serde(borrow)]
    id: Cow<'v, str>,
    #[serde(borrow)]
    source: Cow<'v, str>,
    #[serde(borrow)]
    time: Option<Cow<'v, str>>,
}

/// Returns the record of an event. Returns `None` if the record has no id that an outbox assigns.
pub(crate) fn identify(
    record: &Incoming,
    place: PlaceIndex,
    sources: &[String],
) -> Option<TopicRecord> {
    let text = |name| {
        record
            .header(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    };
    let origin = |source: Option<&str>| match source {
        Some(source) if !sources.iter().any(|ours| ours == source) => Origin::Other,
        _ => Origin::Relay,
    };
    let (id, origin, time) = if let Some(id) = text("tidings_event_id") {
        (Cow::Borrowed(id), Origin::DeadLetter, None)
    } else if record.header("ce_specversion").is_some() {
        let time = text("ce_time").map(Cow::Borrowed);
        (
            Cow::Borrowed(text("ce_id")?),
            origin(text("ce_source")),
            time,
        )
    } else if let Some(id) = text("id") {
        (Cow::Borrowed(id), Origin::Relay, None)
    } else if is_structured(record) {
        let attributes: Attributes<'_> = serde_json::from_slice(record.value()?).ok()?;
        let origin = origin(Some(&attributes.source));
        (attributes.id, origin, attributes.time)
    } else {
        return None;
    };
    let occurred = time.and_then(|time| DateTime::parse_from_rfc3339(&time).ok());
    let occurred = occurred.map_or(i64::MAX, |time| time.timestamp_millis());
    Some(TopicRecord {
        id: Uuid::try_parse(&id).ok()?.into_bytes(),
        place,
        offset: record.offset,
        time: occurred.min(record.timestamp),
        origin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Place;

    fn record(headers: &[(&str, &str)], value: &[u8]) -> Incoming {
        let place = Place {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 5_000,
        };
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, Some(value.as_bytes())));
        Incoming::new(place, Some(b"7"), Some(value), headers)
    }

    const ID: &str = "0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10";

    fn found(record: &Incoming) -> Option<(Id, i64, Origin)> {
        identify(record, 1, &["/tidings/shop".to_owned()])
            .map(|record| (record.id, record.time, record.origin))
    }

    use super::super::entry::Id;

    #[test]
    fn an_event_is_identified_in_every_format_that_a_relay_writes() {
        let id = Uuid::try_parse(ID).expect("an id").into_bytes();
        let binary = [
            ("ce_specversion", "1.0"),
            ("ce_id", ID),
            ("ce_source", "/tidings/shop"),
            ("ce_time", "1970-01-01T00:00:02Z"),
        ];
        assert_eq!(
            found(&record(&binary, b"{}")),
            Some((id, 2_000, Origin::Relay))
        );
        let other = [binary[0], binary[1], ("ce_source", "/tidings/other")];
        assert_eq!(
            found(&record(&other, b"{}")),
            Some((id, 5_000, Origin::Other))
        );
        let debezium = [("id", ID)];
        assert_eq!(
            found(&record(&debezium, b"{}")),
            Some((id, 5_000, Origin::Relay))
        );
        let letter = [binary[0], binary[1], ("tidings_event_id", ID)];
        assert_eq!(
            found(&record(&letter, b"{}")),
            Some((id, 5_000, Origin::DeadLetter))
        );
        let structured = format!(
            r#"{{"specversion":"1.0","id":"{ID}","source":"/tidings/shop","type":"T",
                "time":"1970-01-01T00:00:02Z","data":{{"a":1}}}}"#
        );
        let headers = [(
            "content-type",
            "application/cloudevents+json; charset=UTF-8",
        )];
        assert_eq!(
            found(&record(&headers, structured.as_bytes())),
            Some((id, 2_000, Origin::Relay))
        );
    }

    #[test]
    fn a_record_without_an_id_of_an_outbox_belongs_to_another_program() {
        assert_eq!(found(&record(&[], b"{}")), None);
        assert_eq!(found(&record(&[("id", "7")], b"{}")), None);
        assert_eq!(found(&record(&[("ce_specversion", "1.0")], b"{}")), None);
        assert_eq!(
            found(&record(&[("id", ID)], b"")).map(|found| found.2),
            Some(Origin::Relay)
        );
    }
}
