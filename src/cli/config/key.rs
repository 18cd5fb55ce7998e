//! Table of the configuration keys.
//!
//! The file, the environment, the flags, `--help` and the reference in `docs/configuration.md` are
//! all derived from this table.

/// A configuration key.
#[derive(Debug)]
pub(crate) struct Key {
    /// Name in the file, `section.key`.
    pub(crate) path: &'static str,
    /// Flag, without its dashes.
    pub(crate) flag: &'static str,
    /// A variable that other programs use too. `TIDINGS_<SECTION>_<KEY>` takes precedence over it.
    pub(crate) env_shared: Option<&'static str>,
    /// Type and range of the value.
    pub(crate) kind: Kind,
    /// Default, in the form in which it would be written. `None` if there is no default.
    pub(crate) default: Option<&'static str>,
    /// Description for the operator.
    pub(crate) help: &'static str,
}

/// Type and range of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string.
    Text,
    /// A string that may hold a password and is never printed unchanged.
    Url,
    /// A string, or an array of strings, which are joined with commas.
    List,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Boolean,
    /// A whole number within these bounds.
    Integer(i64, i64),
    /// `500ms`, `10s`, `2m`, `1h`, `7d`, `1w`, `1h30m`, within these bounds in milliseconds.
    Duration(u64, u64),
    /// `8MiB`, `512KiB`, `1MB` or a number of bytes, within these bounds.
    Bytes(u64, u64),
}

macro_rules! keys {
    ($(
        $name:ident = $path:literal, $flag:literal, $shared:expr, $kind:expr, $default:expr,
        $help:literal;
    )*) => {
        $(#[doc = $help] pub(crate) static $name: Key = Key {
            path: $path,
            flag: $flag,
            env_shared: $shared,
            kind: $kind,
            default: $default,
            help: $help,
        };)*
        /// Every key, in display order.
        pub(crate) static KEYS: &[&Key] = &[$(&$name),*];
    };
}

