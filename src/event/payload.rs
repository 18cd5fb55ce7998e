//! Data of an event.

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
    /// JSON text, preserved exactly as written, including white space, key order and number format.
    Json(Box<RawValue>),
    /// Bytes in a format that the publisher chooses, e.g. Avro or Protobuf.
    Bytes(Vec<u8>),
    /// A record with a null value. On a compacted topic, it deletes the records of the key.
    #[doc(alias = "null")]
    Tombstone,
}

impl Payload {
    /// Serializes a value as JSON text.
    ///
    /// # Errors
    ///
    /// Returns an error if the value has no JSON representation, e.g. a map whose keys are not
    /// strings.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self::Json)
    }

    /// Creates a payload from JSON text and preserves the text exactly.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not valid JSON.
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

    /// Returns the JSON text, or `None` if the payload is not JSON.
    pub fn as_json(&self) -> Option<&str> {
        match self {
            Self::Json(text) => Some(text.get()),
            Self::Bytes(_) | Self::Tombstone => None,
        }
    }

    /// Returns the bytes of the record's value, or `None` for a tombstone.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Json(text) => Some(text.get().as_bytes()),
            Self::Bytes(bytes) => Some(bytes),
            Self::Tombstone => None,
        }
    }

    /// Returns the length of the record's value in bytes, 0 for a tombstone.
    pub fn len(&self) -> usize {
        self.as_bytes().map_or(0, <[u8]>::len)
    }

    /// Returns `true` if the payload has no bytes: a tombstone or an empty `Bytes`.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// === impl Payload ===

impl PartialEq for Payload {
    /// Compares text or bytes exactly: `{"a":1}` and `{"a": 1}` are not equal.
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
