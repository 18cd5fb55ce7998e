//! Identity of an event in the inbox: consumer, topic of origin, source and id.

use crate::{
    fnv::fnv1a,
    kafka::Message,
    subscriber::{failure::dead_letter::origin_of, handler::HandlerError},
};

/// The columns that the inbox stores for an event, except its consumer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) source: String,
    pub(crate) id: String,
    /// The topic that the event was first read from. Retries and replays do not change it.
    pub(crate) topic: String,
    /// A hash of the event's key, type and data, which is the same for each delivery.
    pub(crate) fingerprint: i64,
}

/// Error for a second event with the identity of a handled one. At most one of them can be the
/// event that its publisher sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "an event with the id {id:?} of source {source_name:?} was handled from topic {topic} before, \
     with another key, type or data: two events share one id, or one of them is forged"
)]
pub(crate) struct Conflicting {
    pub(crate) id: String,
    pub(crate) source_name: String,
    pub(crate) topic: String,
}

/// Error for an event whose id or source the inbox cannot store. No later attempt can.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unstorable {
    #[error(
        "the event's id or source cannot be stored in the inbox: an id has 1 to 512 bytes, a \
         source up to 1,024, both without NUL"
    )]
    Size,
    /// For example, the encoding of the database does not have one of its characters.
    #[error("the event's id or source cannot be stored in the database of the inbox")]
    Database(#[source] sqlx::Error),
}

impl Identity {
    /// Returns the identity of an event for a consumer.
    ///
    /// # Errors
    ///
    /// Returns an error if the inbox cannot store the identity.
    pub(crate) fn of(message: &Message, consumer: &str) -> Result<Self, HandlerError> {
        let topic = origin_of(&message.as_it_came().topic, consumer);
        let (source, id) = (
            message.source_from(topic).into_owned(),
            message.id().into_owned(),
        );
        if source.contains('\0')
            || id.contains('\0')
            || id.is_empty()
            || id.len() > 512
            || source.len() > 1024
        {
            return Err(HandlerError::dead_letter(Unstorable::Size));
        }
        Ok(Self {
            source,
            id,
            topic: topic.to_owned(),
            fingerprint: fingerprint(message),
        })
    }

    /// Returns the error for this event if another event with the same identity has another
    /// fingerprint.
    pub(crate) fn conflicting(self) -> HandlerError {
        HandlerError::dead_letter(Conflicting {
            id: self.id,
            source_name: self.source,
            topic: self.topic,
        })
    }
}

/// Returns the fingerprint of an event: its 64-bit FNV-1a hash. It is stored, so it must be the
/// same in every version and on every machine. The lengths of the parts are hashed too, which
/// separates them, and a tombstone differs from empty data.
fn fingerprint(message: &Message) -> i64 {
    let parts = [
        message.as_it_came().key(),
        Some(message.event_type().as_bytes()),
        message.data(),
    ];
    let bytes = parts.into_iter().flat_map(|part| {
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        let bytes = part.unwrap_or_default().iter().copied();
        length.to_le_bytes().into_iter().chain(bytes)
    });
    fnv1a(bytes).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::{Incoming, Place};

    fn message(
        topic: &str,
        key: Option<&[u8]>,
        event_type: &'static str,
        value: Option<&[u8]>,
        id: &[u8],
    ) -> Message {
        let place = Place {
            topic: topic.into(),
            partition: 1,
            offset: 2,
            timestamp: 3,
        };
        let headers = [
            ("ce_specversion", &b"1.0"[..]),
            ("ce_id", id),
            ("ce_source", b"/shop"),
            ("ce_type", event_type.as_bytes()),
        ];
        let headers = headers.map(|(name, value)| (name, Some(value)));
        Message::read(Incoming::new(place, key, value, headers.into_iter()), None)
            .expect("a CloudEvent")
    }

    #[test]
    fn an_event_keeps_its_identity_through_retries_and_replays() {
        let identity = |topic| {
            Identity::of(
                &message(topic, Some(b"7"), "Placed", Some(b"{}"), b"1"),
                "stock",
            )
            .expect("a usable id")
        };
        let first = identity("order");
        assert_eq!(
            (&*first.topic, &*first.source, &*first.id),
            ("order", "/shop", "1")
        );
        assert_eq!(identity("order.stock.retry.1m"), first);
        assert_eq!(identity("order.stock.redrive"), first);
        assert_ne!(identity("payment"), first);
        assert_ne!(
            identity("order.other.redrive"),
            first,
            "a topic of another group is a topic of its own"
        );
    }

    #[test]
    fn another_key_type_or_data_has_another_fingerprint() {
        let of =
            |key, event_type, value| fingerprint(&message("order", key, event_type, value, b"1"));
        let all = [
            of(Some(b"7"), "Placed", Some(b"{}")),
            of(Some(b"8"), "Placed", Some(b"{}")),
            of(None, "Placed", Some(b"{}")),
            of(Some(b""), "Placed", Some(b"{}")),
            of(Some(b"7"), "Paid", Some(b"{}")),
            of(Some(b"7P"), "laced", Some(b"{}")),
            of(Some(b"7"), "Placed", Some(b"{ }")),
            of(Some(b"7"), "Placed", Some(b"")),
            of(Some(b"7"), "Placed", None),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
    }

    #[test]
    fn the_fingerprint_is_the_same_in_every_version() {
        let stored = -2_827_380_177_698_652_424;
        assert_eq!(
            fingerprint(&message("order", Some(b"7"), "Placed", Some(b"{}"), b"1")),
            stored
        );
    }

    #[test]
    fn an_id_or_source_that_cannot_be_stored_is_refused() {
        let long = [b'x'; 513];
        for id in [&b"a\0"[..], &long] {
            assert!(Identity::of(&message("order", None, "Placed", None, id), "stock").is_err());
        }
    }
}
