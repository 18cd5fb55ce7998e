//! Parsing of records into messages, the counterpart of `envelope`.
//!
//! Supports CloudEvents in binary mode (attributes in headers) and in structured mode (attributes
//! and data in the value), the records of Debezium's EventRouter (header `id`, and the type in a
//! header if the connector writes one), and plain JSON. All are converted to binary mode.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::foreign_id::foreign_id_at;
use super::format::{
    declared_foreign_format, foreign_format, is_connect_envelope, is_json, is_structured,
    own_content_type, probable_format,
};
use super::incoming::{Buffers, Incoming};
use crate::event::Envelope;

/// A parsed record.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The record in binary mode.
    incoming: Incoming,
    /// The record as received, if it differs.
    original: Option<Box<Incoming>>,
    /// The indexes of the attributes among the headers.
    at: Attributes,
    version: u32,
    assumed_type: Option<&'static str>,
    attempts_before: u32,
    /// The kind of a tombstone for metrics and routing.
    kind: Option<Arc<str>>,
}

/// Indexes among the headers.
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    id: Option<u16>,
    event_type: Option<u16>,
    source: Option<u16>,
    subject: Option<u16>,
    aggregate_type: Option<u16>,
    time: Option<u16>,
}

/// Reason why a record is not an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// An attribute is not valid text.
    #[error("the attribute `{0}` is not UTF-8")]
    NotText(&'static str),
    /// An attribute that CloudEvents requires is missing.
    #[error("the CloudEvent has no `{0}`")]
    Missing(&'static str),
    /// The version is not a number, or is 0.
    #[error("the version {0:?} is not a positive integer")]
    Version(String),
    /// The value is not a CloudEvent in JSON.
    #[error("the value is not a CloudEvent: {0}")]
    Structured(String),
    /// The CloudEvents version is not supported; its attributes may have another meaning.
    #[error("the CloudEvents version {0:?} is not supported; send specversion 1.0")]
    SpecVersion(String),
    /// The event is wrapped in an envelope with its schema.
    #[error(
        "the value is an envelope of Kafka Connect with `schema` and `payload`; set \
         `schemas.enable=false` for its converter, then replay or send the event again"
    )]
    ConnectEnvelope,
    /// Too many names of headers are not valid text.
    #[error("the names of many headers are not UTF-8; the record is kept without its headers")]
    HeaderNames,
    /// The value has an unsupported format.
    #[error("the value is in a format that is not supported: {0}")]
    Format(String),
    /// The record does not contain an event type.
    #[error(
        "the record has no event type: neither `ce_type` nor a header `eventType`, and no type is \
         assumed for this topic"
    )]
    NoType,
}

/// Prefix of the headers that a CloudEvent's other attributes become.
const PREFIX: &str = "ce_";

impl Message {
    /// Parses a record. A record without a type gets `assumed_type`.
    ///
    /// A null value deletes its key, whatever the headers contain. A tombstone is therefore never
    /// malformed: attributes that cannot be read are ignored.
    ///
    /// # Errors
    ///
    /// Returns [`Malformed`] and the record.
    pub(crate) fn read(
        incoming: Incoming,
        assumed_type: Option<&'static str>,
    ) -> Result<Self, (Malformed, Box<Incoming>)> {
        if incoming.value().is_none() {
            let (at, version) = Self::look(&incoming, Some(Envelope::TOMBSTONE))
                .unwrap_or((Attributes::default(), 1));
            let assumed_type = Some(Envelope::TOMBSTONE);
            return Ok(Self {
                incoming,
                original: None,
                at,
                version,
                assumed_type,
                attempts_before: 0,
                kind: None,
            });
        }
        if incoming.lacks_headers {
            return Err((Malformed::HeaderNames, Box::new(incoming)));
        }
        let (incoming, original) = match with_plain_headers(&incoming) {
            Some(plain) => (plain, Some(Box::new(incoming))),
            None => (incoming, None),
        };
        if let Some(format) = declared_foreign_format(&incoming) {
            return Err((
                Malformed::Format(format),
                original.unwrap_or_else(|| Box::new(incoming)),
            ));
        }
        let (incoming, original) = if is_structured(&incoming) {
            let binary = from_structured(&incoming);
            let original = original.unwrap_or_else(|| Box::new(incoming));
            match binary {
                Ok(binary) => (binary, Some(original)),
                Err(malformed) => return Err((malformed, original)),
            }
        } else {
            (incoming, original)
        };
        match Self::look(&incoming, assumed_type) {
            Ok((at, version)) => Ok(unwrap_text(Self {
                incoming,
                original,
                at,
                version,
                assumed_type,
                attempts_before: 0,
                kind: None,
            })),
            Err(malformed) => Err((malformed, original.unwrap_or_else(|| Box::new(incoming)))),
        }
    }