keys! {
    NAME = "name", "name", None, Kind::Text, Some("tidings"),
        "Name of the relay: identifies its slot, its lease and its row in the relay table; \
         lower-case letters, digits and _, at most 40 characters";
    SCHEMA = "schema", "schema", None, Kind::Text, Some("tidings"),
        "Schema that contains the outbox";
    SOURCE = "source", "source", None, Kind::Choice(&["auto", "wal", "poll"]), Some("auto"),
        "Source of the events: wal streams the write-ahead log, poll reads the table, auto streams \
         at the head of the log and reads the table while behind or without logical replication";
    DELIVERY = "delivery", "delivery", None,
        Kind::Choice(&["exactly-once", "at-least-once"]), Some("exactly-once"),
        "Delivery guarantee: exactly-once for consumers that read committed records; at-least-once \
         repeats the events that were in flight when a relay died";
    OUTBOX_TABLE = "outbox.table", "outbox-table", None, Kind::Text, None,
        "Table made for Debezium's EventRouter, read instead of tidings.outbox; written as \
         schema.name with Postgres's letter case (docs/from-debezium.md)";
    OUTBOX_COLUMNS = "outbox.columns", "outbox-columns", None, Kind::List, None,
        "Columns of that table whose names differ from Debezium's defaults; field=column with the \
         fields id, aggregatetype, aggregateid, type, payload, timestamp";
    OUTBOX_ADDITIONAL = "outbox.additional", "outbox-additional", None, Kind::List, None,
        "Further columns of that table to send, as in table.fields.additional.placement; \
         column:header[:alias] or column:envelope[:alias]";
    OUTBOX_EXPAND_JSON = "outbox.expand_json", "outbox-expand-json", None,
        Kind::Boolean, Some("false"),
        "Write a JSON payload as JSON rather than as a JSON string, if columns are placed in the \
         envelope";
    OUTBOX_ROWS = "outbox.rows", "outbox-rows", None,
        Kind::Choice(&["kept", "deleted"]), Some("kept"),
        "Whether the rows of that table are kept; if the program that inserts them also deletes \
         them, only the log is read";
    OUTBOX_EXISTING = "outbox.existing", "outbox-existing", None,
        Kind::Choice(&["publish", "leave"]), Some("publish"),
        "Treatment of the rows that exist at the first start of the relay; publish sends them, \
         leave skips them";
    OUTBOX_PUBLICATION = "outbox.publication", "outbox-publication", None, Kind::Text, None,
        "Publication through which that table is read; by default the relay creates its own";
    OUTBOX_TAKES_OVER = "outbox.takes_over", "outbox-takes-over", None, Kind::Text, None,
        "Slot of the stopped connector that the relay replaces at its first start";
    OUTBOX_TAKEN_OFFSET = "outbox.taken_offset", "outbox-taken-offset", None, Kind::Text, None,
        "Stored offset of that connector, as GET /connectors/NAME/offsets returns it; with it, no \
         event is repeated";
    SHUTDOWN_GRACE = "shutdown_grace", "shutdown-grace", None,
        Kind::Duration(1_000, 3_600_000), Some("10s"),
        "Maximum time after SIGTERM to wait for events in flight";
    STALL_AFTER = "stall_after", "stall-after", None, Kind::Duration(1_000, 3_600_000), Some("15s"),
        "Maximum time for pending events without an acknowledgement; after it, the relay is not \
         ready and logs a warning";
    DATABASE_URL = "database.url", "database-url", Some("DATABASE_URL"), Kind::Url, None,
        "Postgres database that contains the outbox: \
         postgres://user:password@host:5432/database?sslmode=verify-full";
    BROKERS = "kafka.brokers", "brokers", Some("KAFKA_BROKERS"), Kind::List, None,
        "Kafka brokers for the first connection: host:port, several separated by commas";
    MAX_MESSAGE_BYTES = "kafka.max_message_bytes", "max-message-bytes", None,
        Kind::Bytes(1_000, 1_000_000_000), Some("1MiB"),
        "Maximum size of a record; max.message.bytes of the topic must allow it";
    TOPICS_CREATE = "topics.create", "create-topics", None, Kind::Boolean, Some("false"),
        "Create a topic when its first event arrives";
    TOPICS_PARTITIONS = "topics.partitions", "topic-partitions", None,
        Kind::Integer(1, 100_000), None,
        "Partition count of created topics; defaults to the broker's setting";
    TOPICS_REPLICATION = "topics.replication", "topic-replication", None,
        Kind::Integer(1, 32_767), None,
        "Replication factor of created topics; defaults to the broker's setting";
    TOPICS_GIVE_UP_AFTER = "topics.give_up_after", "topics-give-up-after", None,
        Kind::Duration(1_000, 86_400_000), Some("30s"),
        "Time after which the events of an unusable topic count as parked; they follow in order \
         once the topic can be used";
    TOPICS_CREATE_MAX = "topics.create_max_per_minute", "topics-create-max-per-minute", None,
        Kind::Integer(1, 100_000), Some("100"),
        "Maximum number of topics created per minute; events of further topics are set aside until \
         their topic is created";
    TOPIC = "routing.topic", "topic", None, Kind::Text, Some("{aggregatetype}"),
        "Topic of an event whose row names no topic; text with {aggregatetype} and {type}";
    REGEX = "routing.regex", "topic-regex", None, Kind::Text, None,
        "Regular expression that rewrites the aggregate type to the topic, as route.topic.regex; \
         replaces the template, and is `(?<routedByValue>.*)` if only the replacement is given";
    REPLACEMENT = "routing.replacement", "topic-replacement", None, Kind::Text, None,
        "Replacement for that expression, as route.topic.replacement: $1, ${name}; \
         outbox.event.${routedByValue} if only the expression is given";
    ENVELOPE = "routing.envelope", "envelope", None,
        Kind::Choice(&["cloudevents", "cloudevents-structured", "debezium"]), Some("cloudevents"),
        "Format of the records";
    EVENT_SOURCE = "routing.event_source", "event-source", None, Kind::Text, None,
        "Value of ce_source in every record, a URI reference; defaults to /tidings/DATABASE, or to \
         /tidings if the relay already published with that earlier default";
    ON_UNDELIVERABLE = "undeliverable.policy", "on-undeliverable", None,
        Kind::Choice(&["park", "dead-letter", "stop"]), Some("park"),
        "Treatment of an event that can never be delivered: park keeps it and its aggregate \
         waiting, dead-letter sends it to a dead letter topic, stop stops the relay; with \
         outbox.table, the default is stop";
    DEAD_LETTER_TOPIC = "undeliverable.dead_letter_topic", "dead-letter-topic", None,
        Kind::Text, Some("{topic}.dead"),
        "Dead letter topic; text with {topic} for the topic of the event";
    PARKED_PER_AGGREGATE = "undeliverable.parked_events_per_aggregate",
        "parked-events-per-aggregate", None, Kind::Integer(1, 1_000_000), Some("10000"),
        "Maximum number of events of one aggregate that are parked one by one; later ones are \
         parked as one range";
    PARKED = "undeliverable.parked_events", "parked-events", None,
        Kind::Integer(1, 10_000_000), Some("100000"),
        "Maximum number of parked events and ranges in total, which bounds memory; at the limit, \
         the relay stops reading until there is room";
    IN_FLIGHT_EVENTS = "limits.in_flight_events", "in-flight-events", None,
        Kind::Integer(1, 1_000_000), Some("4096"),
        "Maximum number of events that were sent and not acknowledged, which bounds memory";
    IN_FLIGHT_BYTES = "limits.in_flight_bytes", "in-flight-bytes", None,
        Kind::Bytes(65_536, 1 << 31), Some("8MiB"),
        "Maximum size of the events that were sent and not acknowledged, which bounds memory";
    RETENTION = "retention.enabled", "retention", None, Kind::Boolean, Some("true"),
        "Delete published events from the outbox once every relay of the database has published \
         them";
    RETENTION_KEEP = "retention.keep", "retention-keep", None,
        Kind::Duration(1_000, 315_360_000_000), Some("7d"),
        "Time for which a published event is kept after it happened; the default equals Kafka's \
         default retention";
    RETENTION_MAX_SIZE = "retention.max_size", "retention-max-size", None,
        Kind::Bytes(1 << 20, 1 << 50), None,
        "Approximate maximum size of the rows without indexes; beyond it, published events are \
         deleted before their time";
    LISTEN = "admin.listen", "listen", None, Kind::Text, Some("127.0.0.1:9464"),
        "Address of health and metrics, or off; they have no authentication, so listen beyond \
         loopback only in a trusted network";
    LOG_FORMAT = "log.format", "log-format", None, Kind::Choice(&["human", "json"]), Some("human"),
        "Format of the log lines on stderr";
    LOG_LEVEL = "log.level", "log-level", None, Kind::Text, Some("info"),
        "Log level: error, warn, info, debug, trace or off; also per target, for example \
         info,librdkafka=debug";
}

