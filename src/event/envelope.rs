//! Envelope of one event, ready for an outbox row or a Kafka record.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

use super::invalid::{TYPE_BYTES_MAX, name_is_topic_part};
use super::reserved::refuse_reserved_topic;
use super::{
    AggregateId, Codec, CodecError, DomainEvent, EventId, Headers, InvalidEvent, Payload,
    check_topic_name, headers,
};

/// One event with its metadata, as the outbox stores it and a record carries it.
///
/// ```
/// use tidings::event::{AggregateId, Envelope, Payload};
///
/// let payload = Payload::json_text("{}")?;
/// let mut envelope = Envelope::new("order", AggregateId::new("7")?, "OrderPlaced", payload);
/// envelope.headers.insert("tenant", "acme");
/// assert_eq!(envelope.version, 1);
/// envelope.check()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope {
    /// The id of the event.
    pub id: EventId,
    /// The type of the aggregate, e.g. `order`.
    pub aggregate_type: Cow<'static, str>,
    /// The id of the aggregate.
    pub aggregate_id: AggregateId,
    /// The event type, e.g. `OrderPlaced`.
    pub event_type: Cow<'static, str>,
    /// The version of the payload's schema.
    pub version: u32,
    /// The data.
    pub payload: Payload,
    /// Metadata that is published next to the data.
    pub headers: Headers,
    /// The time of the event.
    pub occurred_at: DateTime<Utc>,
    /// The topic, or `None` for the one that the relay derives.
    pub topic: Option<String>,
}

/// Error of wrapping an event in an envelope or reading it back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The event cannot be encoded, or the payload cannot be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The event violates a rule, so that it could never be delivered.
    #[error(transparent)]
    Invalid(#[from] InvalidEvent),
    /// The envelope is a tombstone, which has no payload to decode.
    #[error("the event `{event}` cannot be read from a tombstone, which has no payload")]
    Tombstone {
        /// The Rust type of the event.
        event: &'static str,
    },
}

impl Envelope {
    /// Creates an envelope with a new id, version 1, no headers and the current time.
    pub fn new(
        aggregate_type: impl Into<Cow<'static, str>>,
        aggregate_id: AggregateId,
        event_type: impl Into<Cow<'static, str>>,
        payload: Payload,
    ) -> Self {
        Self {
            id: EventId::new(),
            aggregate_type: aggregate_type.into(),
            aggregate_id,
            event_type: event_type.into(),
            version: 1,
            payload,
            headers: Headers::new(),
            occurred_at: Utc::now(),
            topic: None,
        }
    }

    /// Creates the envelope of an event that occurs now, and encodes the event with its codec. A
    /// payload of bytes gets the header `content-type`; JSON needs none.
    ///
    /// # Errors
    ///
    /// Returns [`EnvelopeError`] if the event cannot be encoded or its aggregate id cannot be a
    /// key.
    pub fn of<E: DomainEvent>(event: &E) -> Result<Self, EnvelopeError> {
        let aggregate_id = AggregateId::new(event.aggregate_id())?;
        let payload = E::Codec::encode(event)?;
        let mut envelope = Self::new(E::AGGREGATE, aggregate_id, event.event_type(), payload);
        envelope.version = E::VERSION;
        if matches!(envelope.payload, Payload::Bytes(_)) {
            envelope
                .headers
                .insert(headers::CONTENT_TYPE, E::Codec::CONTENT_TYPE);
        }
        Ok(envelope)
    }

    /// Creates the tombstone of an aggregate. On a compacted topic, it deletes the records of the
    /// key.
    ///
    /// Its type is [`TOMBSTONE`](Self::TOMBSTONE) rather than the type of an event, because no
    /// handler could decode an event from it.
    pub fn tombstone(
        aggregate_type: impl Into<Cow<'static, str>>,
        aggregate_id: AggregateId,
    ) -> Self {
        Self::new(
            aggregate_type,
            aggregate_id,
            Self::TOMBSTONE,
            Payload::Tombstone,
        )
    }

    /// The event type of a tombstone, unless the publisher sets another.
    pub const TOMBSTONE: &'static str = "Tombstone";

    /// Decodes the event in this envelope. Does not check the event type, which is the task of
    /// routing.
    ///
    /// # Errors
    ///
    /// Returns [`EnvelopeError`] if the payload cannot be decoded, or if the envelope is a
    /// tombstone.
    pub fn decode<E: DomainEvent>(&self) -> Result<E, EnvelopeError> {
        let bytes = self.payload.as_bytes().ok_or(EnvelopeError::Tombstone {
            event: std::any::type_name::<E>(),
        })?;
        Ok(E::Codec::decode(bytes)?)
    }

    /// Marks this event as caused by another. It gets the correlation id of `cause`, or the id of
    /// `cause` if that has none. The trace context and the baggage are inherited, and the id of
    /// `cause` becomes the causation id.
    ///
    /// ```
    /// use tidings::event::{AggregateId, Envelope, Payload};
    ///
    /// let id = AggregateId::new("7")?;
    /// let request = Envelope::new("order", id, "OrderPlaced", Payload::Tombstone);
    /// let id = AggregateId::new("9")?;
    /// let mut answer = Envelope::new("stock", id, "StockReserved", Payload::Tombstone);
    /// answer.set_cause(&request);
    /// assert_eq!(answer.headers.causation_id(), Some(&*request.id.to_string()));
    /// assert_eq!(answer.headers.correlation_id(), Some(&*request.id.to_string()));
    /// # Ok::<(), tidings::event::InvalidEvent>(())
    /// ```
    pub fn set_cause(&mut self, cause: &Envelope) {
        let id = cause.id.to_string();
        self.headers.insert(
            headers::CORRELATION_ID,
            cause.headers.correlation_id().unwrap_or(&id),
        );
        for name in [headers::TRACEPARENT, headers::TRACESTATE, headers::BAGGAGE] {
            if let Some(value) = cause.headers.get(name) {
                self.headers.insert(name, value);
            }
        }
        self.headers.insert(headers::CAUSATION_ID, id);
    }

