//! Conversion of an event into the headers and the value of a record.
//!
//! Sources: CloudEvents 1.0.2 and its Kafka protocol binding (binary and structured mode), the
//! CloudEvents extension "correlation" (`correlationid`, `causationid`), W3C Trace Context
//! (`traceparent`, `tracestate`), Debezium's EventRouter.

use std::borrow::Cow;

use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    outgoing::{Outgoing, Value},
    producer::Headers,
};
use crate::event::{InvalidEvent, refuse_reserved_header};

/// Format of the Kafka records of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeFormat {
    /// CloudEvents 1.0, Kafka binary mode: attributes in headers, the payload as the value.
    CloudEvents,
    /// CloudEvents 1.0, structured mode: attributes and payload as one JSON value. A tombstone
    /// stays null.
    CloudEventsStructured,
    /// The format of Debezium's EventRouter: header `id`, the payload as the value.
    Debezium,
}

/// Maximum number of headers of an event without its own. Sets the initial capacity.
const USUAL_HEADERS: usize = 12;

/// Converts events into headers and values.
pub(crate) struct EnvelopeWriter {
    format: EnvelopeFormat,
    source: String,
    structured: Vec<u8>,
    own_headers: bool,
}

/// Error of the `headers` of a row.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadersError {
    #[error("the headers are not a JSON object of strings")]
    Json(#[from] serde_json::Error),
    /// The record would contain an attribute of the envelope twice.
    #[error("{0}; correct the row's headers")]
    Reserved(InvalidEvent),
}

impl EnvelopeWriter {
    pub(crate) fn new(format: EnvelopeFormat, source: String) -> Self {
        Self {
            format,
            source,
            structured: Vec::new(),
            own_headers: false,
        }
    }

    /// Sets whether the `debezium` envelope includes the row's own headers, which are the
    /// additional columns of a Debezium table.
    pub(crate) fn with_own_headers(self, own_headers: bool) -> Self {
        Self {
            own_headers,
            ..self
        }
    }

