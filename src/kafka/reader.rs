//! Parsing of records into messages, the counterpart of `envelope`.
//!
//! Supports CloudEvents in binary mode (attributes in headers) and in structured mode (attributes
//! and data in the value), the records of Debezium's EventRouter (header `id`, and the type in a
//! header if the connector writes one), and plain JSON. All are converted to binary mode.
//!
//! | file | content |
//! |---|---|
//! | `structured` | CloudEvents in structured mode |
//! | `spring` | headers of Spring Kafka |
//! | `malformed` | reasons why a record is not an event |

#[cfg(all(any(test, fuzzing), feature = "relay"))]
mod fuzz;
mod malformed;
mod spring;
mod structured;

use std::borrow::Cow;
use std::sync::Arc;

#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) use self::fuzz::fuzz_record;
pub use self::malformed::Malformed;
use self::{spring::with_plain_headers, structured::from_structured};
use super::foreign_id::foreign_id_at;
use super::format::{
    declared_foreign_format, foreign_format, is_connect_envelope, is_structured, probable_format,
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

    /// Returns the number of attempts before this delivery: in place, from the table of parked
    /// events, from retry topics, and before a replay.
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

#[cfg(test)]
mod tests {
    use super::{spring::SPRING_HEADER_TYPES, *};
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