    /// Checks the names, the version, the topic and the headers. An event that violates one of
    /// these rules could never be delivered.
    ///
    /// # Errors
    ///
    /// Returns the first [`InvalidEvent`] that is found.
    pub fn check(&self) -> Result<(), InvalidEvent> {
        if !name_is_topic_part(&self.aggregate_type) {
            return Err(InvalidEvent::AggregateType {
                name: self.aggregate_type.clone().into_owned(),
            });
        }
        refuse_reserved_topic(&self.aggregate_type)?;
        if !(1..=TYPE_BYTES_MAX).contains(&self.event_type.len())
            || self.event_type.chars().any(char::is_control)
        {
            return Err(InvalidEvent::EventType {
                name: self.event_type.clone().into_owned(),
            });
        }
        if i32::try_from(self.version).map_or(true, |version| version < 1) {
            return Err(InvalidEvent::Version {
                version: self.version,
            });
        }
        if let Some(topic) = &self.topic {
            check_topic_name(topic)?;
            refuse_reserved_topic(topic)?;
        }
        self.headers.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, DomainEvent, Debug, PartialEq)]
    #[event(aggregate = "order", id = "id", version = 3)]
    struct Placed {
        id: String,
    }

    fn valid() -> Envelope {
        Envelope::of(&Placed { id: "7".into() }).expect("a valid event")
    }

    #[test]
    fn an_event_comes_out_of_its_envelope_as_it_went_in() {
        let envelope = valid();
        assert_eq!(
            (
                &*envelope.aggregate_type,
                envelope.aggregate_id.as_str(),
                &*envelope.event_type
            ),
            ("order", "7", "Placed")
        );
        assert_eq!(envelope.version, 3);
        assert_eq!(envelope.payload.as_json(), Some(r#"{"id":"7"}"#));
        assert!(envelope.headers.is_empty());
        assert_eq!(
            envelope.decode::<Placed>().expect("it was just encoded"),
            Placed { id: "7".into() }
        );
    }

    #[test]
    fn an_event_without_an_id_does_not_get_an_envelope() {
        let error = Envelope::of(&Placed { id: String::new() }).expect_err("no id");
        assert!(matches!(
            error,
            EnvelopeError::Invalid(InvalidEvent::AggregateIdEmpty)
        ));
    }

    #[test]
    fn an_event_is_not_read_from_a_tombstone() {
        let envelope = Envelope::tombstone("order", AggregateId::new("7").expect("a valid id"));
        assert!(matches!(
            envelope.decode::<Placed>(),
            Err(EnvelopeError::Tombstone { .. })
        ));
    }

    #[test]
    fn what_could_never_be_delivered_is_found() {
        type Fault = (fn(&mut Envelope), InvalidEvent);
        let faults: [Fault; 10] = [
            (
                |e| e.aggregate_type = "or der".into(),
                InvalidEvent::AggregateType {
                    name: "or der".into(),
                },
            ),
            (
                |e| e.event_type = "".into(),
                InvalidEvent::EventType { name: "".into() },
            ),
            (
                |e| e.event_type = "a\0".into(),
                InvalidEvent::EventType { name: "a\0".into() },
            ),
            (|e| e.version = 0, InvalidEvent::Version { version: 0 }),
            (
                |e| e.version = 1 << 31,
                InvalidEvent::Version { version: 1 << 31 },
            ),
            (
                |e| e.topic = Some("..".into()),
                InvalidEvent::TopicName { name: "..".into() },
            ),
            (
                |e| e.topic = Some("__x".into()),
                InvalidEvent::ReservedTopic { name: "__x".into() },
            ),
            (
                |e| e.aggregate_type = "tidings.position.a.b".into(),
                InvalidEvent::ReservedTopic {
                    name: "tidings.position.a.b".into(),
                },
            ),
            (
                |e| e.headers.insert("CE_id", ""),
                InvalidEvent::ReservedHeader {
                    name: "CE_id".into(),
                },
            ),
            (
                |e| {
                    e.headers
                        .insert("content-type", "application/cloudevents+json")
                },
                InvalidEvent::ReservedContentType {
                    value: "application/cloudevents+json".into(),
                },
            ),
        ];
        assert_eq!(valid().check(), Ok(()));
        for (spoil, fault) in faults {
            let mut envelope = valid();
            spoil(&mut envelope);
            assert_eq!(envelope.check(), Err(fault));
        }
    }

    #[test]
    fn a_conversation_and_its_trace_go_on_from_the_cause() {
        let (mut cause, mut effect) = (valid(), valid());
        cause.headers.extend([
            ("correlationid", "c"),
            ("traceparent", "t"),
            ("tenant", "acme"),
        ]);
        effect.set_cause(&cause);
        let id = cause.id.to_string();
        assert_eq!(
            effect.headers.iter().collect::<Vec<_>>(),
            [
                ("causationid", id.as_str()),
                ("correlationid", "c"),
                ("traceparent", "t")
            ],
            "the headers of the application are not inherited"
        );
    }
}
