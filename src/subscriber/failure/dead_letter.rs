//! Dead letters: their topics and their headers.

use std::future::Future;
use std::pin::Pin;

use crate::{
    kafka::{Incoming, Letter, LetterError, identity_by_place},
    subscriber::handler::HandlerError,
};

/// Destination of events that cannot be handled.
///
/// A dead letter is the original record with additional headers that describe the failure. Most of
/// them have the names that Spring Kafka uses (`kafka_dlt-exception-message`,
/// `kafka_dlt-original-topic` …), so that its tools show them. Headers for which Spring Kafka has
/// no name start with `tidings_`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetters(Place);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Topic,
    Named(String),
    Discard,
}

impl DeadLetters {
    /// The topic `<topic>.<group>.dlt`, which is the default. If it does not exist, it is created
    /// with the partition count of the original topic.
    pub fn topic() -> Self {
        Self(Place::Topic)
    }

    /// One topic for all dead letters, by name.
    pub fn named(topic: impl Into<String>) -> Self {
        Self(Place::Named(topic.into()))
    }

    /// No topic: an event that cannot be handled is logged and discarded.
    pub fn discard() -> Self {
        Self(Place::Discard)
    }

    /// Returns the topic for dead letters of `topic`. Returns `None` if they are discarded.
    pub(crate) fn topic_for(&self, topic: &str, group: &str) -> Option<String> {
        match &self.0 {
            Place::Topic => Some(format!("{topic}.{group}.dlt")),
            Place::Named(name) => Some(name.clone()),
            Place::Discard => None,
        }
    }
}

/// Sends records to Kafka.
pub(crate) trait DeadLetterSink: Send + Sync {
    /// Sends a record. If its topic does not exist, the topic is created with the partition count
    /// of `like`.
    fn send<'l>(
        &'l self,
        letter: &'l Letter,
        like: &'l str,
    ) -> Pin<Box<dyn Future<Output = Result<(), LetterError>> + Send + 'l>>;
}

/// The failure of a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailureInfo<'a> {
    pub(crate) group: &'a str,
    pub(crate) error: &'a HandlerError,
    /// `handler`, `malformed` or `duplicate`.
    pub(crate) kind: &'a str,
    pub(crate) attempts: u32,
}

/// Number of replays from the dead letters.
pub(crate) const REPLAYS: &str = "tidings_replays";
/// The topic that the record was first read from, before any retry.
pub(crate) const ORIGINAL_TOPIC: &str = "kafka_dlt-original-topic";
/// The partition that the record was first read from: four bytes, big endian.
pub(crate) const ORIGINAL_PARTITION: &str = "kafka_dlt-original-partition";
/// The offset that the record was first read from: eight bytes, big endian.
pub(crate) const ORIGINAL_OFFSET: &str = "kafka_dlt-original-offset";
/// The timestamp of the original record: eight bytes, big endian, milliseconds since the Unix
/// epoch.
const ORIGINAL_TIMESTAMP: &str = "kafka_dlt-original-timestamp";
/// The type of that timestamp, named as in Kafka's Java client.
const ORIGINAL_TIMESTAMP_TYPE: &str = "kafka_dlt-original-timestamp-type";
/// Headers for the origin of a record.
const ORIGINAL: [&str; 5] = [
    ORIGINAL_TOPIC,
    ORIGINAL_PARTITION,
    ORIGINAL_OFFSET,
    ORIGINAL_TIMESTAMP,
    ORIGINAL_TIMESTAMP_TYPE,
];
/// The error message.
pub(crate) const EXCEPTION_MESSAGE: &str = "kafka_dlt-exception-message";
/// The kind of error.
pub(crate) const EXCEPTION_CLASS: &str = "kafka_dlt-exception-fqcn";
/// Number of attempts.
pub(crate) const ATTEMPTS: &str = "tidings_attempts";
/// Number of the retry topic, starting with 1.
pub(crate) const TIER: &str = "tidings_retry";
/// Due time of a record in a retry topic, in milliseconds since the Unix epoch.
pub(crate) const DUE: &str = "tidings_due";

/// Maximum length of an error message in bytes. It becomes a header, and the record may already be
/// large.
const ERROR_BYTES_MAX: usize = 2_000;

