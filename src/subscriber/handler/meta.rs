//! What travels beside an event's data.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{FromDelivery, HandlerError, error::Undecodable};
use crate::{
    event::{DomainEvent, Envelope, VersionError, decode_version, headers},
    kafka::{Incoming, Malformed, Message, foreign_format},
    subscriber::Delivery,
};

/// What travels beside an event's data: its id, what it is about, who caused it, where it stands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Meta {
    message: Arc<Message>,
    attempt: u32,
}

impl Meta {
    pub(crate) fn new(message: Arc<Message>, attempt: u32) -> Self {
        Self { message, attempt }
    }

    /// What a record says, at its first attempt.
    pub(crate) fn of_record(record: Incoming) -> Result<Self, Malformed> {
        Message::read(record, None)
            .map(|message| Self::new(Arc::new(message), 1))
            .map_err(|(malformed, _)| malformed)
    }

    /// Which occurrence: unique within its [`source`](Self::source). A UUID if Tidings published it; other publishers have ids of other shapes, and where there is
    /// none it is `partition/offset`.
    pub fn event_id(&self) -> Cow<'_, str> {
        self.message.id()
    }

    /// Who published it (`ce_source`); `kafka:<topic>` if nobody says so.
    pub fn source(&self) -> Cow<'_, str> {
        self.message.source()
    }

    /// What happened, e.g. `OrderPlaced`.
    pub fn event_type(&self) -> &str {
        self.message.event_type()
    }

    /// The version of the payload's schema, as it was published.
    pub fn version(&self) -> u32 {
        self.message.version()
    }

    /// What it happened to: the record's key.
    pub fn aggregate_id(&self) -> Cow<'_, str> {
        self.message.aggregate_id()
    }

    /// The kind of thing it happened to, if the record says so.
    pub fn aggregate_type(&self) -> Option<&str> {
        self.message.aggregate_type()
    }

    /// When it happened: `ce_time`, or else the record's timestamp.
    pub fn occurred_at(&self) -> DateTime<Utc> {
        let said = self
            .message
            .time()
            .and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        said.map(|time| time.to_utc())
            .or_else(|| DateTime::from_timestamp_millis(self.message.as_it_came().timestamp))
            .unwrap_or_default()
    }

    /// Which conversation it belongs to.
    pub fn correlation_id(&self) -> Option<&str> {
        Self::correlation_of(&self.message)
    }

    pub(crate) fn correlation_of(message: &Message) -> Option<&str> {
        message
            .header("ce_correlationid")
            .or_else(|| message.header(headers::CORRELATION_ID))
    }

    /// The id of the event or command that caused it.
    pub fn causation_id(&self) -> Option<&str> {
        self.header("ce_causationid")
            .or_else(|| self.header(headers::CAUSATION_ID))
    }

    /// The trace context, as W3C Trace Context writes it.
    pub fn traceparent(&self) -> Option<&str> {
        self.header(headers::TRACEPARENT)
            .or_else(|| self.header("ce_traceparent"))
    }

    /// What tracing systems add to the trace context.
    pub fn tracestate(&self) -> Option<&str> {
        self.header(headers::TRACESTATE)
            .or_else(|| self.header("ce_tracestate"))
    }

    /// A header of the record, if it is text. Without a header of this name, the CloudEvents extension attribute of this name (`ce_tenant` for `tenant`).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.message
            .header(name)
            .or_else(|| self.message.header(&format!("ce_{name}")))
    }

    /// How often the event was tried, this attempt included: 1 for the first. Attempts from the detour, from retry topics and before a replay count.
    pub fn attempt(&self) -> u32 {
        self.attempt.saturating_add(self.message.attempts_before())
    }

    /// The topic it was read from.
    pub fn topic(&self) -> &str {
        &self.message.as_it_came().topic
    }

    /// The partition it was read from.
    pub fn partition(&self) -> i32 {
        self.message.as_it_came().partition
    }

    /// Its place in the partition.
    pub fn offset(&self) -> i64 {
        self.message.as_it_came().offset
    }

    /// The data as it was published; none for a tombstone.
    pub fn data(&self) -> Option<&[u8]> {
        self.message.data()
    }

    /// Marks an event as caused by this one, as [`Envelope::set_cause`] does.
    pub fn cause(&self, envelope: &mut Envelope) {
        let id = self.event_id().into_owned();
        let own = |envelope: &Envelope, name| envelope.headers.get(name).is_some();
        if !own(envelope, headers::CORRELATION_ID) {
            envelope.headers.insert(
                headers::CORRELATION_ID,
                self.correlation_id().unwrap_or(&id),
            );
        }
        for (name, value) in [
            (headers::TRACEPARENT, self.traceparent()),
            (headers::TRACESTATE, self.tracestate()),
        ] {
            if let Some(value) = value.filter(|_| !own(envelope, name)) {
                envelope.headers.insert(name, value);
            }
        }
        if !own(envelope, headers::CAUSATION_ID) {
            envelope.headers.insert(headers::CAUSATION_ID, id);
        }
    }

    /// The event, decoded: an older version is lifted before.
    ///
    /// # Errors
    ///
    /// A [`HandlerError`] with the verdict `DeadLetter`: a tombstone, a newer version than this code knows, or a payload that is no such event.
    pub fn decode<E: DomainEvent>(&self) -> Result<E, HandlerError> {
        decode(&self.message)
    }
}

/// A record's event, decoded.
pub(crate) fn decode<E: DomainEvent>(message: &Message) -> Result<E, HandlerError> {
    let no_data = || HandlerError::undecodable(Undecodable::NoData(std::any::type_name::<E>()));
    let data = message.data().ok_or_else(no_data)?;
    decode_version(message.version(), data).map_err(|error| match error {
        VersionError::Codec(source) => HandlerError::undecodable(match foreign_format(data) {
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
