//! An event to publish, borrowed from the buffer into which it was read.

use uuid::Uuid;

/// An event to publish. Nothing is copied until librdkafka takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing<'a> {
    pub(crate) id: Uuid,
    pub(crate) aggregate_type: &'a str,
    pub(crate) aggregate_id: &'a str,
    pub(crate) event_type: &'a str,
    pub(crate) version: i32,
    pub(crate) value: Value<'a>,
    /// The row's headers: a JSON object of strings, as text.
    pub(crate) headers: &'a str,
    /// Microseconds since the Unix epoch.
    pub(crate) occurred_at: i64,
    /// The topic that the row names, if any.
    pub(crate) topic: Option<&'a str>,
}

/// The payload of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// JSON text, exactly as written.
    Json(&'a [u8]),
    /// Bytes of another encoding.
    Bytes(&'a [u8]),
    /// Null: a compacted topic deletes the records of the key.
    Tombstone,
}

impl<'a> Value<'a> {
    /// Returns the bytes, or `None` for a tombstone.
    pub(crate) fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Json(bytes) | Self::Bytes(bytes) => Some(bytes),
            Self::Tombstone => None,
        }
    }
}
