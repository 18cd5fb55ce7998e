//! Rules that every event must meet to be deliverable, checked when it is published.

use super::{AggregateId, headers};

/// The maximum length of a topic name in Kafka (`org.apache.kafka.common.internals.Topic`).
const TOPIC_BYTES_MAX: usize = 249;

/// The maximum length of an event type, in bytes. A check constraint of the outbox table has the
/// same limit.
pub(super) const TYPE_BYTES_MAX: usize = 255;

/// Reason why an event could never be delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEvent {
    /// Without an id the record would have no key, and without a key it would have no order.
    #[error("the aggregate id is empty: set it to the id of the aggregate the event belongs to")]
    AggregateIdEmpty,
    /// The id is longer than the limit of a record key.
    #[error(
        "the aggregate id has {bytes} bytes, more than {max}: use a shorter key",
        max = AggregateId::BYTES_MAX
    )]
    AggregateIdTooLong {
        /// The length of the id.
        bytes: usize,
    },
    /// Postgres text cannot store a NUL character.
    #[error("the aggregate id contains a NUL character, which Postgres cannot store")]
    AggregateIdNul,
    /// The aggregate type becomes part of a topic name.
    #[error(
        "the aggregate type {name:?} cannot be part of a Kafka topic name: use letters, digits, \
         `.`, `_` and `-`, at most {TOPIC_BYTES_MAX}"
    )]
    AggregateType {
        /// The type as given.
        name: String,
    },
    /// The event type is empty, too long, or contains control characters.
    #[error(
        "the event type {name:?} is invalid: use 1 to {TYPE_BYTES_MAX} bytes without control \
         characters"
    )]
    EventType {
        /// The type as given.
        name: String,
    },
    /// The version is 0 or does not fit a Postgres `int`.
    #[error("the version {version} is invalid: count from 1")]
    Version {
        /// The version as given.
        version: u32,
    },
    /// The name violates Kafka's rule for topic names.
    #[error(
        "{name:?} is not a Kafka topic name: use letters, digits, `.`, `_` and `-`, at most \
         {TOPIC_BYTES_MAX}, and neither `.` nor `..` alone"
    )]
    TopicName {
        /// The name as given.
        name: String,
    },
    /// The topic is internal to Kafka, or holds the positions of a relay.
    #[error(
        "the topic {name:?} is reserved: topics `__*` belong to Kafka, topics `tidings.position.*` \
         to relays; choose another name"
    )]
    ReservedTopic {
        /// The name as given.
        name: String,
    },
    /// The header is part of the record format or of the dead-letter format.
    #[error(
        "the header name {name:?} is reserved: `ce_*`, `kafka_dlt-*` and `tidings_*` are written \
         by Tidings alone; choose another name"
    )]
    ReservedHeader {
        /// The name as given.
        name: String,
    },
    /// Consumers would read the payload as a complete CloudEvent that replaces the one of the
    /// headers.
    #[error(
        "the content-type {value:?} is reserved, because Tidings creates the CloudEvent itself: \
         publish only its data, with the media type of the data"
    )]
    ReservedContentType {
        /// The media type as given.
        value: String,
    },
    /// The name of a header is empty, too long, or not visible ASCII.
    #[error(
        "the header name {name:?} is invalid: use 1 to {max} visible ASCII characters",
        max = headers::NAME_BYTES_MAX
    )]
    HeaderName {
        /// The name as given.
        name: String,
    },
    /// The value of a header contains a control character.
    #[error(
        "the value of header {name:?} contains a control character: headers are single lines of \
         text, data belongs in the payload"
    )]
    HeaderValue {
        /// The name of the header.
        name: String,
    },
    /// The event has too many headers.
    #[error(
        "there are {count} headers, more than {max}: put data into the payload",
        max = headers::COUNT_MAX
    )]
    HeaderCount {
        /// The number of headers.
        count: usize,
    },
}

/// Checks a topic name against Kafka's rule: 1 to 249 letters, digits, `.`, `_` and `-`, and
/// neither `.` nor `..` alone.
///
/// # Errors
///
/// Returns [`InvalidEvent::TopicName`] if the name violates the rule.
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

/// Returns `true` if the text can be a topic name or a part of one.
pub(super) fn name_is_topic_part(name: &str) -> bool {
    (1..=TOPIC_BYTES_MAX).contains(&name.len()) && name.chars().all(is_topic_character)
}

/// Returns `true` if Kafka allows the character in a topic name.
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
