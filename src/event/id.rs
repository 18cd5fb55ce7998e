//! Identifiers of events and aggregates.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::InvalidEvent;

/// The id of one event. It is a UUIDv7, so the ids of one process are ascending. It is published as
/// the header `ce_id`, and the inbox stores it.
///
/// ```
/// use tidings::event::EventId;
///
/// let (first, second) = (EventId::new(), EventId::new());
/// assert!(first < second);
/// assert_eq!(first.to_string().parse::<EventId>()?, first);
/// # Ok::<(), uuid::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Uuid);

impl EventId {
    /// Creates a new id.
    #[allow(
        clippy::new_without_default,
        reason = "a default value that differs each time would be surprising"
    )]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Returns the UUID.
    pub fn as_uuid(&self) -> Uuid {
        self.0
    }
}

// === impl EventId ===

impl From<Uuid> for EventId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl From<EventId> for Uuid {
    fn from(id: EventId) -> Self {
        id.0
    }
}

impl FromStr for EventId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of the aggregate that an event belongs to, and the key of its Kafka record. It is never
/// empty, because records without a key have no order.
///
/// ```
/// use tidings::event::AggregateId;
///
/// assert_eq!(AggregateId::new("order-7")?.as_str(), "order-7");
/// assert!(AggregateId::new("").is_err());
/// # Ok::<(), tidings::event::InvalidEvent>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AggregateId(String);

impl AggregateId {
    /// The maximum length of an id, in bytes. The id is the key of every record, so it is short. A
    /// check constraint of the outbox table has the same limit.
    pub const BYTES_MAX: usize = 1024;

    /// Creates an id.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidEvent`] if the id is empty, is longer than [`BYTES_MAX`](Self::BYTES_MAX),
    /// or contains a NUL character, which Postgres text cannot store.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidEvent> {
        let id = id.into();
        match id.len() {
            0 => Err(InvalidEvent::AggregateIdEmpty),
            bytes if bytes > Self::BYTES_MAX => Err(InvalidEvent::AggregateIdTooLong { bytes }),
            _ if id.contains('\0') => Err(InvalidEvent::AggregateIdNul),
            _ => Ok(Self(id)),
        }
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl AggregateId ===

impl TryFrom<String> for AggregateId {
    type Error = InvalidEvent;

    fn try_from(id: String) -> Result<Self, InvalidEvent> {
        Self::new(id)
    }
}

impl From<AggregateId> for String {
    fn from(id: AggregateId) -> Self {
        id.0
    }
}

impl AsRef<str> for AggregateId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AggregateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_cannot_be_a_key_is_refused() {
        assert_eq!(AggregateId::new(""), Err(InvalidEvent::AggregateIdEmpty));
        assert_eq!(AggregateId::new("a\0"), Err(InvalidEvent::AggregateIdNul));
        assert!(AggregateId::new("é".repeat(512)).is_ok());
        assert_eq!(
            AggregateId::new("é".repeat(513)),
            Err(InvalidEvent::AggregateIdTooLong { bytes: 1026 })
        );
    }

    #[test]
    fn an_event_id_is_a_uuid_of_version_seven() {
        assert_eq!(EventId::new().as_uuid().get_version_num(), 7);
    }

    #[test]
    fn a_deserialized_aggregate_id_is_checked_too() {
        assert!(serde_json::from_str::<AggregateId>("\"\"").is_err());
        assert_eq!(
            serde_json::from_str::<AggregateId>("\"a\"").expect("a valid id"),
            AggregateId::new("a").expect("a valid id")
        );
    }
}
