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
#[cfg(test)]
mod tests;

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
