//! Formats of records: the supported CloudEvents modes, and unsupported formats that messages name.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::incoming::Incoming;

const CLOUD_EVENT: &str = "application/cloudevents";
const STRUCTURED: &str = "application/cloudevents+json";

/// Returns the record's media type without parameters. Names of headers and media types are
/// compared without regard to letter case.
fn media_type(record: &Incoming) -> Option<&str> {
    let text = content_type(record)?;
    Some(text.split_once(';').map_or(text, |(media, _)| media).trim())
}

/// The record's media type with its parameters.
fn content_type(record: &Incoming) -> Option<&str> {
    let is_content_type = |name: &[u8]| name.eq_ignore_ascii_case(b"content-type");
    let (_, value) = record
        .headers()
        .filter(|(name, _)| is_content_type(name))
        .last()?;
    std::str::from_utf8(value)
        .ok()
        .filter(|text| !text.is_empty())
}

/// Returns `true` if the value holds a complete CloudEvent. Attributes in headers
/// (`ce_specversion`: binary mode) take precedence over the value. Without a CloudEvents content
/// type, a JSON object with the four required attributes is accepted.
pub(crate) fn is_structured(record: &Incoming) -> bool {
    let Some(value) = record.value() else {
        return false;
    };
    if record.header("ce_specversion").is_some() {
        return false;
    }
    match media_type(record) {
        Some(media) if media.eq_ignore_ascii_case(STRUCTURED) => true,
        Some(media) if starts_with_ignoring_case(media, CLOUD_EVENT) => false,
        _ => has_attributes(value),
    }
}

/// Returns `true` if the value is a JSON object with the required attributes of a CloudEvent.
fn has_attributes(value: &[u8]) -> bool {
    const MARK: &[u8] = b"\"specversion\"";
    const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];
    if value.trim_ascii_start().first() != Some(&b'{')
        || !value.windows(MARK.len()).any(|part| part == MARK)
    {
        return false;
    }
    let Some(fields) = fields(value) else {
        return false;
    };
    REQUIRED.iter().all(|name| {
        fields
            .get(*name)
            .is_some_and(|value| value.get().starts_with('"'))
    })
}

/// Returns a description of the record if its headers declare an unsupported format.
pub(super) fn declared_foreign_format(record: &Incoming) -> Option<String> {
    if record.header("ce_specversion").is_some() {
        return None;
    }
    let media = media_type(record).filter(|media| starts_with_ignoring_case(media, CLOUD_EVENT))?;
    if media.eq_ignore_ascii_case(STRUCTURED) {
        return None;
    }
    let media: String = media
        .chars()
        .filter(|character| !character.is_control())
        .take(MEDIA_CHARACTERS_MAX)
        .collect();
    Some(
        match starts_with_ignoring_case(&media, "application/cloudevents-batch") {
            true => {
                format!("a batch of CloudEvents (`{media}`); send each event in its own record")
            }
            false => format!("`{media}`; send CloudEvents in binary mode or as {STRUCTURED}"),
        },
    )
}

/// Maximum length of a media type in a message.
const MEDIA_CHARACTERS_MAX: usize = 100;

/// Returns the probable format of a record without an event type.
pub(super) fn probable_format(record: &Incoming) -> Option<String> {
    if let Some(format) = foreign_format(record) {
        return Some(format.to_owned());
    }
    let has = |wanted: &[u8]| record.headers().any(|(name, _)| name == wanted);
    let spring = match (has(b"__TypeId__"), has(b"contentType")) {
        (true, _) => "Spring's JsonSerializer (header `__TypeId__`)",
        (false, true) => "Spring Cloud Stream (header `contentType`)",
        (false, false) => return None,
    };
    Some(format!(
        "a record of {spring}; send the type as `ce_type` or `eventType`, or assume a type for the \
         topic"
    ))
}

