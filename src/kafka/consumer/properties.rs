//! librdkafka properties of a group member.

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use super::Membership;
use crate::kafka::Settings;

/// Time after which the coordinator reassigns the partitions of a failed member. With the heartbeat
/// interval and a rebalance, the partitions are read again within 10 s. Brokers accept 6 s or more
/// by default (`group.min.session.timeout.ms`), and six heartbeats fit into it. The default of 45 s
/// is meant for brokers across networks.
const SESSION_TIMEOUT_MS: &str = "7000";

/// The maximum time until the other members notice a rebalance. The default of 3 s would lengthen
/// the standstill.
const HEARTBEAT_INTERVAL_MS: &str = "1000";

/// Properties that a member sets and a user cannot override, with their reasons.
const FIXED: &[(&str, &str)] = &[
    // Offsets are committed explicitly, with metadata about the records that are finished beyond
    // them.
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // Records of aborted transactions must not be read.
    ("isolation.level", "read_committed"),
    ("allow.auto.create.topics", "false"),
];

/// Properties that a member sets unless the settings override them.
const PREFERRED: &[(&str, &str)] = &[
    // Interval of librdkafka's checks of a full queue. The default of one second costs four fifths
    // of the throughput.
    ("fetch.queue.backoff.ms", "5"),
    // With the default of 500 ms, a request for one partition is held back while the queue of
    // another is empty.
    ("fetch.wait.max.ms", "50"),
    // Per partition, because each has its own queue; a response of 1 MB comes on top. 4,000 records
    // are handled in the 50 ms that a request may wait, at 80,000/s per partition. With 10,000
    // records, eight partitions used 40 MB more.
    ("queued.min.messages", "4000"),
    ("queued.max.messages.kbytes", "16384"),
    // Limits the time until new partitions are read. Missing topics are checked more often
    // (`src/subscriber/consume/missing_topics.rs`).
    ("topic.metadata.refresh.interval.ms", "30000"),
    ("reconnect.backoff.max.ms", "2000"),
    // The statistics contain the end of each partition.
    ("statistics.interval.ms", "5000"),
    ("log.connection.close", "false"),
    // librdkafka's counters for client metrics (KIP-714) share one lock, which every thread takes
    // for each record.
    ("enable.metrics.push", "false"),
];

/// Returns the client configuration of a member.
pub(super) fn client_config(settings: &Settings, membership: &Membership) -> ClientConfig {
    let mut config = settings.client_config_over(PREFERRED);
    for (name, value) in FIXED {
        config.set(*name, *value);
    }
    config.set("group.id", &membership.group);
    // With other values, the client skips records that were removed before they were read and
    // reports nothing. See `Change::OutOfRange`.
    config.set("auto.offset.reset", "error");
    if membership.broker_side {
        config.set("group.protocol", "consumer");
    } else {
        config.set("partition.assignment.strategy", "cooperative-sticky");
        // A static member is expected to return, so its partitions stay assigned to it for the
        // default time.
        if membership.instance.is_none() && config.get("session.timeout.ms").is_none() {
            config.set("session.timeout.ms", SESSION_TIMEOUT_MS);
            if config.get("heartbeat.interval.ms").is_none() {
                config.set("heartbeat.interval.ms", HEARTBEAT_INTERVAL_MS);
            }
        }
    }
    if let Some(instance) = &membership.instance {
        config.set("group.instance.id", instance);
    }
    // The log is the only source of topic ids. See `src/kafka/topic_ids.rs`.
    let debug = config.get("debug").filter(|own| !own.is_empty());
    let debug = debug.map_or_else(|| "topic".to_owned(), |own| format!("{own},topic"));
    config.set("debug", debug);
    config.set_log_level(RDKafkaLogLevel::Debug);
    config
}