/// Headers about an earlier failure. Retries and dead letters do not copy them from the record.
const OURS: [&str; 9] = [
    EXCEPTION_MESSAGE,
    EXCEPTION_CLASS,
    "kafka_dlt-exception-stacktrace",
    "kafka_dlt-original-consumer-group",
    ATTEMPTS,
    TIER,
    DUE,
    "tidings_reason",
    "tidings_failed_at",
];

/// Returns the number of earlier attempts of a record in a retry or redrive topic of this group. In
/// other topics the header is ignored.
pub(crate) fn attempts_of(record: &Incoming, group: &str) -> u32 {
    if origin_of(&record.topic, group) == &*record.topic {
        return 0;
    }
    record.header(ATTEMPTS).map_or(0, bounded_count)
}

/// Returns the number of retry topics through which a record in a retry or redrive topic of this
/// group has passed. In other topics the header is ignored, because any producer can set it.
pub(crate) fn tier_of(record: &Incoming, group: &str) -> usize {
    if origin_of(&record.topic, group) == &*record.topic {
        return 0;
    }
    record.header(TIER).map_or(0, bounded_count) as usize
}

/// Maximum value of a counter in a header. Counters grow by one per attempt or replay, so a larger
/// value is forged.
const COUNT_MAX: u32 = 1_000_000;

/// Returns the counter in a header, limited to [`COUNT_MAX`]. Returns 0 if it is not a number.
pub(crate) fn bounded_count(text: &[u8]) -> u32 {
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    number.unwrap_or(0).min(COUNT_MAX)
}

/// Returns `true` if a header describes a failure of the record.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    OURS.iter().any(|ours| ours.as_bytes() == name)
}

/// Returns the original record for another topic, with headers about its failure.
pub(crate) fn letter(record: &Incoming, topic: String, why: &FailureInfo<'_>) -> Letter {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Headers about the origin are kept through retries of this group. In a record of another topic
    // they describe a failure in another group.
    let came_back = origin_of(&record.topic, why.group) != &*record.topic
        && record.header(ORIGINAL_TOPIC).is_some();
    let named_here = if came_back {
        None
    } else {
        identity_by_place(record)
    };
    let is_replaced = |name: &[u8]| {
        ORIGINAL.iter().any(|original| original.as_bytes() == name) && !came_back
            || named_here.is_some() && (name == b"ce_id" || name == b"ce_source")
    };
    let is_kept = |name: &[u8]| !is_ours(name) && !is_replaced(name);
    let kept = record
        .headers_with_nulls()
        .filter(|(name, _)| is_kept(name));
    let mut headers: Vec<(String, Option<Vec<u8>>)> = kept
        .map(|(name, value)| (text(name), value.map(<[u8]>::to_vec)))
        .collect();
    let mut put = |name: &str, value: &[u8]| headers.push((name.to_owned(), Some(value.to_vec())));
    if !came_back {
        put(ORIGINAL_TOPIC, record.topic.as_bytes());
        put(ORIGINAL_PARTITION, &record.partition.to_be_bytes());
        put(ORIGINAL_OFFSET, &record.offset.to_be_bytes());
        put(ORIGINAL_TIMESTAMP, &record.timestamp.to_be_bytes());
        put(ORIGINAL_TIMESTAMP_TYPE, timestamp_type(record));
        if let Some((id, source)) = &named_here {
            put("ce_id", id.as_bytes());
            put("ce_source", source.as_bytes());
        }
    }
    put("kafka_dlt-original-consumer-group", why.group.as_bytes());
    put(EXCEPTION_CLASS, format!("tidings.{}", why.kind).as_bytes());
    let mut message = why.error.chain();
    message.truncate(message.floor_char_boundary(ERROR_BYTES_MAX));
    put(EXCEPTION_MESSAGE, message.as_bytes());
    put("kafka_dlt-exception-stacktrace", message.as_bytes());
    put(ATTEMPTS, why.attempts.to_string().as_bytes());
    put(
        "tidings_failed_at",
        chrono::Utc::now().to_rfc3339().as_bytes(),
    );
    Letter {
        topic,
        key: record.key().map(<[u8]>::to_vec),
        value: record.value().map(<[u8]>::to_vec),
        headers,
    }
}

