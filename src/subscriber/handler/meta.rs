//! Metadata of an event.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{FromDelivery, HandlerError, error::Undecodable};
use crate::{
    event::{DomainEvent, Envelope, VersionError, decode_version, headers},
    kafka::{Incoming, Malformed, Message},
    subscriber::Delivery,
    trace,
};

/// Metadata of an event: its id, aggregate, cause and position in Kafka. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Meta {
    message: Arc<Message>,
    attempt: u32,
}

impl Meta {
    pub(crate) fn new(message: Arc<Message>, attempt: u32) -> Self {
        Self { message, attempt }
    }

    pub(crate) fn message(&self) -> &Message {
        &self.message
    }

    /// Reads the metadata of a record, with attempt number 1.
    pub(crate) fn of_record(record: Incoming) -> Result<Self, Malformed> {
        Message::read(record, None)
            .map(|message| Self::new(Arc::new(message), 1))
            .map_err(|(malformed, _)| malformed)
    }

    /// Returns the id of the event, which is unique within its [`source`](Self::source). Events
    /// that Tidings published have a UUID. Other publishers may use other formats. An event without
    /// an id gets `partition/offset`.
    pub fn event_id(&self) -> Cow<'_, str> {
        self.message.id()
    }

    /// Returns the publisher (`ce_source`). Defaults to `kafka:<topic>`.
    pub fn source(&self) -> Cow<'_, str> {
        self.message.source()
    }

    /// Returns the type of the event, for example `OrderPlaced`.
    pub fn event_type(&self) -> &str {
        self.message.event_type()
    }

    /// Returns the version of the payload's schema with which the event was published.
    pub fn version(&self) -> u32 {
        self.message.version()
    }

    /// Returns the id of the aggregate, which is the key of the record.
    pub fn aggregate_id(&self) -> Cow<'_, str> {
        self.message.aggregate_id()
    }

    /// Returns the type of the aggregate, if the record contains it.
    pub fn aggregate_type(&self) -> Option<&str> {
        self.message.aggregate_type()
    }

    /// Returns the time of the event: `ce_time`, or otherwise the timestamp of the record.
    pub fn occurred_at(&self) -> DateTime<Utc> {
        let said = self
            .message
            .time()
            .and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        said.map(|time| time.to_utc())
            .or_else(|| DateTime::from_timestamp_millis(self.message.as_it_came().timestamp))
            .unwrap_or_default()
    }

    /// Returns the correlation id, which all events of one business process share.
    pub fn correlation_id(&self) -> Option<&str> {
        Self::correlation_of(&self.message)
    }

    pub(crate) fn correlation_of(message: &Message) -> Option<&str> {
        message
            .header("ce_correlationid")
            .or_else(|| message.header(headers::CORRELATION_ID))
    }

    /// Returns the id of the event or command that caused this event.
    pub fn causation_id(&self) -> Option<&str> {
        self.header("ce_causationid")
            .or_else(|| self.header(headers::CAUSATION_ID))
    }

    /// Returns the trace context in the format of W3C Trace Context.
    pub fn traceparent(&self) -> Option<&str> {
        self.header(headers::TRACEPARENT)
            .or_else(|| self.header("ce_traceparent"))
    }

    /// Returns the vendor-specific part of the trace context.
    pub fn tracestate(&self) -> Option<&str> {
        self.header(headers::TRACESTATE)
            .or_else(|| self.header("ce_tracestate"))
    }

    /// Returns a header of the record, if it is text. If there is no header with this name, returns
    /// the CloudEvents extension attribute with this name (`ce_tenant` for `tenant`).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.message
            .header(name)
            .or_else(|| self.message.header(&format!("ce_{name}")))
    }

    /// Returns the number of this attempt, which is 1 for the first. Attempts while the event was
    /// parked, from retry topics and before a replay are counted too.
    pub fn attempt(&self) -> u32 {
        self.attempt.saturating_add(self.message.attempts_before())
    }

    /// Returns the topic that the event was read from.
    pub fn topic(&self) -> &str {
        &self.message.as_it_came().topic
    }

    /// Returns the partition that the event was read from.
    pub fn partition(&self) -> i32 {
        self.message.as_it_came().partition
    }

    /// Returns the offset of the event in its partition.
    pub fn offset(&self) -> i64 {
        self.message.as_it_came().offset
    }

    /// Returns the data as it was published. Returns `None` for a tombstone.
    pub fn data(&self) -> Option<&[u8]> {
        self.message.data()
    }

    /// Sets this event as the cause of another one, like [`Envelope::set_cause`].
    pub fn cause(&self, envelope: &mut Envelope) {
        let id = self.event_id().into_owned();
        let own = |envelope: &Envelope, name| envelope.headers.get(name).is_some();
        if !own(envelope, headers::CORRELATION_ID) {
            envelope.headers.insert(
                headers::CORRELATION_ID,
                self.correlation_id().unwrap_or(&id),
            );
        }
        // The handler's span, if there is one, is a descendant of the span of this event.
        trace::inject(&mut envelope.headers);
        let has_trace = own(envelope, headers::TRACEPARENT);
        for (name, value) in [
            (headers::TRACEPARENT, self.traceparent()),
            (headers::TRACESTATE, self.tracestate()),
        ] {
            if let Some(value) = value.filter(|_| !has_trace) {
                envelope.headers.insert(name, value);
            }
        }
        if let Some(baggage) = self.header(headers::BAGGAGE)
            && !own(envelope, headers::BAGGAGE)
        {
            envelope.headers.insert(headers::BAGGAGE, baggage);
        }
        if !own(envelope, headers::CAUSATION_ID) {
            envelope.headers.insert(headers::CAUSATION_ID, id);
        }
    }

    /// Decodes the event. An older version is upgraded first.
    ///
    /// # Errors
    ///
    /// Returns a [`HandlerError`] with the verdict `DeadLetter` for a tombstone, for a version that
    /// is newer than this code supports, and for a payload that is not such an event.
    pub fn decode<E: DomainEvent>(&self) -> Result<E, HandlerError> {
        decode(&self.message)
    }
}

/// Decodes the event of a record.
pub(crate) fn decode<E: DomainEvent>(message: &Message) -> Result<E, HandlerError> {
    let no_data = || HandlerError::undecodable(Undecodable::NoData(std::any::type_name::<E>()));
    let data = message.data().ok_or_else(no_data)?;
    decode_version(message.version(), data).map_err(|error| match error {
        VersionError::Codec(source) => HandlerError::undecodable(match message.foreign_format() {
            Some(format) => Undecodable::Format { format, source },
            None => Undecodable::Codec(source),
        }),
        error => HandlerError::dead_letter(error),
    })
}

impl<S: Sync> FromDelivery<S> for Meta {
    type Rejection = Infallible;

    async fn from_delivery(delivery: &Delivery, _: &S) -> Result<Self, Infallible> {
        Ok(delivery.meta())
    }
}
