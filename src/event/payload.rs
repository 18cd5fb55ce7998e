//! The data of an event.

use serde::Serialize;
use serde_json::value::RawValue;

/// The data of an event: JSON text, bytes, or nothing.
///
/// ```
/// use tidings::event::Payload;
///
/// let payload = Payload::json(&[1, 2])?;
/// assert_eq!(payload.as_json(), Some("[1,2]"));
/// assert_eq!(payload.len(), 5);
/// assert_eq!(Payload::Tombstone.as_bytes(), None);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug)]
pub enum Payload {
    /// JSON, kept exactly as it was written: spaces, key order and number format included.
    Json(Box<RawValue>),
    /// Bytes in a format of the publisher's: Avro, Protobuf.
    Bytes(Vec<u8>),
    /// A record with a null value: on a compacted topic it deletes what Kafka keeps for the key.
    #[doc(alias = "null")]
    Tombstone,
}

impl Payload {
    /// The value as JSON text.
    ///
    /// # Errors
    ///
    /// If the value has no JSON form, e.g. a map whose keys are not strings.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self::Json)
    }

    /// This text as it is, if it is JSON.
    ///
    /// # Errors
    ///
    /// If the text is not JSON.
    ///
    /// ```
    /// use tidings::event::Payload;
    ///
    /// let payload = Payload::json_text(r#"{"b": 1.0,  "a": 2}"#)?;
    /// assert_eq!(payload.as_json(), Some(r#"{"b": 1.0,  "a": 2}"#));
    /// assert!(Payload::json_text("{").is_err());
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn json_text(text: impl Into<String>) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text.into()).map(Self::Json)
    }

    /// The JSON text, if it is JSON.
    pub fn as_json(&self) -> Option<&str> {
        match self {
            Self::Json(text) => Some(text.get()),
            Self::Bytes(_) | Self::Tombstone => None,
        }
    }

    /// The bytes of the record's value; `None` for a tombstone.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Json(text) => Some(text.get().as_bytes()),
            Self::Bytes(bytes) => Some(bytes),
            Self::Tombstone => None,
        }
    }

    /// How many bytes the record's value has; 0 for a tombstone.
    pub fn len(&self) -> usize {
        self.as_bytes().map_or(0, <[u8]>::len)
    }

    /// True if there is not a single byte: a tombstone, or empty bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// === impl Payload ===

impl PartialEq for Payload {
    /// Equal texts, equal bytes: `{"a":1}` and `{"a": 1}` differ.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Json(a), Self::Json(b)) => a.get() == b.get(),
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Tombstone, Self::Tombstone) => true,
            _ => false,
        }
    }
}

impl Eq for Payload {}