    /// Returns the record's headers and value.
    ///
    /// # Errors
    ///
    /// Returns [`HeadersError`] if the row's headers are not a JSON object, or one of them is
    /// reserved for the envelope.
    pub(crate) fn write<'s, 'e: 's>(
        &'s mut self,
        event: &Outgoing<'e>,
    ) -> Result<(Headers, Option<&'s [u8]>), HeadersError> {
        let headers = Headers::with_capacity(USUAL_HEADERS);
        match (self.format, event.value.bytes()) {
            (EnvelopeFormat::Debezium, value) => {
                let headers = headers.put("id", id_text(event, &mut [0; 36]).as_bytes());
                if !self.own_headers {
                    return Ok((headers, value));
                }
                let headers = all_headers(
                    headers,
                    event.headers,
                    &mut |key, value, headers: Headers| match value {
                        Some(value) => headers.put(key, value.as_bytes()),
                        // EventRouter writes the header without a value if the column is null.
                        None => headers.put_null(key),
                    },
                )?;
                Ok((headers, value))
            }
            (EnvelopeFormat::CloudEventsStructured, Some(data)) => {
                let headers =
                    own_headers(
                        headers,
                        event.headers,
                        &mut |key, value, headers| match extension(key) {
                            Some(_) => headers,
                            // The record's content type is that of the envelope. The payload's
                            // content type becomes an attribute.
                            None if key.eq_ignore_ascii_case("content-type") => headers,
                            None => headers.put(key, value.as_bytes()),
                        },
                    )?;
                self.write_structured(event, data)?;
                Ok((
                    headers.put(
                        "content-type",
                        b"application/cloudevents+json; charset=UTF-8",
                    ),
                    Some(&self.structured),
                ))
            }
            // A tombstone has no value that could hold attributes, so both modes write headers.
            (EnvelopeFormat::CloudEvents | EnvelopeFormat::CloudEventsStructured, value) => {
                Ok((self.binary(headers, event)?, value))
            }
        }
    }

    /// Returns the headers of binary mode as names and bytes.
    pub(crate) fn owned_headers(&self, event: &Outgoing<'_>) -> Vec<(String, Option<Vec<u8>>)> {
        let headers = self
            .binary(Headers::with_capacity(USUAL_HEADERS), event)
            .expect("headers that were just written as JSON");
        headers.to_owned()
    }

    fn binary(&self, headers: Headers, event: &Outgoing<'_>) -> Result<Headers, HeadersError> {
        let mut typed = false;
        let headers = own_headers(headers, event.headers, &mut |key, value, headers| {
            typed |= key.eq_ignore_ascii_case("content-type");
            headers.put(
                extension(key).map_or(key, |(_, header)| header),
                value.as_bytes(),
            )
        })?;
        let headers = headers
            .put("ce_specversion", b"1.0")
            .put("ce_id", id_text(event, &mut [0; 36]).as_bytes())
            .put("ce_type", event.event_type.as_bytes())
            .put("ce_source", self.source.as_bytes())
            .put("ce_subject", event.aggregate_id.as_bytes())
            .put("ce_time", &rfc3339(event.occurred_at))
            .put("ce_aggregatetype", event.aggregate_type.as_bytes())
            .put("ce_dataversion", decimal(event.version, &mut [0; 11]));
        Ok(match event.value {
            _ if typed => headers,
            Value::Json(_) => headers.put("content-type", b"application/json"),
            Value::Bytes(_) => headers.put("content-type", b"application/octet-stream"),
            Value::Tombstone => headers,
        })
    }

    fn write_structured(&mut self, event: &Outgoing<'_>, data: &[u8]) -> Result<(), HeadersError> {
        let (source, out) = (&self.source, &mut self.structured);
        out.clear();
        out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":\"");
        out.extend_from_slice(id_text(event, &mut [0; 36]).as_bytes());
        out.push(b'"');
        let time = rfc3339(event.occurred_at);
        let time = std::str::from_utf8(&time).expect("RFC 3339 is ASCII");
        for (name, text) in [
            ("type", event.event_type),
            ("source", source),
            ("subject", event.aggregate_id),
            ("time", time),
            ("aggregatetype", event.aggregate_type),
        ] {
            attribute(out, name, text)?;
        }
        out.extend_from_slice(b",\"dataversion\":");
        out.extend_from_slice(decimal(event.version, &mut [0; 11]));
        let (mut failure, mut content_type) = (None, None);
        own_headers((), event.headers, &mut |key, value, ()| {
            if key.eq_ignore_ascii_case("content-type") {
                content_type = Some(value.to_owned());
            }
            if let Some((name, _)) = extension(key) {
                failure = attribute(out, name, value).err();
            }
        })?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        let usual = if matches!(event.value, Value::Bytes(_)) {
            "application/octet-stream"
        } else {
            "application/json"
        };
        attribute(
            out,
            "datacontenttype",
            content_type.as_deref().unwrap_or(usual),
        )?;
        match event.value {
            Value::Bytes(_) => {
                out.extend_from_slice(b",\"data_base64\":\"");
                base64(data, out);
                out.push(b'"');
            }
            Value::Json(_) | Value::Tombstone => {
                out.extend_from_slice(b",\"data\":");
                out.extend_from_slice(data);
            }
        }
        out.push(b'}');
        Ok(())
    }
}

/// Returns the attribute and the binary-mode header of a row header that belongs to the envelope.
fn extension(key: &str) -> Option<(&'static str, &'static str)> {
    match key {
        "correlationid" => Some(("correlationid", "ce_correlationid")),
        "causationid" => Some(("causationid", "ce_causationid")),
        "traceparent" => Some(("traceparent", "traceparent")),
        "tracestate" => Some(("tracestate", "tracestate")),
        _ => None,
    }
}

fn attribute(out: &mut Vec<u8>, name: &str, text: &str) -> Result<(), serde_json::Error> {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    serde_json::to_writer(out, text)
}