    fn look(
        incoming: &Incoming,
        assumed_type: Option<&'static str>,
    ) -> Result<(Attributes, u32), Malformed> {
        let (mut at, mut version, mut cloud_event) = (Attributes::default(), 1, false);
        let mut foreign_type = None;
        for (place, (name, value)) in incoming.headers_with_nulls().enumerate() {
            // A header without a value is an attribute that is not set.
            let Some(value) = value else { continue };
            let here = u16::try_from(place).ok();
            let text = |name| std::str::from_utf8(value).map_err(|_| Malformed::NotText(name));
            match name {
                b"ce_id" => at.id = here,
                b"ce_type" => (at.event_type, _) = (here, text("type")?),
                b"ce_source" => (at.source, _) = (here, text("source")?),
                b"ce_subject" => (at.subject, _) = (here, text("subject")?),
                b"ce_aggregatetype" => (at.aggregate_type, _) = (here, text("aggregatetype")?),
                b"ce_time" => at.time = here,
                b"ce_specversion" => {
                    check_specversion(text("specversion")?)?;
                    cloud_event = true;
                }
                b"ce_dataversion" => version = number(text("dataversion")?)?,
                b"eventType" | b"type" => foreign_type = here,
                _ => {}
            }
        }
        if cloud_event {
            let id = at.id.ok_or(Malformed::Missing("id"))?;
            std::str::from_utf8(incoming.header_at(id.into()))
                .map_err(|_| Malformed::NotText("id"))?;
            if at.event_type.is_none() {
                return Err(Malformed::Missing("type"));
            }
        } else {
            (at.id, at.event_type) = (foreign_id_at(incoming), at.event_type.or(foreign_type));
            if incoming.value().is_some_and(is_connect_envelope) {
                return Err(Malformed::ConnectEnvelope);
            }
        }
        if at.event_type.is_none() && assumed_type.is_none() {
            return Err(probable_format(incoming).map_or(Malformed::NoType, Malformed::Format));
        }
        Ok((at, version))
    }

    /// Takes the memory out of a message that is no longer needed.
    pub(crate) fn take_buffers(&mut self) -> Buffers {
        self.incoming.take_buffers()
    }

    /// Returns the event type.
    pub(crate) fn event_type(&self) -> &str {
        self.at
            .event_type
            .map_or(self.assumed_type.unwrap_or_default(), |at| self.text_at(at))
    }

