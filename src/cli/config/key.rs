//! Every key of the configuration, once: the file, the environment, the flags, `--help` and the reference in
//! `docs/configuration.md` are all read off this table.

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name in the file, `section.key`.
    pub(crate) path: &'static str,
    /// Its flag, without the dashes.
    pub(crate) flag: &'static str,
    /// A variable other programs use too; `TIDINGS_<SECTION>_<KEY>` wins over it.
    pub(crate) env_shared: Option<&'static str>,
    /// What may be written.
    pub(crate) kind: Kind,
    /// What holds when nothing is written, as it would be written; `None`: nothing does.
    pub(crate) default: Option<&'static str>,
    /// What it decides, for the operator.
    pub(crate) help: &'static str,
}

/// What may be written as the value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string.
    Text,
    /// A string that holds a password and is never printed as it is.
    Url,
    /// A string, or an array of strings that are joined with commas.
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
    ($($name:ident = $path:literal, $flag:literal, $shared:expr, $kind:expr, $default:expr, $help:literal;)*) => {
        $(#[doc = $help] pub(crate) static $name: Key = Key {
            path: $path, flag: $flag, env_shared: $shared, kind: $kind, default: $default, help: $help,
        };)*
        /// Every key, in the order in which they are shown.
        pub(crate) static KEYS: &[&Key] = &[$(&$name),*];
    };
}

keys! {
    NAME = "name", "name", None, Kind::Text, Some("tidings"),
        "Name of the relay: its slot, its lease and its row in the relay table carry it. Lower case letters, digits and _, at most 40";
    SCHEMA = "schema", "schema", None, Kind::Text, Some("tidings"),
        "Schema that holds the outbox";
    SOURCE = "source", "source", None, Kind::Choice(&["auto", "wal", "poll"]), Some("auto"),
        "Where events are read from: auto streams the write-ahead log, and reads the table while behind or where there is no logical replication; wal; poll is the table alone";
    DELIVERY = "delivery", "delivery", None, Kind::Choice(&["exactly-once", "at-least-once"]), Some("exactly-once"),
        "What a consumer may see twice: nothing, if it reads committed records; at-least-once repeats what was in flight when a relay died";
    OUTBOX_TABLE = "outbox.table", "outbox-table", None, Kind::Text, None,
        "A table made for Debezium's EventRouter that is read instead of tidings.outbox, as schema.name in Postgres's letters: docs/from-debezium.md";
    OUTBOX_COLUMNS = "outbox.columns", "outbox-columns", None, Kind::List, None,
        "Columns of that table with other names than Debezium's defaults: field=column of id, aggregatetype, aggregateid, type, payload, timestamp";
    OUTBOX_ADDITIONAL = "outbox.additional", "outbox-additional", None, Kind::List, None,
        "Columns of that table that are sent too, as in table.fields.additional.placement: column:header[:alias] or column:envelope[:alias]";
    OUTBOX_EXPAND_JSON = "outbox.expand_json", "outbox-expand-json", None, Kind::Boolean, Some("false"),
        "Beside columns in the envelope a JSON payload is JSON, not a string with JSON in it";
    OUTBOX_ROWS = "outbox.rows", "outbox-rows", None, Kind::Choice(&["kept", "deleted"]), Some("kept"),
        "Whether rows of that table stay. If they are deleted by whoever inserted them only the log is read";
    OUTBOX_EXISTING = "outbox.existing", "outbox-existing", None, Kind::Choice(&["publish", "leave"]), Some("publish"),
        "What becomes of rows that are there when the relay begins";
    OUTBOX_PUBLICATION = "outbox.publication", "outbox-publication", None, Kind::Text, None,
        "Publication to read that table by; the relay makes its own unless given";
    OUTBOX_TAKES_OVER = "outbox.takes_over", "outbox-takes-over", None, Kind::Text, None,
        "Slot of the stopped connector whose place the relay takes at its first start";
    OUTBOX_TAKEN_OFFSET = "outbox.taken_offset", "outbox-taken-offset", None, Kind::Text, None,
        "That connector's stored offset, as GET /connectors/NAME/offsets answers: with it nothing is repeated";
    SHUTDOWN_GRACE = "shutdown_grace", "shutdown-grace", None, Kind::Duration(1_000, 3_600_000), Some("10s"),
        "How long SIGTERM waits for what is in flight";
    STALL_AFTER = "stall_after", "stall-after", None, Kind::Duration(1_000, 3_600_000), Some("15s"),
        "How long events may be pending without an acknowledgement before the relay is not ready and warns";
    DATABASE_URL = "database.url", "database-url", Some("DATABASE_URL"), Kind::Url, None,
        "Postgres database that holds the outbox: postgres://user:password@host:5432/database?sslmode=verify-full";
    BROKERS = "kafka.brokers", "brokers", Some("KAFKA_BROKERS"), Kind::List, None,
        "Kafka brokers to start from: host:port, several separated by commas";
    MAX_MESSAGE_BYTES = "kafka.max_message_bytes", "max-message-bytes", None, Kind::Bytes(1_000, 1_000_000_000), Some("1MiB"),
        "Largest record that is sent; the topic's max.message.bytes must allow it";
    TOPICS_CREATE = "topics.create", "create-topics", None, Kind::Boolean, Some("false"),
        "Create a topic when its first event arrives";
    TOPICS_PARTITIONS = "topics.partitions", "topic-partitions", None, Kind::Integer(1, 100_000), None,
        "Partitions of a created topic; the broker's default unless given";
    TOPICS_REPLICATION = "topics.replication", "topic-replication", None, Kind::Integer(1, 32_767), None,
        "Replicas of a created topic; the broker's default unless given";
    TOPICS_GIVE_UP_AFTER = "topics.give_up_after", "topics-give-up-after", None, Kind::Duration(1_000, 86_400_000), Some("30s"),
        "How long a topic that cannot be used is waited for before its events count as parked; they follow in order when it can be used";
    TOPICS_CREATE_MAX = "topics.create_max_per_minute", "topics-create-max-per-minute", None, Kind::Integer(1, 100_000), Some("100"),
        "Most topics that are created in a minute; the events of others are set aside until it is their turn";
    TOPIC = "routing.topic", "topic", None, Kind::Text, Some("{aggregatetype}"),
        "Topic of an event whose row names none: text with {aggregatetype} and {type}";
    REGEX = "routing.regex", "topic-regex", None, Kind::Text, None,
        "Topic by rewriting the aggregate type instead of the template, as route.topic.regex; `(?<routedByValue>.*)` if only the replacement is given";
    REPLACEMENT = "routing.replacement", "topic-replacement", None, Kind::Text, None,
        "As route.topic.replacement: $1, ${name}; outbox.event.${routedByValue} if only the expression is given";
    ENVELOPE = "routing.envelope", "envelope", None, Kind::Choice(&["cloudevents", "cloudevents-structured", "debezium"]), Some("cloudevents"),
        "How an event becomes a record";
    EVENT_SOURCE = "routing.event_source", "event-source", None, Kind::Text, None,
        "ce_source of every record: who the events come from, a URI reference; /tidings/DATABASE unless given, or /tidings if the relay published before that was the default";
    ON_UNDELIVERABLE = "undeliverable.policy", "on-undeliverable", None, Kind::Choice(&["park", "dead-letter", "stop"]), Some("park"),
        "What becomes of an event that can never be delivered: it waits with its aggregate, goes to a topic of dead letters, or stops the relay. Beside outbox.table it stops unless dead-letter is written";
    DEAD_LETTER_TOPIC = "undeliverable.dead_letter_topic", "dead-letter-topic", None, Kind::Text, Some("{topic}.dead"),
        "Topic of dead letters: text with {topic} for the one the event was for";
    PARKED_PER_AGGREGATE = "undeliverable.parked_events_per_aggregate", "parked-events-per-aggregate", None, Kind::Integer(1, 1_000_000), Some("10000"),
        "Most events of one aggregate that are parked one by one; later ones are parked as one range";
    PARKED = "undeliverable.parked_events", "parked-events", None, Kind::Integer(1, 10_000_000), Some("100000"),
        "Most events and ranges that are parked in all; the relay reads no further before there is room. Bounds memory";
    IN_FLIGHT_EVENTS = "limits.in_flight_events", "in-flight-events", None, Kind::Integer(1, 1_000_000), Some("4096"),
        "Most events sent and not yet acknowledged; bounds memory";
    IN_FLIGHT_BYTES = "limits.in_flight_bytes", "in-flight-bytes", None, Kind::Bytes(65_536, 1 << 31), Some("8MiB"),
        "Most bytes sent and not yet acknowledged; bounds memory";
    RETENTION = "retention.enabled", "retention", None, Kind::Boolean, Some("true"),
        "Delete published events from the outbox, once every relay of the database has published them";
    RETENTION_KEEP = "retention.keep", "retention-keep", None, Kind::Duration(1_000, 315_360_000_000), Some("7d"),
        "How long a published event is kept after it happened; the default is as long as Kafka keeps it by default";
    RETENTION_MAX_SIZE = "retention.max_size", "retention-max-size", None, Kind::Bytes(1 << 20, 1 << 50), None,
        "About how many bytes of rows are kept, without indexes: beyond it published events go before their time";
    LISTEN = "admin.listen", "listen", None, Kind::Text, Some("127.0.0.1:9464"),
        "Address of health and metrics, or off. They have no authentication: think before listening beyond loopback";
    LOG_FORMAT = "log.format", "log-format", None, Kind::Choice(&["human", "json"]), Some("human"),
        "How log lines are written, to stderr";
    LOG_LEVEL = "log.level", "log-level", None, Kind::Text, Some("info"),
        "error, warn, info, debug, trace or off; per target too: info,librdkafka=debug";
}