/// Returns the format that a header or the first bytes of the value indicate. Use it only in
/// messages about values that could not be decoded, because a binary codec may use the same bytes.
pub(crate) fn foreign_format(record: &Incoming) -> Option<&'static str> {
    if record.header(CONFLUENT_SCHEMA_ID).is_some() {
        return Some(
            "data in a format of Confluent's schema registry (header `__value_schema_id`)",
        );
    }
    match record.value()? {
        [0x1f, 0x8b, ..] => Some("gzip data"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("Zstandard data"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16 text"),
        [b'{' | b'[' | b'"', 0, ..] | [0, b'{' | b'[' | b'"', ..] => {
            Some("UTF-16 text without a byte order mark")
        }
        [0, _, _, _, _, ..] => {
            Some("data in the wire format of Confluent's schema registry (magic byte 0)")
        }
        _ => None,
    }
}

/// The header with the id of a value's schema in Confluent's schema registry. Serializers write it,
/// or put the id in front of the value.
const CONFLUENT_SCHEMA_ID: &str = "__value_schema_id";

/// Returns `true` for the media types of JSON.
pub(super) fn is_json(media: &str) -> bool {
    let media = media
        .split_once(';')
        .map_or(media, |(media, _)| media)
        .trim();
    let subtype = media.rsplit_once('/').map_or("", |(_, subtype)| subtype);
    subtype.eq_ignore_ascii_case("json")
        || subtype
            .rsplit_once('+')
            .is_some_and(|(_, suffix)| suffix.eq_ignore_ascii_case("json"))
}

/// Returns the value of the record's content type, unless it is a media type of CloudEvents, which
/// describes the whole value.
pub(super) fn own_content_type(record: &Incoming) -> Option<&str> {
    content_type(record).filter(|media| !starts_with_ignoring_case(media.trim_start(), CLOUD_EVENT))
}

/// Returns `true` if the value is the envelope that Kafka Connect's JsonConverter writes with
/// `schemas.enable`. Its fields are not those of the event.
pub(super) fn is_connect_envelope(value: &[u8]) -> bool {
    let text = value.trim_ascii_start();
    let Some(inner) = text.strip_prefix(b"{").map(<[u8]>::trim_ascii_start) else {
        return false;
    };
    if !inner.starts_with(b"\"schema\"") && !inner.starts_with(b"\"payload\"") {
        return false;
    }
    let Some(fields) =
        fields(value).filter(|fields| fields.len() == 2 && fields.contains_key("payload"))
    else {
        return false;
    };
    fields
        .get("schema")
        .is_some_and(|schema| is_connect_schema(schema.get()))
}

fn is_connect_schema(schema: &str) -> bool {
    let typed = || {
        self::fields(schema.as_bytes()).is_some_and(|fields| {
            fields
                .get("type")
                .is_some_and(|name| name.get().starts_with('"'))
        })
    };
    schema == "null" || typed()
}

fn fields(value: &[u8]) -> Option<BTreeMap<Cow<'_, str>, &RawValue>> {
    serde_json::from_slice(value).ok()
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.as_bytes()
        .get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::incoming::Place;

    fn record(headers: &[(&str, &str)], value: &[u8]) -> Incoming {
        let place = Place {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 0,
        };
        Incoming::new(
            place,
            Some(b"7"),
            Some(value),
            headers
                .iter()
                .map(|(name, value)| (*name, Some(value.as_bytes()))),
        )
    }

    const EVENT: &[u8] = br#"{"specversion":"1.0","id":"1","type":"T","source":"/s","data":{}}"#;

    #[test]
    fn the_mode_is_that_of_the_headers_then_of_the_content_type_then_of_the_value() {
        for (headers, value, structured) in [
            (
                &[("content-type", "application/cloudevents+json")][..],
                &b"{}"[..],
                true,
            ),
            (
                &[(
                    "Content-Type",
                    " Application/CloudEvents+JSON ;charset=UTF-8",
                )],
                b"{}",
                true,
            ),
            (
                &[
                    ("content-type", "application/cloudevents+json"),
                    ("ce_specversion", "1.0"),
                ],
                EVENT,
                false,
            ),
            (
                &[("content-type", "application/cloudevents-batch+json")],
                EVENT,
                false,
            ),
            (
                &[("content-type", "application/cloudevents+jsonx")],
                b"{}",
                false,
            ),
            (&[("content-type", "application/json")], EVENT, true),
            (&[], EVENT, true),
            (
                &[],
                b"  {\"specversion\":\"1.0\",\"id\":\"1\",\"type\":\"T\"}",
                false,
            ),
            (
                &[],
                br#"{"text":"\"specversion\"","id":"1","type":"T","source":"/s"}"#,
                false,
            ),
            (
                &[],
                br#"{"data":{"specversion":"1.0","id":"1","type":"T","source":"/s"}}"#,
                false,
            ),
            (
                &[],
                br#"{"specversion":1,"id":"1","type":"T","source":"/s"}"#,
                false,
            ),
        ] {
            assert_eq!(
                is_structured(&record(headers, value)),
                structured,
                "{headers:?} {}",
                String::from_utf8_lossy(value)
            );
        }
    }

    #[test]
    fn formats_that_are_not_read_are_named() {
        for (media, named) in [
            (
                "application/cloudevents-batch+json",
                "a batch of CloudEvents",
            ),
            (
                "Application/CloudEvents+Avro; x=y",
                "Application/CloudEvents+Avro",
            ),
            (
                "application/cloudevents+protobuf",
                "application/cloudevents+protobuf",
            ),
        ] {
            let format = declared_foreign_format(&record(&[("content-type", media)], b"[]"))
                .unwrap_or_default();
            assert!(format.contains(named), "{format}");
            assert_eq!(
                declared_foreign_format(&record(
                    &[("content-type", media), ("ce_specversion", "1.0")],
                    b"[]"
                )),
                None
            );
        }
        for (value, named) in [
            (&b"\0\0\0\0\x07abc"[..], "Confluent"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"{\0\"\0", "UTF-16"),
            (b"\0{\0\"\0", "UTF-16"),
            (b"\x28\xb5\x2f\xfd", "Zstandard"),
        ] {
            assert!(
                probable_format(&record(&[], value))
                    .unwrap_or_default()
                    .contains(named),
                "{named}"
            );
        }
        let confluent = record(
            &[("__value_schema_id", "\u{1}0123456789abcdef")],
            b"\x02c\x02",
        );
        assert!(
            probable_format(&confluent)
                .unwrap_or_default()
                .contains("Confluent")
        );
        let spring = |name| {
            probable_format(&record(&[(name, "com.example.Placed")], b"{}")).unwrap_or_default()
        };
        assert!(
            spring("__TypeId__").contains("JsonSerializer")
                && spring("contentType").contains("Cloud Stream")
        );
        assert_eq!(
            probable_format(&record(&[("content-type", "application/json")], b"{}")),
            None
        );
    }

    #[test]
    fn an_envelope_of_connect_has_a_schema_and_a_payload_and_nothing_else() {
        for (value, envelope) in [
            (
                r#"{"schema":{"type":"struct","fields":[]},"payload":{"a":1}}"#,
                true,
            ),
            (
                r#" { "payload" : "x", "schema" : {"type":"string","optional":false} }"#,
                true,
            ),
            (r#"{"schema":null,"payload":{}}"#, true),
            (r#"{"schema":"v1","payload":{}}"#, false),
            (r#"{"schema":{"type":"struct"},"payload":{},"id":1}"#, false),
            (r#"{"schema":{"name":"x"},"payload":{}}"#, false),
            (r#"{"payload":{}}"#, false),
            ("{}", false),
            ("[1]", false),
        ] {
            assert_eq!(is_connect_envelope(value.as_bytes()), envelope, "{value}");
        }
    }

    #[test]
    fn json_has_several_media_types() {
        for media in [
            "application/json",
            "text/json",
            " Application/JSON ; charset=utf-8",
            "application/vnd.example.v1+json",
        ] {
            assert!(is_json(media), "{media}");
        }
        for media in [
            "text/plain",
            "application/jsonp",
            "application/json-seq",
            "json",
            "application/json+xml",
            "",
        ] {
            assert!(!is_json(media), "{media}");
        }
    }
}