    /// Returns the kind, which determines the handlers: the event type, or the aggregate of a
    /// tombstone.
    pub(crate) fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_else(|| self.event_type())
    }

    /// Returns the message with this kind.
    #[must_use]
    pub(crate) fn with_kind(self, kind: String) -> Self {
        Self {
            kind: Some(kind.into()),
            ..self
        }
    }

    /// Returns `true` if the record has a null value. A CloudEvent in structured mode has a value
    /// even if its event has no data.
    pub(crate) fn is_tombstone(&self) -> bool {
        self.as_it_came().value().is_none()
    }

    /// Returns the version of the data's schema. Defaults to 1.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Returns the event id, which is unique within its [`source`](Self::source). Defaults to the
    /// place of the record.
    pub(crate) fn id(&self) -> Cow<'_, str> {
        match self.at.id {
            Some(at) => Cow::Borrowed(self.text_at(at)),
            None => Cow::Owned(format!(
                "{}/{}",
                self.incoming.partition, self.incoming.offset
            )),
        }
    }

    /// Returns the source. Defaults to the topic.
    pub(crate) fn source(&self) -> Cow<'_, str> {
        self.source_from(&self.incoming.topic)
    }

    /// Returns the source of a record that was first read from this topic.
    pub(crate) fn source_from(&self, topic: &str) -> Cow<'_, str> {
        match self.at.source {
            Some(at) => Cow::Borrowed(self.text_at(at)),
            None => Cow::Owned(format!("kafka:{topic}")),
        }
    }

    /// Returns the aggregate id: the record's key, or the subject of a record without a key.
    pub(crate) fn aggregate_id(&self) -> Cow<'_, str> {
        match (self.incoming.key(), self.at.subject) {
            (Some(key), _) => String::from_utf8_lossy(key),
            (None, Some(at)) => Cow::Borrowed(self.text_at(at)),
            (None, None) => Cow::Borrowed(""),
        }
    }

    /// Returns the aggregate type, if the record contains it.
    pub(crate) fn aggregate_type(&self) -> Option<&str> {
        self.at.aggregate_type.map(|at| self.text_at(at))
    }

    /// Returns the time of the event, as the publisher wrote it.
    pub(crate) fn time(&self) -> Option<&str> {
        self.at.time.map(|at| self.text_at(at))
    }

    /// Returns the data, or `None` for a tombstone.
    pub(crate) fn data(&self) -> Option<&[u8]> {
        self.incoming.value()
    }

    /// Returns the format of data that could not be decoded, if the record indicates it.
    pub(crate) fn foreign_format(&self) -> Option<&'static str> {
        foreign_format(&self.incoming)
    }

    /// Returns a header's value, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.incoming
            .header(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Returns the record as received.
    pub(crate) fn as_it_came(&self) -> &Incoming {
        self.original.as_deref().unwrap_or(&self.incoming)
    }

    /// Returns the number of attempts before this delivery: in place, from the table of parked events, from retry
    /// topics, and before a replay.
    pub(crate) fn attempts_before(&self) -> u32 {
        self.attempts_before
    }

    /// Returns the message with this number of earlier attempts.
    #[must_use]
    pub(crate) fn with_attempts_before(self, attempts_before: u32) -> Self {
        Self {
            attempts_before,
            ..self
        }
    }

    /// Returns the memory usage of the message in bytes.
    pub(crate) fn size(&self) -> usize {
        self.incoming.size() + self.original.as_ref().map_or(0, |original| original.size())
    }

    fn text_at(&self, at: u16) -> &str {
        std::str::from_utf8(self.incoming.header_at(at.into())).unwrap_or_default()
    }
}

/// Accepts only the supported version of CloudEvents. Versions 1.0.1 and 1.0.2 of the specification
/// are written as 1.0 too.
fn check_specversion(text: &str) -> Result<(), Malformed> {
    if text == "1.0" {
        Ok(())
    } else {
        Err(Malformed::SpecVersion(
            text.chars().take(VERSION_CHARACTERS_MAX).collect(),
        ))
    }
}

/// Maximum length of a version in a message.
const VERSION_CHARACTERS_MAX: usize = 40;

fn number(text: &str) -> Result<u32, Malformed> {
    let number = text.parse().ok().filter(|version| *version > 0);
    number.ok_or_else(|| Malformed::Version(text.chars().take(VERSION_CHARACTERS_MAX).collect()))
}

/// The header with the Java types of the other headers, written by Spring Kafka's header mapper.
const SPRING_HEADER_TYPES: &str = "spring_json_header_types";