/// The table of librdkafka properties in the file.
pub(crate) const PROPERTIES: &str = "kafka.properties";
/// The flag that sets one of them.
pub(crate) const PROPERTY_FLAG: &str = "kafka-property";
/// The environment's prefix for them; `SASL_PASSWORD` after it is `sasl.password`.
pub(crate) const PROPERTIES_ENV: &str = "TIDINGS_KAFKA_PROPERTIES_";
/// The variable that names the file.
pub(crate) const CONFIG_ENV: &str = "TIDINGS_CONFIG";

impl Key {
    /// The key of this name in the file.
    pub(crate) fn find(path: &str) -> Option<&'static Key> {
        KEYS.iter().copied().find(|key| key.path == path)
    }

    /// Its own variable: `TIDINGS_KAFKA_BROKERS` for `kafka.brokers`.
    pub(crate) fn env(&self) -> String {
        format!(
            "TIDINGS_{}",
            self.path.replace('.', "_").to_ascii_uppercase()
        )
    }
}

impl Kind {
    /// What may be written, in words.
    pub(crate) fn expected(self) -> String {
        match self {
            Kind::Text | Kind::Url => "a string".into(),
            Kind::List => "a string, or an array of strings".into(),
            Kind::Choice(words) => match words {
                [word] => format!("{word}, the only choice so far"),
                _ => format!("one of {}", words.join(", ")),
            },
            Kind::Boolean => "true or false".into(),
            Kind::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Duration(least, most) => {
                format!(
                    "a duration such as \"10s\" (units ms, s, m, h, d, w; also 1h30m) from {} to {}",
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
