//! What a relay is told: every option with its default and the reason for it.

use std::time::Duration;

use super::RetentionOptions;
use crate::kafka::EnvelopeFormat;

/// Where events are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceKind {
    /// The log at its head, the table while behind: the table is twice as fast then and costs the server less. The table alone where there is no
    /// logical replication.
    Auto,
    /// The write-ahead log (logical replication), in commit order. What the log does not hold (before the first start, after a lost slot)
    /// comes from the table.
    Wal,
    /// The table alone: needs no logical replication and no slot.
    Poll,
}

/// What a consumer may see twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// Nothing, with `isolation.level=read_committed`: events and position are committed to Kafka together.
    ExactlyOnce,
    /// What was in flight when the relay died is sent again.
    AtLeastOnce,
}

impl Delivery {
    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly-once",
            Self::AtLeastOnce => "at-least-once",
        }
    }
}

/// Whether and how the relay creates topics.
#[derive(Clone, Debug)]
pub struct TopicOptions {
    /// Create a topic when its first event arrives.
    pub create: bool,
    /// Partitions of a created topic; `None` is the broker's default.
    pub partitions: Option<i32>,
    /// Replicas of a created topic; `None` is the broker's default.
    pub replication: Option<i32>,
}

/// How long topics that cannot be used are waited for, and how many are created.
#[derive(Clone, Copy, Debug)]
pub struct TopicLimits {
    /// How long a topic that is missing, forbidden or otherwise unusable is a reason against readiness. Its events are set aside at once
    /// and follow in order when it can be used; after this time they count as parked. A minute is more than a deployment needs that
    /// creates topic and ACL beside the relay, and half of it is soon enough for an alarm.
    pub give_up_after: Duration,
    /// Most topics that are created in a minute. Types are data: one insert with an id in place of a type would fill the cluster
    /// otherwise. A hundred are more than a service has, and take the broker ten seconds.
    pub create_max_per_minute: u32,
}

impl Default for TopicLimits {
    fn default() -> Self {
        Self { give_up_after: Duration::from_secs(30), create_max_per_minute: 100 }
    }
}

/// What becomes of an event that can never be delivered: no topic can have its name, it is larger than a record may be, or the broker refuses it
/// for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUndeliverable {
    /// It waits, with every later event of its aggregate, until somebody decides; other aggregates go on. Not for a Debezium table: nothing
    /// keeps its rows.
    Park,
    /// It goes to a topic of dead letters with the reason; its aggregate goes on without it.
    DeadLetter,
    /// The relay stops before it.
    Stop,
}

/// What becomes of events that cannot be delivered, and how many may wait.
#[derive(Clone, Debug)]
pub struct UndeliverableOptions {
    /// What becomes of one.
    pub policy: OnUndeliverable,
    /// The topic of dead letters: text, with `{topic}` for the one the event was for.
    pub dead_letter_topic: String,
    /// Most events of one aggregate that are listed one by one. Those after them are parked as one range of the outbox.
    pub parked_per_aggregate_max: usize,
    /// Most events and ranges that are parked in all, without those that wait for a topic. The relay reads no further before there is
    /// room, and is not ready: so many are no single bad event. From half of it on what waits behind another event is part of a range.
    /// Bounds memory: at most a key and 100 bytes each.
    pub parked_max: usize,
}

impl Default for UndeliverableOptions {
    fn default() -> Self {
        Self {
            policy: OnUndeliverable::Park,
            dead_letter_topic: "{topic}.dead".into(),
            parked_per_aggregate_max: 10_000,
            parked_max: 100_000,
        }
    }
}