/// The record without the JSON quotes that Spring Kafka's header mapper puts around values that are
/// not strings in Java, such as a `UUID`, a `URI` or a time. Returns `None` for every other record.
fn with_plain_headers(record: &Incoming) -> Option<Incoming> {
    let types: BTreeMap<Cow<'_, str>, Cow<'_, str>> =
        serde_json::from_slice(record.header(SPRING_HEADER_TYPES)?).ok()?;
    let text_of = |name: &[u8], value: &[u8]| {
        let is_quoted =
            value.first() == Some(&b'"') && types.contains_key(std::str::from_utf8(name).ok()?);
        is_quoted
            .then(|| serde_json::from_slice::<String>(value).ok())
            .flatten()
    };
    let texts: Vec<Option<String>> = record
        .headers_with_nulls()
        .map(|(name, value)| text_of(name, value?))
        .collect();
    if texts.iter().all(Option::is_none) {
        return None;
    }
    let headers = record
        .headers_with_nulls()
        .zip(&texts)
        .map(|((name, value), text)| {
            let name = std::str::from_utf8(name).unwrap_or_default();
            (name, text.as_deref().map(str::as_bytes).or(value))
        });
    Some(Incoming::new(
        record.place(),
        record.key(),
        record.value(),
        headers,
    ))
}

/// Converts structured mode to binary mode: attributes become headers, and `data` or `data_base64`
/// becomes the value.
fn from_structured(record: &Incoming) -> Result<Incoming, Malformed> {
    use base64::Engine as _;
    let malformed = |error: &dyn std::fmt::Display| Malformed::Structured(error.to_string());
    let attributes: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_slice(record.value().unwrap_or_default())
            .map_err(|error| malformed(&error))?;
    let mut headers: Vec<(String, Cow<'_, [u8]>)> =
        Vec::with_capacity(attributes.len() + record.headers().len());
    if attributes
        .get("specversion")
        .is_none_or(|raw| raw.get() == NULL)
    {
        return Err(Malformed::Missing("specversion"));
    }
    for (name, value) in record
        .headers()
        .filter(|(name, _)| !name.eq_ignore_ascii_case(b"content-type"))
    {
        headers.push((
            String::from_utf8_lossy(name).into_owned(),
            Cow::Borrowed(value),
        ));
    }
    // An SDK may leave the data's type in the record's header.
    let data_type = match attributes
        .get("datacontenttype")
        .filter(|raw| raw.get() != NULL)
    {
        Some(raw) => Some(Cow::Owned(
            String::from_utf8_lossy(&text_of(raw)).into_owned(),
        )),
        None => own_content_type(record).map(Cow::Borrowed),
    };
    let is_text = data_type.as_deref().is_some_and(|media| !is_json(media));
    headers.extend(
        data_type
            .iter()
            .map(|media| ("content-type".to_owned(), Cow::Borrowed(media.as_bytes()))),
    );
    let mut data: Option<Cow<'_, [u8]>> = None;
    // An attribute that is null is not set.
    for (name, raw) in attributes.iter().filter(|(_, raw)| raw.get() != NULL) {
        let text = || text_of(raw);
        match &**name {
            // Data of another type than JSON is the text of a JSON string.
            "data" if is_text => data = Some(text()),
            "data" => data = Some(Cow::Borrowed(raw.get().as_bytes())),
            "data_base64" => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(&*text())
                    .map_err(|error| malformed(&error))?;
                data = Some(Cow::Owned(bytes));
            }
            "datacontenttype" => {}
            "traceparent" | "tracestate" => headers.push((name.to_string(), text())),
            _ => headers.push((format!("{PREFIX}{name}"), text())),
        }
    }
    let borrowed = headers
        .iter()
        .map(|(name, value)| (name.as_str(), Some(&**value)));
    Ok(Incoming::new(
        record.place(),
        record.key(),
        data.as_deref(),
        borrowed,
    ))
}

/// A JSON value that stands for an attribute that is not set.
const NULL: &str = "null";

/// Returns a JSON string without its quotes, and any other value as it is written.
fn text_of(raw: &RawValue) -> Cow<'_, [u8]> {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        Err(_) => Cow::Borrowed(raw.get().as_bytes()),
    }
}