/// Folds the row's own headers into `start`. Values that are not strings keep their JSON text;
/// nulls are omitted.
///
/// # Errors
///
/// Returns [`HeadersError`] if the headers are not a JSON object, or for the first one that is
/// reserved for the envelope.
fn own_headers<T>(
    start: T,
    json: &str,
    put: &mut dyn FnMut(&str, &str, T) -> T,
) -> Result<T, HeadersError> {
    let mut reserved = None;
    let folded = all_headers(start, json, &mut |key, value, folded| {
        let Some(value) = value else { return folded };
        if let Err(error) = refuse_reserved_header(key, value) {
            reserved.get_or_insert(error);
        }
        put(key, value, folded)
    })?;
    reserved.map_or(Ok(folded), |error| Err(HeadersError::Reserved(error)))
}

/// Folds the row's own headers into `start`, including nulls.
fn all_headers<T>(
    start: T,
    json: &str,
    put: &mut dyn FnMut(&str, Option<&str>, T) -> T,
) -> Result<T, HeadersError> {
    struct Fold<'f, T>(T, &'f mut dyn FnMut(&str, Option<&str>, T) -> T);

    impl<'de, T> Visitor<'de> for Fold<'_, T> {
        type Value = T;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
            let Self(mut folded, put) = self;
            while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                let raw: &'de RawValue = map.next_value()?;
                let text = raw.get();
                folded = match text
                    .strip_prefix('"')
                    .and_then(|text| text.strip_suffix('"'))
                {
                    None => put(&key, (text != "null").then_some(text), folded),
                    Some(plain) if !plain.contains('\\') => put(&key, Some(plain), folded),
                    Some(_) => put(
                        &key,
                        Some(
                            &serde_json::from_str::<String>(text)
                                .map_err(serde::de::Error::custom)?,
                        ),
                        folded,
                    ),
                };
            }
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(folded)
        }
    }

    if json.is_empty() || json == "{}" {
        return Ok(start);
    }
    Ok(serde_json::Deserializer::from_str(json).deserialize_map(Fold(start, put))?)
}

fn id_text<'b>(event: &Outgoing<'_>, buffer: &'b mut [u8; 36]) -> &'b str {
    event.id.hyphenated().encode_lower(buffer)
}

fn decimal(number: i32, buffer: &mut [u8; 11]) -> &[u8] {
    use std::io::Write as _;
    let mut rest = &mut buffer[..];
    write!(rest, "{number}").expect("eleven bytes hold any i32");
    let used = 11 - rest.len();
    &buffer[..used]
}