/// The table of librdkafka properties in the file.
pub(crate) const PROPERTIES: &str = "kafka.properties";
/// The flag that sets a librdkafka property.
pub(crate) const PROPERTY_FLAG: &str = "kafka-property";
/// Prefix of the variables for librdkafka properties: the suffix `SASL_PASSWORD` sets
/// `sasl.password`.
pub(crate) const PROPERTIES_ENV: &str = "TIDINGS_KAFKA_PROPERTIES_";
/// The variable that names the file.
pub(crate) const CONFIG_ENV: &str = "TIDINGS_CONFIG";

impl Key {
    /// Returns the key with this name in the file.
    pub(crate) fn find(path: &str) -> Option<&'static Key> {
        KEYS.iter().copied().find(|key| key.path == path)
    }

    /// Returns the key's own variable: `TIDINGS_KAFKA_BROKERS` for `kafka.brokers`.
    pub(crate) fn env(&self) -> String {
        format!(
            "TIDINGS_{}",
            self.path.replace('.', "_").to_ascii_uppercase()
        )
    }
}

impl Kind {
    /// Describes the valid values.
    pub(crate) fn expected(self) -> String {
        match self {
            Kind::Text | Kind::Url => "a string".into(),
            Kind::List => "a string, or an array of strings".into(),
            Kind::Choice(words) => match words {
                [word] => format!("{word}, the only choice"),
                _ => format!("one of {}", words.join(", ")),
            },
            Kind::Boolean => "true or false".into(),
            Kind::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Duration(least, most) => {
                format!(
                    "a duration such as \"10s\" (units ms, s, m, h, d, w; also 1h30m) \
                     from {} to {}",
                    super::value::show_duration(least),
                    super::value::show_duration(most)
                )
            }
            Kind::Bytes(least, most) => {
                format!(
                    "a size such as \"8MiB\" (units B, kB, KiB, MB, MiB, GB, GiB) from {} to {}",
                    super::value::show_bytes(least),
                    super::value::show_bytes(most)
                )
            }
        }
    }
}
