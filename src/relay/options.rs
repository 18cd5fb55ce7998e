//! Options of a relay, each with its default and the reason for it.

pub(crate) mod debezium;

use std::time::Duration;

use super::RetentionOptions;
use crate::kafka::EnvelopeFormat;

/// Source of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceKind {
    /// The log at its head, and the table while the relay is behind. The table is then twice as
    /// fast and costs the server less. Without logical replication, only the table.
    Auto,
    /// The write-ahead log (logical replication), in commit order. Events that the log does not
    /// contain (before the first start, after a lost slot) come from the table.
    Wal,
    /// Only the table. Needs neither logical replication nor a slot.
    Poll,
}

/// Delivery guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryGuarantee {
    /// Consumers with `isolation.level=read_committed` see each event once: events and position are
    /// committed to Kafka together.
    ExactlyOnce,
    /// Events in flight at the end of a relay may be sent again.
    AtLeastOnce,
}

impl DeliveryGuarantee {
    /// Returns the name of the guarantee in the configuration.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly-once",
            Self::AtLeastOnce => "at-least-once",
        }
    }
}

/// Creation of topics by the relay.
#[derive(Clone, Debug)]
pub struct TopicOptions {
    /// Create a topic when its first event arrives.
    pub create: bool,
    /// Partitions of a created topic; `None` is the broker's default.
    pub partitions: Option<i32>,
    /// Replicas of a created topic; `None` is the broker's default.
    pub replication: Option<i32>,
}

/// Limits for topics that cannot be used and for the creation of topics.
#[derive(Clone, Copy, Debug)]
pub struct TopicLimits {
    /// Time for which a missing, forbidden or otherwise unusable topic makes the relay not ready.
    /// The relay sets the topic's events aside at once, and publishes them in order when the topic
    /// becomes usable. After this time the events count as parked. Defaults to 30 s: a deployment
    /// that creates the topic and its ACL beside the relay takes less than a minute, and half a
    /// minute is soon enough for an alert.
    pub give_up_after: Duration,
    /// Maximum number of topics created per minute. Types are data: inserts with an id in place of
    /// a type would otherwise fill the cluster with topics. Defaults to 100, which is more than a
    /// service uses; the broker needs ten seconds to create them.
    pub create_max_per_minute: u32,
}

impl Default for TopicLimits {
    fn default() -> Self {
        Self {
            give_up_after: Duration::from_secs(30),
            create_max_per_minute: 100,
        }
    }
}

/// Policy for an event that can never be delivered: its topic name is invalid, it exceeds the
/// maximum record size, or the broker refuses it permanently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUndeliverable {
    /// The event and every later event of its aggregate wait for an operator's decision. Other
    /// aggregates continue. Not available for a Debezium table, whose rows may be deleted at any
    /// time.
    Park,
    /// The event goes to a dead letter topic with the reason. Its aggregate continues without it.
    DeadLetter,
    /// The relay stops before the event.
    Stop,
}

