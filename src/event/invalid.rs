//! What no relay could ever deliver, and is therefore refused where it is published.

use super::{AggregateId, headers};

/// The longest topic name Kafka accepts (`org.apache.kafka.common.internals.Topic`).
const TOPIC_BYTES_MAX: usize = 249;

/// The longest event type, in bytes. A name, not a text; the table checks the same.
pub(super) const TYPE_BYTES_MAX: usize = 255;

/// Why an event could never be delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEvent {
    /// Without an id there is no key, and without a key no order.
    #[error("the aggregate id is empty: give the event the id of what it happened to")]
    AggregateIdEmpty,
    /// The id is the key of every record.
    #[error("the aggregate id has {bytes} bytes, more than {max}: use a shorter key", max = AggregateId::BYTES_MAX)]
    AggregateIdTooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Postgres text holds no NUL.
    #[error("the aggregate id holds a NUL character, which Postgres cannot store")]
    AggregateIdNul,
    /// The aggregate type becomes a topic name.
    #[error(
        "the aggregate type {name:?} cannot be part of a Kafka topic name: use letters, digits, `.`, `_` and `-`, at most {TOPIC_BYTES_MAX}"
    )]
    AggregateType {
        /// The type as given.
        name: String,
    },
    /// The event type is a name.
    #[error(
        "the event type {name:?} is not usable: 1 to {TYPE_BYTES_MAX} bytes without control characters"
    )]
    EventType {
        /// The type as given.
        name: String,
    },
    /// Versions count from 1 and fit a Postgres int.
    #[error("the version {version} is not usable: count from 1")]
    Version {
        /// The version as given.
        version: u32,
    },
    /// Kafka refuses the topic's name.
    #[error(
        "{name:?} is not a Kafka topic name: use letters, digits, `.`, `_` and `-`, at most {TOPIC_BYTES_MAX}, and neither `.` nor `..` alone"
    )]
    TopicName {
        /// The name as given.
        name: String,
    },
    /// The topic belongs to Kafka, or holds the positions of a relay.
    #[error(
        "the topic {name:?} is reserved: topics `__*` belong to Kafka, topics `tidings.position.*` to relays; choose another name"
    )]
    ReservedTopic {
        /// The name as given.
        name: String,
    },
    /// The header belongs to the envelope of a record, or to a dead letter.
    #[error(
        "the header name {name:?} is reserved: `ce_*`, `kafka_dlt-*` and `tidings_*` are written by Tidings alone; choose another name"
    )]
    ReservedHeader {
        /// The name as given.
        name: String,
    },
    /// The payload would be read as a whole CloudEvent, in place of the one that Tidings makes of the event.
    #[error(
        "the content-type {value:?} is reserved: Tidings makes the CloudEvent; publish its data, and give the type of the data"
    )]
    ReservedContentType {
        /// The media type as given.
        value: String,
    },
    /// A header's name is not visible ASCII.
    #[error("the header name {name:?} is not usable: 1 to {max} visible ASCII characters", max = headers::NAME_BYTES_MAX)]
    HeaderName {
        /// The name as given.
        name: String,
    },
    /// A header's value is text for one line.
    #[error(
        "the value of header {name:?} holds a control character: headers are single lines of text, data belongs into the payload"
    )]
    HeaderValue {
        /// The header's name.
        name: String,
    },
    /// Headers are few.
    #[error("there are {count} headers, more than {max}: put data into the payload", max = headers::COUNT_MAX)]
    HeaderCount {
        /// How many there are.
        count: usize,
    },
}

/// Checks a topic name by Kafka's rule: 1 to 249 letters, digits, `.`, `_` and `-`, and neither `.` nor `..` alone.
///
/// # Errors
///
/// [`InvalidEvent::TopicName`].
///
/// ```
/// use tidings::event::check_topic_name;
///
/// assert!(check_topic_name("outbox.event.order").is_ok());
/// assert!(check_topic_name("orders/new").is_err());
/// ```
pub fn check_topic_name(name: &str) -> Result<(), InvalidEvent> {
    if name_is_topic_part(name) && name != "." && name != ".." {
        return Ok(());
    }
    Err(InvalidEvent::TopicName {
        name: name.to_owned(),
    })
}

/// True if the name can be, or be part of, a topic's name.
pub(super) fn name_is_topic_part(name: &str) -> bool {
    (1..=TOPIC_BYTES_MAX).contains(&name.len()) && name.chars().all(is_topic_character)
}

/// True if Kafka allows the character in a topic's name.
pub(crate) fn is_topic_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_follow_kafkas_rule() {
        for name in ["a", "A-b_c.9", "...", &"t".repeat(249)] {
            assert_eq!(check_topic_name(name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "ü", "a\n", &"t".repeat(250)] {
            assert_eq!(
                check_topic_name(name),
                Err(InvalidEvent::TopicName { name: name.into() })
            );
        }
    }
}
