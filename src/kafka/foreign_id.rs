//! Identity of records that are not CloudEvents.

use super::format::is_structured;
use super::incoming::Incoming;

/// Returns the id and source of a record that is not a CloudEvent, or `None` for a CloudEvent.
/// Values that the record does not contain are derived from its place. A copy in another topic
/// needs both as headers, because it has another place.
pub(crate) fn identity_by_place(record: &Incoming) -> Option<(String, String)> {
    if is_structured(record) || record.header("ce_specversion").is_some() {
        return None;
    }
    let id = foreign_id_at(record)
        .map(|at| String::from_utf8_lossy(record.header_at(at.into())).into_owned());
    let source = record
        .header("ce_source")
        .map(|source| String::from_utf8_lossy(source).into_owned());
    let by_place = || format!("{}/{}", record.partition, record.offset);
    Some((
        id.unwrap_or_else(by_place),
        source.unwrap_or_else(|| format!("kafka:{}", record.topic)),
    ))
}

/// Returns the index of the header with the id of a record that is not a CloudEvent: `ce_id`, or
/// `id` of Debezium's EventRouter.
///
/// Other producers write the id of an entity into a header `id`, and two events of one entity are
/// not the same event. Therefore `id` is used only if the record has the format of EventRouter: it
/// differs from the key, and
///
/// - a header `eventType` exists; or
/// - the value is one JSON string, as JsonConverter writes a payload that is not expanded; or
/// - it is a UUID, and it is the only header or accompanied by a header `type`.
///
/// A record without such a header is identified by its place.
pub(super) fn foreign_id_at(record: &Incoming) -> Option<u16> {
    let (mut own, mut routed, mut named, mut typed) = (None, None, false, false);
    for (place, (name, value)) in record.headers().enumerate() {
        let here = u16::try_from(place).ok().filter(|_| is_usable_id(value));
        match name {
            b"ce_id" => own = here,
            b"id" => routed = here,
            b"eventType" => named = true,
            b"type" => typed = true,
            _ => {}
        }
    }
    let is_event_router = |at: &u16| {
        let id = record.header_at((*at).into());
        let is_uuid = id.len() == UUID_LENGTH && uuid::Uuid::try_parse_ascii(id).is_ok();
        let is_quoted = record
            .value()
            .is_some_and(|value| value.first() == Some(&b'"'));
        record.key() != Some(id)
            && (named || is_quoted || is_uuid && (typed || record.headers().len() == 1))
    };
    own.or(routed.filter(is_event_router))
}

/// Length with hyphens.
const UUID_LENGTH: usize = 36;

/// Maximum length of the id of a foreign record, which is also the limit of the inbox.
const ID_BYTES_MAX: usize = 512;

fn is_usable_id(id: &[u8]) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && !id.contains(&0) && std::str::from_utf8(id).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::incoming::Place;
    use crate::kafka::message::Message;

    #[test]
    fn a_header_id_that_is_not_event_routers_leaves_a_record_known_by_its_place() {
        const UUID: &[u8] = b"0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10";
        const OTHER: &[u8] = b"0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e11";
        let id_of = |key: &[u8], headers: &[(&str, Option<&[u8]>)], value: &str| {
            let place = Place {
                topic: "order".into(),
                partition: 3,
                offset: 9,
                timestamp: 0,
            };
            let record = Incoming::new(
                place,
                Some(key),
                Some(value.as_bytes()),
                headers.iter().copied(),
            );
            Message::read(record, Some("OrderPlaced"))
                .expect("a type is assumed")
                .id()
                .into_owned()
        };
        let long = [b'x'; 513];
        for (key, headers) in [
            (&b"7"[..], &[("id", Some(&b"7"[..]))][..]),
            (b"7", &[("id", Some(b"order-7"))]),
            (
                b"7",
                &[("id", Some(b"order-7")), ("type", Some(b"OrderPlaced"))],
            ),
            (
                b"7",
                &[
                    ("id", Some(b"\xff\xfe")),
                    ("eventType", Some(b"OrderPlaced")),
                ],
            ),
            (
                b"7",
                &[
                    ("id", Some(b"\0\0\0\x07")),
                    ("eventType", Some(b"OrderPlaced")),
                ],
            ),
            (
                b"7",
                &[("id", Some(b"")), ("eventType", Some(b"OrderPlaced"))],
            ),
            (b"7", &[("id", None), ("eventType", Some(b"OrderPlaced"))]),
            (
                b"7",
                &[("id", Some(&long)), ("eventType", Some(b"OrderPlaced"))],
            ),
            (b"7", &[("id", Some(UUID)), ("tenant", Some(b"acme"))]),
            (UUID, &[("id", Some(UUID))]),
            (
                b"7",
                &[("id", Some(b"7")), ("eventType", Some(b"OrderPlaced"))],
            ),
            (b"7", &[("ce_id", Some(b"\xff"))]),
            (b"7", &[("ce_id", Some(b""))]),
        ] {
            assert_eq!(id_of(key, headers, "{}"), "3/9", "{headers:?}");
        }
        let uuid = String::from_utf8_lossy(UUID);
        assert_eq!(id_of(b"7", &[("id", Some(UUID))], "{}"), uuid);
        assert_eq!(
            id_of(
                b"7",
                &[("id", Some(UUID)), ("type", Some(b"OrderPlaced"))],
                "{}"
            ),
            uuid
        );
        assert_eq!(
            id_of(
                OTHER,
                &[
                    ("id", Some(UUID)),
                    ("eventType", Some(b"OrderPlaced")),
                    ("x", Some(b"y"))
                ],
                "{}"
            ),
            uuid
        );
        assert_eq!(
            id_of(b"7", &[("id", Some(b"12")), ("x", Some(b"y"))], r#""{}""#),
            "12"
        );
    }
}