/// Handling of events that cannot be delivered, and limits on waiting events.
#[derive(Clone, Debug)]
pub struct UndeliverableOptions {
    /// The policy.
    pub policy: OnUndeliverable,
    /// Name of the dead letter topic. `{topic}` stands for the topic of the event.
    pub dead_letter_topic: String,
    /// Maximum number of events of one aggregate that are listed one by one. Later events are
    /// parked as one range of the outbox.
    pub parked_per_aggregate_max: usize,
    /// Maximum number of parked events and ranges in total, without those that wait for a topic. At
    /// the limit, the relay stops reading and is not ready, because the cause is then unlikely to
    /// be a single bad event. Above half of the limit, events behind an undeliverable event become
    /// part of a range. Bounds memory: at most a key and 100 bytes each.
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

/// Options of a relay.
#[derive(Clone)]
pub struct RelayOptions {
    /// Name of the relay, used for its slot, its lease and its row in `tidings.relay`. At most 40
    /// lower case letters, digits and underscores.
    pub name: String,
    /// The database that holds the outbox.
    pub database: crate::postgres::DatabaseSettings,
    /// The brokers.
    pub kafka: crate::kafka::Settings,
    /// The schema of the outbox.
    pub schema: String,
    /// A table for Debezium's EventRouter that serves as the outbox. Defaults to `tidings.outbox`.
    /// Undeliverable events of such a table are not parked: choose another policy in
    /// `undeliverable`.
    pub debezium: Option<super::DebeziumOutbox>,
    /// Source of events.
    pub source: SourceKind,
    /// Delivery guarantee.
    pub delivery: DeliveryGuarantee,
    /// Format of records.
    pub envelope: EnvelopeFormat,
    /// Creates a span of OpenTelemetry for each sent event whose trace is sampled, with the
    /// process's tracer provider. Has an effect with the feature `otel`.
    pub trace: bool,
    /// Topic template over `{aggregatetype}` and `{type}`, for events whose row names no topic.
    pub topic: String,
    /// Rewrite rule that derives the topic from the aggregate type. Replaces the template.
    pub topic_rewrite: Option<super::TopicRewrite>,
    /// `ce_source` of every record, a URI reference that identifies the origin of the events. If it
    /// is empty, the relay uses `/tidings/<database>`, or `/tidings` if it already published under
    /// that name in an earlier version.
    pub event_source: String,
    /// Creation of topics.
    pub topics: TopicOptions,
    /// Limits for unusable topics and for the creation of topics.
    pub topic_limits: TopicLimits,
    /// Handling of events that cannot be delivered.
    pub undeliverable: UndeliverableOptions,
    /// Retention of published events.
    pub retention: RetentionOptions,
    /// Maximum time for which SIGTERM waits for events in flight.
    pub shutdown_grace: Duration,
    /// Time for which events may be pending without an acknowledgement. After it, the relay is not
    /// ready and warns. Defaults to 15 s: longer than the election of a partition leader, and
    /// shorter than two failed probes of an orchestrator (every 10 s by default).
    pub stall_after: Duration,
    /// Maximum number of events that are sent and not yet acknowledged. Bounds memory: about a
    /// kilobyte each, plus the payload. More than 8,192 was not faster with a broker on the same
    /// machine. With a broker 20 ms away, 8,192 still allow 400,000 events per second.
    pub in_flight_events_max: usize,
    /// Maximum number of bytes that are sent and not yet acknowledged. Bounds memory.
    pub in_flight_bytes_max: usize,
    /// Maximum size of a record in bytes. The topic's `max.message.bytes` must allow it.
    pub message_bytes_max: usize,
}

/// Returns `true` if `name` is a valid relay name. It becomes part of a slot name, where Postgres
/// allows lower case letters, digits and `_`.
pub(crate) fn is_relay_name(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// Returns `true` if the template yields valid dead letter topics: with a topic's name for
/// `{topic}`, the result must be a valid name of another topic.
pub(crate) fn is_dead_letter_topic(template: &str) -> bool {
    let sample = template.replace("{topic}", "t");
    template != "{topic}"
        && crate::event::check_topic_name(&sample).is_ok()
        && !crate::event::is_reserved_topic(&sample)
}

/// Returns the default event source of a database.
pub(super) fn default_event_source(database: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    /// Characters to encode in a segment of a URI's path: all but the unreserved ones (RFC 3986).
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    format!(
        "{SOURCE_BEFORE_DATABASES}/{}",
        utf8_percent_encode(database, ENCODED)
    )
}

/// The default of versions that did not include the database.
pub(super) const SOURCE_BEFORE_DATABASES: &str = "/tidings";

impl RelayOptions {
    /// Returns the schema and the name of the table that events are read from.
    pub(super) fn table(&self) -> (&str, &str) {
        self.debezium
            .as_ref()
            .map_or((&self.schema, "outbox"), |outbox| {
                (&outbox.schema, &outbox.table)
            })
    }

    /// Returns the same table as a quoted SQL identifier.
    pub(super) fn quoted_table(&self) -> String {
        let (schema, table) = self.table();
        format!(
            "\"{}\".\"{}\"",
            schema.replace('"', "\"\""),
            table.replace('"', "\"\"")
        )
    }

    /// Returns the publication that the operator configured instead of the relay's own.
    pub(super) fn configured_publication(&self) -> Option<&str> {
        self.debezium
            .as_ref()
            .and_then(|outbox| outbox.publication.as_deref())
    }

    /// Returns the default options for this database and these brokers.
    pub fn new(database: crate::postgres::DatabaseSettings, kafka: crate::kafka::Settings) -> Self {
        Self {
            name: "tidings".into(),
            database,
            kafka,
            schema: "tidings".into(),
            debezium: None,
            source: SourceKind::Auto,
            delivery: DeliveryGuarantee::ExactlyOnce,
            envelope: EnvelopeFormat::CloudEvents,
            trace: false,
            topic: "{aggregatetype}".into(),
            topic_rewrite: None,
            event_source: String::new(),
            topics: TopicOptions {
                create: false,
                partitions: None,
                replication: None,
            },
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
        for (database, source) in [
            ("shop", "/tidings/shop"),
            ("Shop 2", "/tidings/Shop%202"),
            ("a/b", "/tidings/a%2Fb"),
            ("ä", "/tidings/%C3%A4"),
        ] {
            assert_eq!(default_event_source(database), source);
        }
    }
}
