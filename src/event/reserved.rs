//! Names that published events may not use: topics and headers that belong to Kafka, the relay and
//! subscribers.
//!
//! With such a name, a row could forge a relay position, a second event id or a dead letter. Check
//! constraints of the outbox table, [`Envelope::check`](super::Envelope::check) and the relay's
//! routing refuse the same names.

use super::InvalidEvent;

/// Prefix of the relays' position topics.
const POSITION_TOPICS: &str = "tidings.position.";

/// Prefixes of topics that never carry events: Kafka's internal topics and the relays' position
/// topics.
const TOPICS: [&str; 2] = ["__", POSITION_TOPICS];

/// Prefixes of headers that describe a record: CloudEvents attributes and the annotations of dead
/// letters.
const HEADERS: [&str; 3] = ["ce_", "kafka_dlt-", "tidings_"];

/// Prefix of the media types that declare the value to be a complete CloudEvent. Consumers would
/// read it instead of the attributes in the headers.
const CLOUD_EVENT: &str = "application/cloudevents";

/// Returns `true` if events may not be published to this topic.
pub(crate) fn is_reserved_topic(name: &str) -> bool {
    TOPICS.iter().any(|prefix| name.starts_with(prefix))
}

/// Refuses a topic that never carries events.
///
/// # Errors
///
/// Returns [`InvalidEvent::ReservedTopic`] if the name is reserved.
pub(crate) fn refuse_reserved_topic(name: &str) -> Result<(), InvalidEvent> {
    if is_reserved_topic(name) {
        return Err(InvalidEvent::ReservedTopic {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// Refuses a header that would contradict the headers that the relay writes. Names and media types
/// are compared without regard to letter case.
///
/// # Errors
///
/// Returns [`InvalidEvent::ReservedHeader`] or [`InvalidEvent::ReservedContentType`] if the header
/// is reserved.
pub(crate) fn refuse_reserved_header(name: &str, value: &str) -> Result<(), InvalidEvent> {
    if HEADERS
        .iter()
        .any(|prefix| starts_with_ignoring_case(name, prefix))
    {
        return Err(InvalidEvent::ReservedHeader {
            name: name.to_owned(),
        });
    }
    if name.eq_ignore_ascii_case(super::headers::CONTENT_TYPE)
        && starts_with_ignoring_case(value.trim_start(), CLOUD_EVENT)
    {
        return Err(InvalidEvent::ReservedContentType {
            value: value.to_owned(),
        });
    }
    Ok(())
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.as_bytes()
        .get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_kafka_and_of_relay_positions_are_reserved() {
        for name in [
            "__consumer_offsets",
            "__x",
            "tidings.position.tidings.0123abcd",
            "tidings.position.",
        ] {
            assert_eq!(
                refuse_reserved_topic(name),
                Err(InvalidEvent::ReservedTopic { name: name.into() })
            );
        }
        for name in [
            "order",
            "_order",
            "tidings.position",
            "tidings.positions",
            "Tidings.position.x",
            "x__",
        ] {
            assert_eq!(refuse_reserved_topic(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn headers_of_the_envelope_are_reserved_in_any_letter_case() {
        for name in [
            "ce_id",
            "CE_ID",
            "Ce_whatever",
            "ce_",
            "kafka_dlt-original-topic",
            "Kafka_DLT-x",
            "tidings_replays",
            "TIDINGS_X",
        ] {
            assert_eq!(
                refuse_reserved_header(name, ""),
                Err(InvalidEvent::ReservedHeader { name: name.into() })
            );
        }
        for value in [
            "application/cloudevents+json",
            " Application/CloudEvents-batch+json; charset=x",
            "application/cloudevents+avro",
        ] {
            for name in ["content-type", "Content-Type"] {
                assert_eq!(
                    refuse_reserved_header(name, value),
                    Err(InvalidEvent::ReservedContentType {
                        value: value.into()
                    })
                );
            }
        }
        for (name, value) in [
            ("ce", ""),
            ("tenant", "ce_id"),
            ("content-type", "application/json"),
            ("x", "application/cloudevents+json"),
            ("é", ""),
        ] {
            assert_eq!(refuse_reserved_header(name, value), Ok(()), "{name}");
        }
    }
}
