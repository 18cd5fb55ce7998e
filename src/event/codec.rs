//! Encoding of events into payloads, and decoding.

use std::error::Error;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Payload;

/// Encodes events of type `T` into payloads and decodes them.
///
/// [`Json`] works for every serde type, [`Raw`] for a type that already holds its encoded bytes.
/// For another format, implement this trait on a type of your own and name that type in the event's
/// `#[event(codec = …)]`.
///
/// # Examples
///
/// For Protobuf with prost, the two functions call `encode_to_vec` and `T::decode`. For Avro, they
/// call `to_avro_datum` and `from_avro_datum`. This example implements a format of four bytes:
///
/// ```
/// use tidings::event::{Codec, CodecError, DomainEvent, Envelope, Payload};
///
/// struct BigEndian;
///
/// impl Codec<Metered> for BigEndian {
///     const CONTENT_TYPE: &'static str = "application/x-big-endian";
///
///     fn encode(event: &Metered) -> Result<Payload, CodecError> {
///         Ok(Payload::Bytes(event.meter.to_be_bytes().to_vec()))
///     }
///
///     fn decode(bytes: &[u8]) -> Result<Metered, CodecError> {
///         let meter = bytes.try_into().map_err(CodecError::decode::<Metered>)?;
///         Ok(Metered { meter: u32::from_be_bytes(meter) })
///     }
/// }
///
/// #[derive(DomainEvent)]
/// #[event(aggregate = "meter", id = "meter", codec = BigEndian)]
/// struct Metered { meter: u32 }
///
/// let envelope = Envelope::of(&Metered { meter: 7 })?;
/// assert_eq!(envelope.payload, Payload::Bytes(vec![0, 0, 0, 7]));
/// assert_eq!(envelope.headers.get("content-type"), Some("application/x-big-endian"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "the codec `{Self}` cannot encode and decode `{T}`",
    note = "`Json` needs `serde::Serialize` and `serde::Deserialize` on `{T}`; another codec is \
            chosen by `#[event(codec = …)]`"
)]
pub trait Codec<T> {
    /// The media type of the payload, e.g. `application/x-protobuf`. It is published as the header
    /// `content-type`.
    const CONTENT_TYPE: &'static str;

    /// Encodes an event as [`Payload::Json`] or [`Payload::Bytes`].
    ///
    /// # Errors
    ///
    /// Returns [`CodecError::Encode`] if the event has no representation in this format.
    fn encode(event: &T) -> Result<Payload, CodecError>;

    /// Decodes an event from the bytes of a payload.
    ///
    /// # Errors
    ///
    /// Returns [`CodecError::Decode`] if the bytes are not a valid event of this type.
    fn decode(bytes: &[u8]) -> Result<T, CodecError>;
}

/// Error of encoding or decoding an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The event has no representation in the format.
    #[error("the event `{event}` cannot be encoded")]
    Encode {
        /// The Rust type of the event.
        event: &'static str,
        /// The error of the format's library.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The bytes are not a valid event of this type.
    #[error("the payload is not an event `{event}`")]
    Decode {
        /// The Rust type of the event.
        event: &'static str,
        /// The error of the format's library.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl CodecError {
    /// Creates the error of [`Codec::encode`] for events of type `T`.
    pub fn encode<T>(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Encode {
            event: std::any::type_name::<T>(),
            source: source.into(),
        }
    }

    /// Creates the error of [`Codec::decode`] for events of type `T`.
    pub fn decode<T>(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Decode {
            event: std::any::type_name::<T>(),
            source: source.into(),
        }
    }
}

/// JSON through serde, the default. The relay publishes the text that serde wrote, byte for byte.
#[derive(Clone, Copy, Debug)]
pub enum Json {}

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode(event: &T) -> Result<Payload, CodecError> {
        Payload::json(event).map_err(CodecError::encode::<T>)
    }

    fn decode(bytes: &[u8]) -> Result<T, CodecError> {
        // Validating the UTF-8 of the whole text first reduces the time to four fifths, because
        // serde_json then does not validate each string. Bytes that are not valid UTF-8 may still
        // decode: serde_json does not validate the strings of fields that the event type does not
        // have.
        let decoded = match std::str::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_slice(bytes),
        };
        decoded.map_err(CodecError::decode::<T>)
    }
}

/// The event's own bytes, for a type that already holds its encoded form, e.g. a message that was
/// encoded elsewhere and is forwarded.
///
/// ```
/// use tidings::event::{Codec, Payload, Raw};
///
/// assert_eq!(Raw::encode(&vec![1, 2, 3])?, Payload::Bytes(vec![1, 2, 3]));
/// assert_eq!(<Raw as Codec<Vec<u8>>>::decode(&[1, 2, 3])?, [1, 2, 3]);
/// # Ok::<(), tidings::event::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Raw {}

impl<T> Codec<T> for Raw
where
    T: AsRef<[u8]> + TryFrom<Vec<u8>, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    const CONTENT_TYPE: &'static str = "application/octet-stream";

    fn encode(event: &T) -> Result<Payload, CodecError> {
        Ok(Payload::Bytes(event.as_ref().to_vec()))
    }

    fn decode(bytes: &[u8]) -> Result<T, CodecError> {
        bytes.to_vec().try_into().map_err(CodecError::decode::<T>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn json_gives_back_what_it_was_given(text in any::<String>(), number in any::<i64>()) {
            let event = (text, number);
            let payload = Json::encode(&event).expect("strings and integers have a JSON form");
            let bytes = payload.as_bytes().expect("JSON is not a tombstone");
            let decoded = <Json as Codec<(String, i64)>>::decode(bytes);
            prop_assert_eq!(decoded.expect("it was just encoded"), event);
        }
    }

    #[test]
    fn what_is_no_text_matters_where_it_is_asked_for_only() {
        #[derive(Debug, serde::Deserialize, Serialize)]
        struct Placed {
            id: u8,
            note: Option<String>,
        }
        let foreign: Placed =
            Json::decode(b"{\"id\":7,\"more\":\"\xff\"}").expect("`more` is not a field");
        assert_eq!((foreign.id, foreign.note), (7, None));
        let error = <Json as Codec<Placed>>::decode(b"{\"id\":7,\"note\":\"\xff\"}")
            .expect_err("a note is text");
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(
            source.contains("invalid unicode code point at line 1 column 1"),
            "{source}"
        );
    }

    #[test]
    fn an_event_without_a_json_form_names_its_type() {
        let keys_are_not_strings = std::collections::BTreeMap::from([((1, 2), 3)]);
        let error = Payload::json(&keys_are_not_strings)
            .map_err(CodecError::encode::<u8>)
            .expect_err("JSON keys are strings");
        assert_eq!(error.to_string(), "the event `u8` cannot be encoded");
    }

    #[derive(Debug)]
    struct Pair([u8; 2]);

    impl AsRef<[u8]> for Pair {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl TryFrom<Vec<u8>> for Pair {
        type Error = std::array::TryFromSliceError;

        fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
            bytes.as_slice().try_into().map(Self)
        }
    }

    #[test]
    fn bytes_that_are_no_such_event_are_an_error() {
        assert!(matches!(
            <Json as Codec<u32>>::decode(b"\"x\""),
            Err(CodecError::Decode { event: "u32", .. })
        ));
        assert_eq!(
            <Raw as Codec<Pair>>::decode(b"xy")
                .expect("two bytes are a pair")
                .0,
            *b"xy"
        );
        assert!(matches!(
            <Raw as Codec<Pair>>::decode(b"xyz"),
            Err(CodecError::Decode { .. })
        ));
    }
}