/// Replaces a value that is one JSON string with its text. Debezium writes a JSON payload as one
/// string unless it is configured to expand it.
fn unwrap_text(message: Message) -> Message {
    let is_cloud_event = message.incoming.header("ce_specversion").is_some();
    let quoted = message
        .data()
        .filter(|data| !is_cloud_event && data.first() == Some(&b'"'));
    let Some(text) = quoted.and_then(|data| serde_json::from_slice::<String>(data).ok()) else {
        return message;
    };
    let headers = message
        .incoming
        .headers()
        .map(|(name, value)| (std::str::from_utf8(name).unwrap_or_default(), Some(value)));
    let incoming = Incoming::new(
        message.incoming.place(),
        message.incoming.key(),
        Some(text.as_bytes()),
        headers,
    );
    let original = message
        .original
        .unwrap_or_else(|| Box::new(message.incoming));
    Message {
        original: Some(original),
        incoming,
        ..message
    }
}

/// Parses arbitrary bytes as a record, for the fuzz target. Lines `name: value` are headers; the
/// value follows an empty line.
#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) fn fuzz_record(bytes: &[u8]) {
    let end = bytes
        .windows(2)
        .position(|pair| pair == b"\n\n")
        .unwrap_or(bytes.len());
    let value = bytes.get(end + 2..);
    let headers: Vec<(String, &[u8])> = bytes[..end]
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let colon = line.windows(2).position(|pair| pair == b": ")?;
            Some((
                String::from_utf8_lossy(&line[..colon]).into_owned(),
                &line[colon + 2..],
            ))
        })
        .collect();
    let place = super::incoming::Place {
        topic: "t".into(),
        partition: 0,
        offset: 1,
        timestamp: 2,
    };
    let incoming = Incoming::new(
        place,
        Some(b"k"),
        value,
        headers
            .iter()
            .map(|(name, value)| (name.as_str(), Some(*value))),
    );
    for assumed in [None, Some("Assumed")] {
        if let Ok(message) = Message::read(incoming.clone(), assumed) {
            let _ = (
                message.event_type(),
                message.version(),
                message.id(),
                message.source(),
                message.aggregate_id(),
            );
            let _ = (
                message.aggregate_type(),
                message.time(),
                message.data(),
                message.header("traceparent"),
                message.size(),
            );
        }
    }
    #[cfg(feature = "subscriber")]
    crate::subscriber::fuzz_dead_letter(incoming);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::incoming::Place;

    fn read(
        headers: &[(&str, &str)],
        value: Option<&str>,
        assumed: Option<&'static str>,
    ) -> Result<Message, Malformed> {
        let place = Place {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 0,
        };
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, Some(value.as_bytes())));
        Message::read(
            Incoming::new(place, Some(b"7"), value.map(str::as_bytes), headers),
            assumed,
        )
        .map_err(|(malformed, _)| malformed)
    }

    const BINARY: [(&str, &str); 5] = [
        ("ce_specversion", "1.0"),
        ("ce_id", "e-1"),
        ("ce_type", "OrderPlaced"),
        ("ce_source", "/shop"),
        ("ce_dataversion", "2"),
    ];

    #[test]
    fn binary_and_structured_mode_say_the_same() {
        let structured = r#"{"specversion":"1.0","id":"e-1","type":"OrderPlaced","source":"/shop",
                             "dataversion":2,"traceparent":"00-a","data":{"n": 1}}"#;
        let binary = read(
            &[&BINARY[..], &[("traceparent", "00-a")]].concat(),
            Some(r#"{"n": 1}"#),
            None,
        )
        .expect("a CloudEvent");
        let structured = read(
            &[(
                "content-type",
                "application/cloudevents+json; charset=UTF-8",
            )],
            Some(structured),
            None,
        )
        .expect("another");
        for message in [&binary, &structured] {
            assert_eq!(
                (
                    &*message.id(),
                    &*message.source(),
                    message.event_type(),
                    message.version()
                ),
                ("e-1", "/shop", "OrderPlaced", 2)
            );
            assert_eq!(
                (message.data(), message.header("traceparent")),
                (Some(&br#"{"n": 1}"#[..]), Some("00-a"))
            );
        }
        assert!(
            structured
                .as_it_came()
                .value()
                .is_some_and(|value| value.starts_with(br#"{"specversion"#))
        );
    }

    #[test]
    fn bytes_in_structured_mode_are_decoded() {
        let value =
            r#"{"specversion":"1.0","id":"1","type":"T","source":"/s","data_base64":"AP8="}"#;
        let message = read(
            &[("content-type", "application/cloudevents+json")],
            Some(value),
            None,
        )
        .expect("a CloudEvent");
        assert_eq!(message.data(), Some(&[0, 255][..]));
    }

    #[test]
    fn an_attribute_of_a_structured_event_that_is_null_is_not_set() {
        let value = r#"{"specversion":"1.0","id":"1","type":"T","source":"/s","subject":null,"tenant":null,"data":null,"data_base64":null}"#;
        let message = read(
            &[("content-type", "application/cloudevents+json")],
            Some(value),
            None,
        )
        .expect("a CloudEvent");
        assert_eq!(
            (
                message.header("ce_subject"),
                message.header("ce_tenant"),
                message.data()
            ),
            (None, None, None)
        );
        assert!(!message.is_tombstone());
        for (value, missing) in [
            (
                r#"{"specversion":"1.0","id":null,"type":"T","source":"/s"}"#,
                "id",
            ),
            (
                r#"{"specversion":"1.0","id":"1","type":null,"source":"/s"}"#,
                "type",
            ),
            (
                r#"{"specversion":null,"id":"1","type":"T","source":"/s"}"#,
                "specversion",
            ),
        ] {
            let read = read(
                &[("content-type", "application/cloudevents+json")],
                Some(value),
                None,
            );
            assert!(
                matches!(read, Err(Malformed::Missing(attribute)) if attribute == missing),
                "{missing}"
            );
        }
    }

    #[test]
    fn an_attribute_in_a_header_without_a_value_is_not_set() {
        let headers = BINARY.map(|(name, value)| (name, Some(value.as_bytes())));
        let nulls = [
            ("ce_subject", None),
            ("ce_time", None),
            ("ce_aggregatetype", None),
        ];
        let read = |headers: &[(&str, Option<&[u8]>)]| {
            let place = Place {
                topic: "order".into(),
                partition: 3,
                offset: 9,
                timestamp: 0,
            };
            Message::read(
                Incoming::new(place, None, Some(b"{}"), headers.iter().copied()),
                None,
            )
            .map_err(|(malformed, _)| malformed)
        };
        let message = read(&[&headers[..], &nulls].concat()).expect("a CloudEvent");
        assert_eq!((message.aggregate_type(), message.time()), (None, None));
        let without_type = headers.map(|(name, value)| (name, value.filter(|_| name != "ce_type")));
        assert!(matches!(
            read(&without_type),
            Err(Malformed::Missing("type"))
        ));
    }

    #[test]
    fn structured_data_is_text_unless_its_type_is_json() {
        for (header, attribute, data) in [
            (
                "application/cloudevents+json",
                r#""datacontenttype":"text/plain","#,
                "h\u{e9}",
            ),
            (
                "application/cloudevents+json",
                r#""datacontenttype":"application/xml; charset=utf-8","#,
                "h\u{e9}",
            ),
            (
                "application/cloudevents+json",
                r#""datacontenttype":"application/json","#,
                r#""h\u00e9""#,
            ),
            (
                "application/cloudevents+json",
                r#""datacontenttype":"Application/Vnd.X+JSON; x=y","#,
                r#""h\u00e9""#,
            ),
            (
                "application/cloudevents+json",
                r#""datacontenttype":null,"#,
                r#""h\u00e9""#,
            ),
            ("application/cloudevents+json", "", r#""h\u00e9""#),
            // The record's content type is that of the data in the SDK for Python.
            ("text/plain", "", "h\u{e9}"),
            (
                "text/plain",
                r#""datacontenttype":"text/json","#,
                r#""h\u00e9""#,
            ),
        ] {
            let value = format!(
                r#"{{"specversion":"1.0","id":"1","type":"T","source":"/s",{attribute}"data":"h\u00e9"}}"#
            );
            let message =
                read(&[("content-type", header)], Some(&value), None).expect("a CloudEvent");
            assert_eq!(
                message.data(),
                Some(data.as_bytes()),
                "{header} {attribute}"
            );
        }
    }

    #[test]
    fn the_content_type_of_a_structured_event_is_that_of_its_data() {
        for (header, attribute, expected) in [
            (
                "application/cloudevents+json",
                r#""datacontenttype":"application/x","#,
                Some("application/x"),
            ),
            ("application/cloudevents+json; charset=UTF-8", "", None),
            ("application/json", "", Some("application/json")),
            (
                "application/json",
                r#""datacontenttype":"application/x","#,
                Some("application/x"),
            ),
        ] {
            let value = format!(
                r#"{{"specversion":"1.0","id":"1","type":"T","source":"/s",{attribute}"data":{{}}}}"#
            );
            let message =
                read(&[("content-type", header)], Some(&value), None).expect("a CloudEvent");
            assert_eq!(
                message.header("content-type"),
                expected,
                "{header} {attribute}"
            );
        }
    }

    #[test]
    fn headers_that_springs_mapper_wrote_as_json_are_read_as_their_text() {
        let types = r#"{"ce_id":"java.util.UUID","ce_source":"java.net.URI","ce_type":"java.lang.String","n":"java.lang.Integer"}"#;
        let headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", r#""e-1""#),
            ("ce_source", r#""/shop""#),
            ("ce_type", "OrderPlaced"),
            ("n", "5"),
            ("other", r#""as it is""#),
            (SPRING_HEADER_TYPES, types),
        ];
        let message = read(&headers, Some("{}"), None).expect("a CloudEvent");
        assert_eq!(
            (&*message.id(), &*message.source(), message.event_type()),
            ("e-1", "/shop", "OrderPlaced")
        );
        assert_eq!(
            (message.header("n"), message.header("other")),
            (Some("5"), Some(r#""as it is""#))
        );
        assert_eq!(
            message.as_it_came().header("ce_id"),
            Some(&br#""e-1""#[..]),
            "a dead letter is the record as it came"
        );
        for other in ["", "{", "[]", r#"{"ce_id":5}"#] {
            let headers = [&headers[..6], &[(SPRING_HEADER_TYPES, other)]].concat();
            assert_eq!(
                read(&headers, Some("{}"), None).expect("a CloudEvent").id(),
                r#""e-1""#,
                "{other}"
            );
        }
    }

    #[test]
    fn records_of_the_event_router_have_their_type_in_a_header_or_are_told_one() {
        let debezium = read(
            &[("id", "e-2"), ("eventType", "OrderPlaced")],
            Some(r#"{"n":1}"#),
            None,
        )
        .expect("a type in a header");
        assert_eq!(
            (&*debezium.id(), debezium.event_type()),
            ("e-2", "OrderPlaced")
        );
        let told = read(
            &[("id", "e-2")],
            Some(r#""{\"n\":1}""#),
            Some("OrderPlaced"),
        )
        .expect("an assumed type");
        assert_eq!(
            (told.event_type(), told.data()),
            ("OrderPlaced", Some(&br#"{"n":1}"#[..]))
        );
    }

    #[test]
    fn plain_json_is_known_by_its_place() {
        let plain = read(&[], Some("{}"), Some("OrderPlaced")).expect("an assumed type");
        assert_eq!(
            (&*plain.id(), &*plain.source(), &*plain.aggregate_id()),
            ("3/9", "kafka:order", "7")
        );
    }

    #[test]
    fn attributes_in_headers_win_over_a_value_that_claims_to_be_another_event() {
        let forged =
            r#"{"specversion":"1.0","id":"forged","type":"Forged","source":"/evil","data":{}}"#;
        let claims = [
            &BINARY[..],
            &[("content-type", "application/cloudevents+json")],
        ]
        .concat();
        let message = read(&claims, Some(forged), None).expect("a CloudEvent in binary mode");
        assert_eq!(
            (&*message.id(), &*message.source(), message.event_type()),
            ("e-1", "/shop", "OrderPlaced")
        );
        assert_eq!(message.data(), Some(forged.as_bytes()));
    }

    #[test]
    fn other_versions_of_cloud_events_and_envelopes_of_connect_are_no_events() {
        for version in ["2.0", "0.3", "1.1", "1", ""] {
            let headers = [
                ("ce_specversion", version),
                ("ce_id", "1"),
                ("ce_type", "T"),
                ("ce_source", "/s"),
            ];
            assert!(
                matches!(
                    read(&headers, Some("{}"), None),
                    Err(Malformed::SpecVersion(_))
                ),
                "{version}"
            );
            let structured =
                format!(r#"{{"specversion":"{version}","id":"1","type":"T","source":"/s"}}"#);
            assert!(
                matches!(
                    read(&[], Some(&structured), Some("T")),
                    Err(Malformed::SpecVersion(_))
                ),
                "{version}"
            );
        }
        let envelope = r#"{"schema":{"type":"struct"},"payload":{}}"#;
        assert!(matches!(
            read(&[], Some(envelope), Some("T")),
            Err(Malformed::ConnectEnvelope)
        ));
        assert!(matches!(
            read(&[("eventType", "T")], Some(envelope), None),
            Err(Malformed::ConnectEnvelope)
        ));
        assert!(
            read(&BINARY, Some(envelope), None).is_ok(),
            "the data of a CloudEvent may look like an envelope of Connect"
        );
    }

    #[test]
    fn a_structured_event_needs_no_content_type() {
        let value = r#"{"specversion":"1.0","id":"1","type":"T","source":"/s","tenant":"acme",
                        "data":{"n":1}}"#;
        let message = read(&[], Some(value), None).expect("a CloudEvent");
        assert_eq!(
            (&*message.id(), message.event_type(), message.data()),
            ("1", "T", Some(&br#"{"n":1}"#[..]))
        );
        assert_eq!(message.header("ce_tenant"), Some("acme"));
    }

    #[test]
    fn a_record_without_its_headers_is_no_event_whatever_its_value() {
        let place = Place {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 0,
        };
        let mut record = Incoming::new(place, Some(b"7"), Some(b"{}"), std::iter::empty());
        record.lacks_headers = true;
        assert!(matches!(
            Message::read(record, Some("T")),
            Err((Malformed::HeaderNames, _))
        ));
    }

    #[test]
    fn a_format_that_is_not_read_is_named_also_for_an_assumed_type() {
        let batch = [("content-type", "application/cloudevents-batch+json")];
        assert!(matches!(
            read(&batch, Some("[]"), Some("T")),
            Err(Malformed::Format(_))
        ));
        assert!(matches!(
            read(&[("__TypeId__", "x.Y")], Some("{}"), None),
            Err(Malformed::Format(_))
        ));
        assert!(read(&[("__TypeId__", "x.Y")], Some("{}"), Some("T")).is_ok());
        assert!(
            read(&batch, None, None)
                .expect("a tombstone, whatever its headers contain")
                .is_tombstone()
        );
    }

    #[test]
    fn what_is_no_event_says_why() {
        assert!(matches!(
            read(&[], Some("{}"), None),
            Err(Malformed::NoType)
        ));
        assert!(matches!(
            read(&BINARY[..1], Some("{}"), None),
            Err(Malformed::Missing("id"))
        ));
        assert!(matches!(
            read(&BINARY[..2], Some("{}"), None),
            Err(Malformed::Missing("type"))
        ));
        assert!(matches!(
            read(
                &[&BINARY[..4], &[("ce_dataversion", "x")]].concat(),
                Some("{}"),
                None
            ),
            Err(Malformed::Version(_))
        ));
        let structured = [("content-type", "application/cloudevents+json")];
        assert!(matches!(
            read(&structured, Some("{"), None),
            Err(Malformed::Structured(_))
        ));
        assert!(matches!(
            read(&structured, Some(r#"{"id":"1","type":"T"}"#), Some("T")),
            Err(Malformed::Missing("specversion"))
        ));
        assert!(matches!(
            read(
                &structured,
                Some(r#"{"specversion":"1.0","type":"T"}"#),
                None
            ),
            Err(Malformed::Missing("id"))
        ));
    }
}
