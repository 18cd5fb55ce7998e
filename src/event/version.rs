//! Decoding of payloads, including those of older versions.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, CodecError, DomainEvent, panic_text};

/// Reason why a payload of a certain version was not decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// The payload was written by newer code. It is refused even if it could be decoded, because
    /// this version could misread it.
    #[error(
        "the event has version {version}, and this code supports `{event}` up to version {known}: \
         deploy the newer code here, then replay the event"
    )]
    Newer {
        /// The Rust type of the event.
        event: &'static str,
        /// The payload's version.
        version: u32,
        /// The version of the Rust type.
        known: u32,
    },
    /// The payload is older, and the event type has no upcast from its version.
    #[error(
        "the event has version {version}, and `{event}` has no upcast from it: add \
         `upcast(from = {version}, with = …)` to its `#[event(…)]`"
    )]
    NoUpcast {
        /// The Rust type of the event.
        event: &'static str,
        /// The version that has no upcast.
        version: u32,
    },
    /// The payload cannot be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Decodes a payload of the given version. A payload of an older version is first upcast step by
/// step.
///
/// A panic of an upcast or of the codec is returned as an error, because the same payload would
/// panic again.
///
/// # Errors
///
/// Returns [`VersionError`] if the version is newer, has no upcast, or the payload cannot be
/// decoded.
pub fn decode_version<E: DomainEvent>(version: u32, payload: &[u8]) -> Result<E, VersionError> {
    std::panic::catch_unwind(|| decode_steps(version, payload)).unwrap_or_else(|panic| {
        let reason = format!(
            "decoding version {version} panicked: {}",
            panic_text(&*panic)
        );
        Err(CodecError::decode::<E>(reason).into())
    })
}

fn decode_steps<E: DomainEvent>(version: u32, payload: &[u8]) -> Result<E, VersionError> {
    let event = std::any::type_name::<E>();
    if version == E::VERSION {
        return Ok(E::Codec::decode(payload)?);
    }
    if version > E::VERSION {
        return Err(VersionError::Newer {
            event,
            version,
            known: E::VERSION,
        });
    }
    let mut lifted = payload.to_vec();
    for step in version..E::VERSION {
        lifted = E::upcast(step, &lifted).ok_or(VersionError::NoUpcast {
            event,
            version: step,
        })??;
    }
    Ok(E::Codec::decode(&lifted)?)
}

/// Upcasts a JSON payload with a function from the old type to the next one. This is the
/// implementation of `upcast(from = …, with = …)`.
///
/// Both types are serde types of the application, or `serde_json::Value`.
///
/// # Errors
///
/// Returns [`CodecError::Decode`] if the payload does not match the old type, and
/// [`CodecError::Encode`] if the result has no JSON representation.
pub fn lift<E, Old: DeserializeOwned, New: Serialize + DeserializeOwned>(
    with: impl FnOnce(Old) -> New,
    payload: &[u8],
) -> Result<Vec<u8>, CodecError> {
    let old = serde_json::from_slice(payload).map_err(CodecError::decode::<E>)?;
    serde_json::to_vec(&with(old)).map_err(CodecError::encode::<E>)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Deserialize, Serialize)]
    struct Amount {
        cents: i64,
    }

    #[derive(Serialize, Deserialize, DomainEvent, Debug, PartialEq)]
    #[event(
        aggregate = "order",
        id = "id",
        version = 3,
        upcast(from = 1, with = add_currency),
        upcast(from = 2, with = |old: Value| json!({
            "id": old["id"], "amount": old["cents"], "currency": old["currency"]
        }))
    )]
    struct Paid {
        id: String,
        amount: i64,
        currency: String,
    }

    fn add_currency(mut old: Value) -> Value {
        old["currency"] = json!("EUR");
        old
    }

    #[test]
    fn an_old_payload_is_lifted_step_by_step() {
        let expected = |currency: &str| Paid {
            id: "7".into(),
            amount: 5,
            currency: currency.into(),
        };
        let from = |version, payload: Value| {
            decode_version::<Paid>(version, payload.to_string().as_bytes())
        };
        assert_eq!(
            from(1, json!({ "id": "7", "cents": 5 })).expect("two steps"),
            expected("EUR")
        );
        assert_eq!(
            from(2, json!({ "id": "7", "cents": 5, "currency": "CHF" })).expect("one step"),
            expected("CHF")
        );
        assert_eq!(
            from(3, json!({ "id": "7", "amount": 5, "currency": "CHF" })).expect("as it is"),
            expected("CHF")
        );
    }

    #[test]
    fn a_panic_of_an_upcast_is_a_payload_that_cannot_be_decoded() {
        for payload in ["[1]", "7", "\"x\"", "true"] {
            let error = decode_version::<Paid>(1, payload.as_bytes()).expect_err("no object");
            let VersionError::Codec(error @ CodecError::Decode { .. }) = error else {
                panic!("{error:?}")
            };
            let source = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                source.starts_with("decoding version 1 panicked: cannot access key"),
                "{source}"
            );
        }
    }

    #[test]
    fn a_newer_payload_is_refused_even_if_it_could_be_read() {
        let newer = decode_version::<Paid>(4, br#"{"id":"7","amount":5,"currency":"CHF"}"#);
        assert!(matches!(
            newer,
            Err(VersionError::Newer {
                version: 4,
                known: 3,
                ..
            })
        ));
    }

    #[test]
    fn an_old_payload_that_nothing_lifts_is_refused() {
        #[derive(Serialize, Deserialize, DomainEvent, Debug)]
        #[event(aggregate = "order", id = "cents", version = 2)]
        struct Bare {
            cents: i64,
        }
        assert!(matches!(
            decode_version::<Bare>(1, b"{\"cents\":1}"),
            Err(VersionError::NoUpcast { version: 1, .. })
        ));
    }

    #[test]
    fn an_old_payload_of_another_shape_says_so() {
        let lifted = lift::<Paid, _, _>(|old: Amount| Amount { cents: old.cents }, b"{}");
        assert!(matches!(lifted, Err(CodecError::Decode { .. })));
    }
}