/// Everything a relay is told.
#[derive(Clone)]
pub struct RelayOptions {
    /// The relay's name: its slot, its lease and its row in `tidings.relay` carry it. Lower case letters, digits, underscore, at most 40.
    pub name: String,
    /// The database that holds the outbox.
    pub database: crate::postgres::Settings,
    /// The brokers.
    pub kafka: crate::kafka::Settings,
    /// The schema of the outbox.
    pub schema: String,
    /// The outbox is a table that was made for Debezium's EventRouter; `tidings.outbox` unless given. Events that cannot
    /// be delivered are not parked then: choose another policy in `undeliverable`.
    pub debezium: Option<super::DebeziumOutbox>,
    /// Where events are read from.
    pub source: SourceKind,
    /// What a consumer may see twice.
    pub delivery: Delivery,
    /// How an event becomes a record.
    pub envelope: EnvelopeFormat,
    /// The topic of an event whose row names none: a template over `{aggregatetype}` and `{type}`.
    pub topic: String,
    /// The topic is this rewriting of the aggregate type, and not the template.
    pub topic_rewrite: Option<super::TopicRewrite>,
    /// `ce_source` of every record: who these events come from, a URI reference. If it is empty, it is `/tidings/<database>`, or
    /// `/tidings` for a relay that has published under that name before the database became part of it.
    pub event_source: String,
    /// Whether and how topics are created.
    pub topics: TopicOptions,
    /// How long topics are waited for, and how many are created.
    pub topic_limits: TopicLimits,
    /// What becomes of events that cannot be delivered.
    pub undeliverable: UndeliverableOptions,
    /// What is kept of the published events.
    pub retention: RetentionOptions,
    /// How long SIGTERM waits for what is in flight.
    pub shutdown_grace: Duration,
    /// How long events may be pending without an acknowledgement before the relay is not ready and warns. Longer than the
    /// election of a partition leader, shorter than two failed probes of an orchestrator (every 10 s by default).
    pub stall_after: Duration,
    /// Most events sent and not yet acknowledged. Bounds memory: about a kilobyte each beside its payload. More than 8,192 was not
    /// faster against a broker on the same machine; one that is 20 ms away still takes 400,000 a second.
    pub in_flight_events_max: usize,
    /// Most bytes sent and not yet acknowledged. Bounds memory.
    pub in_flight_bytes_max: usize,
    /// The largest record that is sent, bytes. The topic's `max.message.bytes` must allow it.
    pub message_bytes_max: usize,
}

/// Whether this can be a relay's name: it becomes part of a slot's, for which Postgres allows lower case letters, digits and `_`.
pub(crate) fn is_relay_name(name: &str) -> bool {
    (1..=40).contains(&name.len()) && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// Whether dead letters can go there: with a topic's name for `{topic}` it must be the name of another topic.
pub(crate) fn is_dead_letter_topic(template: &str) -> bool {
    let sample = template.replace("{topic}", "t");
    template != "{topic}" && crate::event::check_topic_name(&sample).is_ok() && !crate::event::is_reserved_topic(&sample)
}

/// The source of events of a database, if nothing else is configured.
pub(super) fn default_event_source(database: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    /// What a segment of a URI's path has as it is (RFC 3986, unreserved characters).
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    format!("{SOURCE_BEFORE_DATABASES}/{}", utf8_percent_encode(database, ENCODED))
}

/// The default from before the database became part of it.
pub(super) const SOURCE_BEFORE_DATABASES: &str = "/tidings";

impl RelayOptions {
    /// The table that events are read from: schema and name.
    pub(super) fn table(&self) -> (&str, &str) {
        self.debezium.as_ref().map_or((&self.schema, "outbox"), |outbox| (&outbox.schema, &outbox.table))
    }

    /// The same for SQL, in quotes.
    pub(super) fn quoted_table(&self) -> String {
        let (schema, table) = self.table();
        format!("\"{}\".\"{}\"", schema.replace('"', "\"\""), table.replace('"', "\"\""))
    }

    /// The publication that the operator names, instead of the relay's own.
    pub(super) fn configured_publication(&self) -> Option<&str> {
        self.debezium.as_ref().and_then(|outbox| outbox.publication.as_deref())
    }

    /// The defaults for this database and these brokers.
    pub fn new(database: crate::postgres::Settings, kafka: crate::kafka::Settings) -> Self {
        Self {
            name: "tidings".into(),
            database,
            kafka,
            schema: "tidings".into(),
            debezium: None,
            source: SourceKind::Auto,
            delivery: Delivery::ExactlyOnce,
            envelope: EnvelopeFormat::CloudEvents,
            topic: "{aggregatetype}".into(),
            topic_rewrite: None,
            event_source: String::new(),
            topics: TopicOptions { create: false, partitions: None, replication: None },
            topic_limits: TopicLimits::default(),
            undeliverable: UndeliverableOptions::default(),
            retention: RetentionOptions::default(),
            shutdown_grace: Duration::from_secs(10),
            stall_after: Duration::from_secs(15),
            in_flight_events_max: 4_096,
            in_flight_bytes_max: 8 << 20,
            message_bytes_max: 1_048_576,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_source_names_the_database() {
        for (database, source) in
            [("shop", "/tidings/shop"), ("Shop 2", "/tidings/Shop%202"), ("a/b", "/tidings/a%2Fb"), ("ä", "/tidings/%C3%A4")]
        {
            assert_eq!(default_event_source(database), source);
        }
    }
}