/// Formats microseconds since the Unix epoch as RFC 3339 in UTC. Runs once per event; chrono's
/// formatter takes ten times as long.
fn rfc3339(micros: i64) -> [u8; 27] {
    // The years 0000 to 9999, which RFC 3339 can represent.
    let micros = micros.clamp(-62_167_219_200_000_000, 253_402_300_799_999_999);
    let (days, mut rest) = (
        micros.div_euclid(86_400_000_000),
        micros.rem_euclid(86_400_000_000),
    );
    let (year, month, day) = civil(days);
    let mut out = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |at: usize, digits: usize, mut number: i64| {
        for place in (at..at + digits).rev() {
            out[place] = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(20, 6, rest % 1_000_000);
    rest /= 1_000_000;
    put(17, 2, rest % 60);
    put(14, 2, rest / 60 % 60);
    put(11, 2, rest / 3600);
    out
}

/// Converts a day number since 1970-01-01 to year, month and day (proleptic Gregorian; eras of 400
/// years that start on 1 March).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn base64(data: &[u8], out: &mut Vec<u8>) {
    use base64::Engine as _;
    let start = out.len();
    out.resize(start + data.len().div_ceil(3) * 4, 0);
    let written = base64::engine::general_purpose::STANDARD
        .encode_slice(data, &mut out[start..])
        .expect("the slice has the encoded length");
    out.truncate(start + written);
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, SecondsFormat};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn times_are_written_as_chrono_writes_them(
            micros in -62_135_596_800_000_000i64..253_402_300_799_999_999,
        ) {
            let expected = DateTime::from_timestamp_micros(micros)
                .expect("in range")
                .to_rfc3339_opts(SecondsFormat::Micros, true);
            let written = rfc3339(micros);
            prop_assert_eq!(std::str::from_utf8(&written).expect("ASCII"), expected);
        }
    }

    fn event<'a>(value: Value<'a>, headers: &'a str) -> Outgoing<'a> {
        Outgoing {
            id: Uuid::nil(),
            aggregate_type: "order",
            aggregate_id: "ä\"1",
            event_type: "OrderPlaced",
            version: 2,
            value,
            headers,
            occurred_at: 0,
            topic: None,
        }
    }

    #[test]
    fn a_structured_event_is_json_with_the_payload_as_written() {
        let mut writer = EnvelopeWriter::new(EnvelopeFormat::CloudEventsStructured, "/shop".into());
        let (_, value) = writer
            .write(&event(
                Value::Json(b"{\"n\": 1.0}"),
                r#"{"correlationid":"c","x":"y"}"#,
            ))
            .expect("written");
        let text = std::str::from_utf8(value.expect("a value")).expect("UTF-8");
        assert!(text.contains(r#""data":{"n": 1.0}"#), "{text}");
        let json: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(
            (json["subject"].as_str(), json["correlationid"].as_str()),
            (Some("ä\"1"), Some("c"))
        );
        assert!(json.get("x").is_none());
        let (_, value) = writer
            .write(&event(Value::Bytes(&[0, 255]), "{}"))
            .expect("written");
        let json: serde_json::Value =
            serde_json::from_slice(value.expect("a value")).expect("JSON");
        assert_eq!(json["data_base64"], "AP8=");
    }

    #[test]
    fn own_headers_come_out_as_strings_whatever_their_escapes() {
        let mut seen = Vec::new();
        own_headers(
            (),
            r#"{"a":"b","c":"d\n\u00e4","n":1,"o":null}"#,
            &mut |key, value, ()| seen.push(format!("{key}={value}")),
        )
        .expect("read");
        assert_eq!(seen, ["a=b", "c=d\nä", "n=1"]);
        assert!(own_headers((), "[1]", &mut |_, _, ()| ()).is_err());
    }

    #[test]
    fn a_row_that_would_contradict_its_envelope_is_not_written_in_either_mode() {
        let forged = [
            (r#"{"a":"1","ce_id":"forged"}"#, "ce_id"),
            (r#"{"CE_Type":"Forged"}"#, "CE_Type"),
            (r#"{"ce\u005fsource":"/x"}"#, "ce_source"),
            (r#"{"tidings_replays":1}"#, "tidings_replays"),
            (
                r#"{"kafka_dlt-original-topic":"x"}"#,
                "kafka_dlt-original-topic",
            ),
            (
                r#"{"Content-Type":"application/cloudevents+json"}"#,
                "application/cloudevents+json",
            ),
        ];
        for format in [
            EnvelopeFormat::CloudEvents,
            EnvelopeFormat::CloudEventsStructured,
        ] {
            for (headers, named) in forged {
                let mut writer = EnvelopeWriter::new(format, "/shop".into());
                let refused = writer
                    .write(&event(Value::Json(b"{}"), headers))
                    .err()
                    .expect("refused")
                    .to_string();
                assert!(
                    refused.contains(named) && refused.contains("reserved"),
                    "{refused}"
                );
            }
        }
    }

    #[test]
    fn each_attribute_is_in_a_record_once() {
        let mut writer = EnvelopeWriter::new(EnvelopeFormat::CloudEvents, "/shop".into());
        let own = r#"{"correlationid":"c","causationid":"d","content-type":"text/plain",
                      "id":"x","type":"y","tenant":"acme"}"#;
        let (headers, _) = writer
            .write(&event(Value::Json(b"{}"), own))
            .expect("written");
        let mut names: Vec<String> = headers
            .to_owned()
            .into_iter()
            .map(|(name, _)| name.to_lowercase())
            .collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{names:?}");
    }
}
