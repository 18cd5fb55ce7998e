//! The effective configuration.

use std::time::Duration;

use super::{Entry, Resolved};
use crate::{
    cli::config::{key, value::Meant},
    kafka, postgres,
    relay::{
        DebeziumOutbox, DeliveryGuarantee, EnvelopeFormat, OnUndeliverable, RelayOptions,
        RetentionOptions, SourceKind, TopicLimits, TopicOptions, TopicRewrite,
        UndeliverableOptions,
    },
};

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Text.
    Human,
    /// One JSON object per line.
    Json,
}

/// The effective configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Every value, without secrets.
    pub(crate) entries: Vec<Entry>,
    /// The database of the outbox. `Some` if the command requires it.
    pub(crate) database: Option<postgres::DatabaseSettings>,
    /// The brokers. `Some` if the command requires them.
    pub(crate) kafka: Option<kafka::Settings>,
    /// The relay's name.
    pub(crate) name: String,
    /// The outbox's schema.
    pub(crate) schema: String,
    /// The topic template.
    pub(crate) topic: String,
    /// The Debezium table to read instead of the outbox.
    pub(crate) debezium: Option<DebeziumOutbox>,
    /// Creation of topics.
    pub(crate) topics: TopicOptions,
    pub(crate) topic_limits: TopicLimits,
    /// Size limit of a record.
    pub(crate) message_bytes_max: usize,
    /// Address of health and metrics. `None` if it is `off`.
    pub(crate) listen: Option<String>,
    /// Time limit of draining.
    pub(crate) shutdown_grace: Duration,
    stall_after: Duration,
    /// Format of log lines.
    pub(crate) log_format: LogFormat,
    /// Log filter.
    pub(crate) log_level: String,
    pub(crate) topic_rewrite: Option<TopicRewrite>,
    pub(crate) retention: RetentionOptions,
    pub(crate) source: SourceKind,
    pub(crate) delivery: DeliveryGuarantee,
    envelope: EnvelopeFormat,
    pub(crate) event_source: String,
    pub(crate) undeliverable: UndeliverableOptions,
    in_flight_events_max: usize,
    in_flight_bytes_max: usize,
}

impl Config {
    /// Returns the options of the relay, or `None` without a database or brokers.
    pub(crate) fn relay_options(&self) -> Option<RelayOptions> {
        let mut options = RelayOptions::new(self.database.clone()?, self.kafka.clone()?);
        options.name = self.name.clone();
        options.schema = self.schema.clone();
        options.source = self.source;
        options.delivery = self.delivery;
        options.envelope = self.envelope;
        options.topic = self.topic.clone();
        options.topic_rewrite = self.topic_rewrite.clone();
        options.debezium = self.debezium.clone();
        options.event_source = self.event_source.clone();
        options.topics = self.topics.clone();
        options.topic_limits = self.topic_limits;
        options.undeliverable = self.undeliverable.clone();
        options.retention = self.retention.clone();
        options.shutdown_grace = self.shutdown_grace;
        options.stall_after = self.stall_after;
        options.in_flight_events_max = self.in_flight_events_max;
        options.in_flight_bytes_max = self.in_flight_bytes_max;
        options.message_bytes_max = self.message_bytes_max;
        Some(options)
    }
}

impl Resolved {
    /// Returns the configuration from the meanings of all keys.
    pub(super) fn config(
        &self,
        database: Option<postgres::DatabaseSettings>,
        kafka: Option<kafka::Settings>,
        (debezium, topic_rewrite): (Option<DebeziumOutbox>, Option<TopicRewrite>),
    ) -> Config {
        Config {
            debezium,
            topic_rewrite,
            entries: self.entries(database.as_ref()),
            database,
            kafka,
            name: self.text(&key::NAME),
            schema: self.text(&key::SCHEMA),
            topic: self.text(&key::TOPIC),
            topics: TopicOptions {
                create: self.meant.get(key::TOPICS_CREATE.path) == Some(&Meant::Boolean(true)),
                partitions: self.small(&key::TOPICS_PARTITIONS),
                replication: self.small(&key::TOPICS_REPLICATION),
            },
            topic_limits: TopicLimits {
                give_up_after: Duration::from_millis(self.number(&key::TOPICS_GIVE_UP_AFTER)),
                create_max_per_minute: u32::try_from(self.number(&key::TOPICS_CREATE_MAX))
                    .unwrap_or(u32::MAX),
            },
            message_bytes_max: self.count(&key::MAX_MESSAGE_BYTES),
            listen: Some(self.text(&key::LISTEN)).filter(|address| address != "off"),
            shutdown_grace: Duration::from_millis(self.number(&key::SHUTDOWN_GRACE)),
            stall_after: Duration::from_millis(self.number(&key::STALL_AFTER)),
            log_format: if self.text(&key::LOG_FORMAT) == "json" {
                LogFormat::Json
            } else {
                LogFormat::Human
            },
            log_level: self.text(&key::LOG_LEVEL),
            source: match self.text(&key::SOURCE).as_str() {
                "wal" => SourceKind::Wal,
                "poll" => SourceKind::Poll,
                _ => SourceKind::Auto,
            },
            delivery: if self.text(&key::DELIVERY) == "at-least-once" {
                DeliveryGuarantee::AtLeastOnce
            } else {
                DeliveryGuarantee::ExactlyOnce
            },
            envelope: match self.text(&key::ENVELOPE).as_str() {
                "cloudevents-structured" => EnvelopeFormat::CloudEventsStructured,
                "debezium" => EnvelopeFormat::Debezium,
                _ => EnvelopeFormat::CloudEvents,
            },
            event_source: self.text(&key::EVENT_SOURCE),
            undeliverable: UndeliverableOptions {
                policy: match self.text(&key::ON_UNDELIVERABLE).as_str() {
                    "dead-letter" => OnUndeliverable::DeadLetter,
                    "stop" => OnUndeliverable::Stop,
                    _ => OnUndeliverable::Park,
                },
                dead_letter_topic: self.text(&key::DEAD_LETTER_TOPIC),
                parked_per_aggregate_max: self.count(&key::PARKED_PER_AGGREGATE),
                parked_max: self.count(&key::PARKED),
            },
            in_flight_events_max: self.count(&key::IN_FLIGHT_EVENTS),
            in_flight_bytes_max: self.count(&key::IN_FLIGHT_BYTES),
            retention: RetentionOptions {
                enabled: self.meant.get(key::RETENTION.path) == Some(&Meant::Boolean(true)),
                keep: Duration::from_millis(self.number(&key::RETENTION_KEEP)),
                size_max: Some(self.number(&key::RETENTION_MAX_SIZE)).filter(|bytes| *bytes > 0),
            },
        }
    }
}