fn timestamp_type(record: &Incoming) -> &'static [u8] {
    if record.is_stamped_by_broker {
        b"LOG_APPEND_TIME"
    } else if record.timestamp < 0 {
        b"NO_TIMESTAMP_TYPE"
    } else {
        b"CREATE_TIME"
    }
}

/// Returns the original record for another topic, without headers about its failure.
pub(crate) fn bare_letter(record: &Incoming, topic: String) -> Letter {
    let headers = record.headers_with_nulls();
    let headers = headers
        .map(|(name, value)| {
            (
                String::from_utf8_lossy(name).into_owned(),
                value.map(<[u8]>::to_vec),
            )
        })
        .collect();
    Letter {
        topic,
        key: record.key().map(<[u8]>::to_vec),
        value: record.value().map(<[u8]>::to_vec),
        headers,
    }
}

/// Returns the topic that records of `topic` were first read from: for a retry or redrive topic of
/// the group the topic in its name, otherwise `topic` itself. A header contains it too, but any
/// producer can set it, and its value may not be a valid topic name.
pub(crate) fn origin_of<'t>(topic: &'t str, group: &str) -> &'t str {
    let retried = || {
        topic
            .rsplit_once('.')?
            .0
            .strip_suffix(&format!(".{group}.retry"))
    };
    topic
        .strip_suffix(&format!(".{group}.redrive"))
        .or_else(retried)
        .unwrap_or(topic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Place as RecordPlace;

    fn header<'l>(letter: &'l Letter, name: &str) -> Option<&'l [u8]> {
        let mut found = letter.headers.iter().filter(|(header, _)| header == name);
        let first = found.next().and_then(|(_, value)| value.as_deref());
        assert!(found.next().is_none(), "{name} occurs once");
        first
    }

    #[test]
    fn a_dead_letter_is_the_record_and_says_where_it_was_first_through_retries() {
        let place = RecordPlace {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 5,
        };
        let record = Incoming::new(
            place,
            Some(b"7"),
            Some(b"{}"),
            [("x", Some(&b"y"[..])), ("null", None)].into_iter(),
        );
        let error = HandlerError::retry("é".repeat(2_000));
        let why = FailureInfo {
            group: "g",
            error: &error,
            kind: "handler",
            attempts: 5,
        };
        let first = letter(&record, "order.g.retry.1m".into(), &why);
        let again = Incoming::new(
            RecordPlace {
                topic: "order.g.retry.1m".into(),
                partition: 0,
                offset: 1,
                timestamp: 6,
            },
            first.key.as_deref(),
            first.value.as_deref(),
            first
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_deref())),
        );
        for letter in [&first, &letter(&again, "order.g.dlt".into(), &why)] {
            assert_eq!(
                (letter.key.as_deref(), letter.value.as_deref()),
                (Some(&b"7"[..]), Some(&b"{}"[..]))
            );
            assert_eq!(header(letter, "x"), Some(&b"y"[..]));
            assert!(letter.headers.contains(&("null".to_owned(), None)));
            assert_eq!(header(letter, ORIGINAL_TOPIC), Some(&b"order"[..]));
            assert_eq!(
                header(letter, ORIGINAL_PARTITION),
                Some(&3i32.to_be_bytes()[..])
            );
            assert_eq!(
                header(letter, ORIGINAL_OFFSET),
                Some(&9i64.to_be_bytes()[..])
            );
            assert_eq!(header(letter, "ce_id"), Some(&b"3/9"[..]));
            assert_eq!(header(letter, ATTEMPTS), Some(&b"5"[..]));
            assert!(
                header(letter, EXCEPTION_MESSAGE).is_some_and(|text| text.len() <= ERROR_BYTES_MAX)
            );
        }
    }

    #[test]
    fn counters_of_headers_are_bounded_and_count_in_the_groups_own_topics_only() {
        for (text, count) in [
            ("4294967295", COUNT_MAX),
            ("3", 3),
            ("-1", 0),
            ("99999999999999999999", 0),
            ("x", 0),
            ("", 0),
        ] {
            assert_eq!(bounded_count(text.as_bytes()), count, "{text}");
        }
        assert_eq!(bounded_count(b"\xff"), 0);
        let forged = |topic: &str| {
            let place = RecordPlace {
                topic: topic.into(),
                partition: 3,
                offset: 9,
                timestamp: 5,
            };
            let headers = [(TIER, Some(&b"2"[..])), (ATTEMPTS, Some(b"4294967295"))];
            Incoming::new(place, Some(b"7"), None, headers.into_iter())
        };
        let (own, other) = (forged("order.g.retry.1m"), forged("order"));
        assert_eq!((tier_of(&own, "g"), attempts_of(&own, "g")), (2, COUNT_MAX));
        assert_eq!((tier_of(&other, "g"), attempts_of(&other, "g")), (0, 0));
    }

    #[test]
    fn the_type_of_the_timestamp_is_that_of_the_first_topic_through_retries() {
        let error = HandlerError::retry("no");
        let why = FailureInfo {
            group: "g",
            error: &error,
            kind: "handler",
            attempts: 1,
        };
        for (by_broker, timestamp, expected) in [
            (true, 5, "LOG_APPEND_TIME"),
            (false, 5, "CREATE_TIME"),
            (false, -1, "NO_TIMESTAMP_TYPE"),
        ] {
            let place = RecordPlace {
                topic: "order".into(),
                partition: 3,
                offset: 9,
                timestamp,
            };
            let mut record = Incoming::new(place, Some(b"7"), None, std::iter::empty());
            record.is_stamped_by_broker = by_broker;
            let first = letter(&record, "order.g.retry.1m".into(), &why);
            let again = Incoming::new(
                RecordPlace {
                    topic: "order.g.retry.1m".into(),
                    partition: 0,
                    offset: 1,
                    timestamp: 6,
                },
                None,
                None,
                first
                    .headers
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_deref())),
            );
            for letter in [&first, &letter(&again, "order.g.dlt".into(), &why)] {
                assert_eq!(
                    header(letter, ORIGINAL_TIMESTAMP_TYPE),
                    Some(expected.as_bytes())
                );
            }
        }
    }

    #[test]
    fn a_bare_letter_adds_nothing_to_the_record() {
        let place = RecordPlace {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 5,
        };
        let record = Incoming::new(
            place,
            Some(b"7"),
            None,
            [("x", Some(&b"y"[..])), ("null", None)].into_iter(),
        );
        let bare = bare_letter(&record, "order.g.dlt".into());
        assert_eq!(
            (bare.topic.as_str(), bare.key.as_deref(), bare.value),
            ("order.g.dlt", Some(&b"7"[..]), None)
        );
        assert_eq!(
            bare.headers,
            [
                ("x".to_owned(), Some(b"y".to_vec())),
                ("null".to_owned(), None)
            ]
        );
    }

    #[test]
    fn a_record_came_first_from_the_topic_whose_name_its_own_extends() {
        for (topic, group, origin) in [
            ("order", "g", "order"),
            ("order.g.retry.1m", "g", "order"),
            ("order.g.redrive", "g", "order"),
            ("a.b.retry.retry.1500ms", "retry", "a.b"),
            ("order.h.retry.1m", "g", "order.h.retry.1m"),
            ("order.g.dlt", "g", "order.g.dlt"),
        ] {
            assert_eq!(origin_of(topic, group), origin);
        }
    }

    #[test]
    fn where_a_record_died_for_somebody_else_is_not_where_it_was_first() {
        let place = RecordPlace {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 5,
        };
        let foreign = [
            (ORIGINAL_TOPIC, Some(&b"not a topic!"[..])),
            (ORIGINAL_OFFSET, Some(b"\0\0\0\0\0\0\0\x07")),
        ];
        let record = Incoming::new(place, Some(b"7"), Some(b"{}"), foreign.into_iter());
        let error = HandlerError::retry("no");
        let letter = letter(
            &record,
            "order.g.dlt".into(),
            &FailureInfo {
                group: "g",
                error: &error,
                kind: "handler",
                attempts: 1,
            },
        );
        assert_eq!(header(&letter, ORIGINAL_TOPIC), Some(&b"order"[..]));
        assert_eq!(
            header(&letter, ORIGINAL_OFFSET),
            Some(&9i64.to_be_bytes()[..])
        );
    }
}
