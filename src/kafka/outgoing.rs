//! One event on its way out, borrowed from wherever it was read.

use uuid::Uuid;

/// One event on its way out. Nothing is copied until librdkafka takes it.
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
    /// The row's own topic, if it names one.
    pub(crate) topic: Option<&'a str>,
}

/// What the event carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// JSON text, as it was written.
    Json(&'a [u8]),
    /// Bytes of another encoding.
    Bytes(&'a [u8]),
    /// Null: a compacted topic forgets the key.
    Tombstone,
}

impl<'a> Value<'a> {
    /// The bytes, or none for a tombstone.
    pub(crate) fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Json(bytes) | Self::Bytes(bytes) => Some(bytes),
            Self::Tombstone => None,
        }
    }
}
