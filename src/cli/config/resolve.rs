//! Merges the layers into the effective configuration, or returns all of its errors.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fault::{Fault, Place};
use super::key::{self, KEYS, Key, Kind, PROPERTIES};
use super::layer::Layer;
use super::validate::{self, Invalid};
use super::value::{self, Meant, Written};
use crate::relay::{
    DebeziumOutbox, Delivery, EnvelopeFormat, OnUndeliverable, RelayOptions, RetentionOptions,
    SourceKind, TopicLimits, TopicOptions, TopicRewrite, UndeliverableOptions,
};
use crate::{kafka, postgres};

/// Settings that a command requires.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// `database.url`.
    pub(crate) database: bool,
    /// `kafka.brokers`.
    pub(crate) brokers: bool,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Text.
    Human,
    /// One JSON object per line.
    Json,
}

/// An effective value in printable form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its key in the file.
    pub(crate) key: String,
    /// The value without secrets. `None` if the key has neither a value nor a default.
    pub(crate) value: Option<String>,
    /// Source of the value.
    pub(crate) place: Place,
}

/// The effective configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Every value, without secrets.
    pub(crate) entries: Vec<Entry>,
    /// The database of the outbox. `Some` if the command requires it.
    pub(crate) database: Option<postgres::Settings>,
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
    topic_rewrite: Option<TopicRewrite>,
    retention: RetentionOptions,
    source: SourceKind,
    pub(crate) delivery: Delivery,
    envelope: EnvelopeFormat,
    event_source: String,
    undeliverable: UndeliverableOptions,
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

/// Merges the layers: the last layer that sets a key wins. Only the winning value is checked.
///
/// # Errors
///
/// Returns all errors of all layers and values.
pub(crate) fn resolve(layers: Vec<Layer>, needs: Needs) -> Result<Config, Vec<Fault>> {
    let mut resolved = Resolved::default();
    for layer in layers {
        resolved.faults.extend(layer.faults);
        resolved.written.extend(
            layer
                .values
                .into_iter()
                .map(|(key, written, place)| (key.path, (written, place))),
        );
        resolved.properties.extend(
            layer
                .properties
                .into_iter()
                .map(|(name, value, place)| (name, (value, place))),
        );
    }
    resolved.read();
    let database = resolved.database(needs.database);
    let kafka = resolved.kafka(needs.brokers);
    resolved.check_rules();
    resolved.check_together();
    let outbox = (resolved.debezium(), resolved.topic_rewrite());
    let config = resolved.config(database, kafka, outbox);
    match resolved.faults.is_empty() {
        true => Ok(config),
        false => Err(resolved.faults),
    }
}

#[derive(Default)]
pub(super) struct Resolved {
    pub(super) written: BTreeMap<&'static str, (Written, Place)>,
    properties: BTreeMap<String, (String, Place)>,
    pub(super) meant: BTreeMap<&'static str, Meant>,
    faults: Vec<Fault>,
}

impl Resolved {
    fn read(&mut self) {
        for key in KEYS {
            let default = key.default.map(|text| Written::Word(text.into()));
            let Some(written) = self
                .written
                .get(key.path)
                .map(|(written, _)| written)
                .or(default.as_ref())
            else {
                continue;
            };
            match value::read(key.kind, written) {
                Ok(meant) => drop(self.meant.insert(key.path, meant)),
                Err(problem) => self.wrong(key, problem, remedy(key.kind, written)),
            }
        }
    }

    fn check_rules(&mut self) {
        type Rule = fn(&str) -> Invalid;
        let rules: [(&'static Key, Rule); 7] = [
            (&key::NAME, validate::relay_name),
            (&key::SCHEMA, validate::schema),
            (&key::TOPIC, validate::topic_template),
            (&key::EVENT_SOURCE, validate::event_source),
            (&key::DEAD_LETTER_TOPIC, validate::dead_letter_topic),
            (&key::LISTEN, validate::listen),
            (&key::LOG_LEVEL, validate::log_level),
        ];
        for (key, rule) in rules {
            // A key without a meaning has already been reported.
            if let Some(Meant::Text(text)) = self.meant.get(key.path)
                && let Some((problem, remedy)) = rule(text)
            {
                self.wrong(key, problem, remedy);
            }
        }
    }

    /// Checks combinations of values.
    fn check_together(&mut self) {
        let (record, in_flight) = (
            self.number(&key::MAX_MESSAGE_BYTES),
            self.number(&key::IN_FLIGHT_BYTES),
        );
        if record > in_flight && in_flight > 0 {
            let problem = format!(
                "is less than kafka.max_message_bytes ({}), so the largest record could never \
                 be sent",
                value::show_bytes(record)
            );
            self.wrong(
                &key::IN_FLIGHT_BYTES,
                problem,
                format!("set it to at least {}", value::show_bytes(record)),
            );
        }
    }

    fn database(&mut self, needed: bool) -> Option<postgres::Settings> {
        if !needed {
            return None;
        }
        let Some(Meant::Text(url)) = self.meant.get(key::DATABASE_URL.path) else {
            self.missing(&key::DATABASE_URL);
            return None;
        };
        match postgres::Settings::parse(url) {
            Ok(settings) => Some(settings),
            Err(error) => {
                let remedy = "correct it; the form is \
                              postgres://user:password@host:5432/database?sslmode=verify-full";
                self.wrong(&key::DATABASE_URL, error.to_string(), remedy.into());
                None
            }
        }
    }

    /// Reports an error if `message.max.bytes` is set, because the relay sets it from its own key.
    /// Returns `true` if it is set.
    fn refuse_message_limit(&mut self) -> bool {
        const LIMIT: &str = "message.max.bytes";
        let Some((value, place)) = self.properties.get(LIMIT).cloned() else {
            return false;
        };
        let (problem, remedy) = (
            "is set by Tidings".to_owned(),
            "use kafka.max_message_bytes".to_owned(),
        );
        let key = format!("{PROPERTIES}.{LIMIT}");
        self.faults.push(Fault {
            key,
            value: Some(format!("{value:?}")),
            place: Some(place),
            problem,
            remedy,
        });
        true
    }

    fn kafka(&mut self, needed: bool) -> Option<kafka::Settings> {
        let properties = self
            .properties
            .iter()
            .map(|(name, (value, _))| (name.clone(), value.clone()))
            .collect();
        let settings = kafka::Settings {
            brokers: self.text(&key::BROKERS),
            properties,
        };
        let faults = settings.faults();
        let limited = self.refuse_message_limit();
        let sound = faults.is_empty() && !limited;
        for fault in faults {
            let place = self
                .properties
                .get(&fault.property)
                .map(|(_, place)| place.clone());
            let (problem, remedy) = match fault.reason.rsplit_once("; ") {
                Some((problem, remedy)) => (problem.to_owned(), remedy.to_owned()),
                None => (fault.reason, "change it or remove it".to_owned()),
            };
            let key = format!("{PROPERTIES}.{}", fault.property);
            self.faults.push(Fault {
                key,
                value: Some(format!("{:?}", fault.value)),
                place,
                problem,
                remedy,
            });
        }
        if !needed {
            return None;
        }
        if !self.meant.contains_key(key::BROKERS.path) {
            self.missing(&key::BROKERS);
            return None;
        }
        if let Some(problem) = settings.brokers_fault() {
            self.wrong(
                &key::BROKERS,
                problem,
                "write host:port, several separated by commas".into(),
            );
        }
        if let Some(problem) = sound.then(|| settings.combination_fault()).flatten() {
            let remedy = "change the property in the message".to_owned();
            self.faults.push(Fault {
                key: PROPERTIES.into(),
                value: None,
                place: None,
                problem: format!("are not a valid combination: {problem}"),
                remedy,
            });
        }
        Some(settings)
    }

    fn missing(&mut self, key: &'static Key) {
        // A value of the wrong type has already been reported.
        if self.written.contains_key(key.path) {
            return;
        }
        let variable = key.env_shared.map_or_else(|| key.env(), str::to_owned);
        let remedy = format!(
            "set --{}, the variable {variable}, or {} in the configuration file",
            key.flag, key.path
        );
        self.faults.push(Fault {
            key: key.path.into(),
            value: None,
            place: None,
            problem: "is not set".into(),
            remedy,
        });
    }

    pub(super) fn wrong(&mut self, key: &'static Key, problem: String, remedy: String) {
        let (value, place) = match self.written.get(key.path) {
            Some((written, place)) => (shown(key.kind, written), place.clone()),
            None => (key.default.unwrap_or_default().to_owned(), Place::Default),
        };
        self.faults.push(Fault {
            key: key.path.into(),
            value: Some(value),
            place: Some(place),
            problem,
            remedy,
        });
    }

    pub(super) fn text(&self, key: &'static Key) -> String {
        match self.meant.get(key.path) {
            Some(Meant::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }

    fn number(&self, key: &'static Key) -> u64 {
        match self.meant.get(key.path) {
            Some(Meant::Number(number)) => *number,
            _ => 0,
        }
    }

    fn count(&self, key: &'static Key) -> usize {
        usize::try_from(self.number(key)).unwrap_or(usize::MAX)
    }

    fn small(&self, key: &'static Key) -> Option<i32> {
        self.meant
            .contains_key(key.path)
            .then(|| i32::try_from(self.number(key)).unwrap_or(i32::MAX))
    }

    fn config(
        &self,
        database: Option<postgres::Settings>,
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
                Delivery::AtLeastOnce
            } else {
                Delivery::ExactlyOnce
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

    fn entries(&self, database: Option<&postgres::Settings>) -> Vec<Entry> {
        let keys = KEYS.iter().map(|key| {
            let place = self
                .written
                .get(key.path)
                .map_or(Place::Default, |(_, place)| place.clone());
            let value = self
                .meant
                .get(key.path)
                .map(|meant| match (key.kind, meant) {
                    (Kind::Url, _) => database.map_or("***".into(), postgres::Settings::redacted),
                    (Kind::Duration(..), Meant::Number(number)) => value::show_duration(*number),
                    (Kind::Bytes(..), Meant::Number(number)) => value::show_bytes(*number),
                    (_, Meant::Number(number)) => number.to_string(),
                    (_, Meant::Boolean(value)) => value.to_string(),
                    (_, Meant::Text(text)) if text.contains('@') => "***".into(),
                    (_, Meant::Text(text)) => text.clone(),
                });
            Entry {
                key: key.path.into(),
                value,
                place,
            }
        });
        let properties = self.properties.iter().map(|(name, (value, place))| {
            let value = kafka::Settings::shown(name, value);
            Entry {
                key: format!("{PROPERTIES}.{name}"),
                value: Some(value.into()),
                place: place.clone(),
            }
        });
        keys.chain(properties).collect()
    }
}

/// Returns a value in printable form. Hides text that looks like credentials, which may have been
/// written to the wrong key.
fn shown(kind: Kind, written: &Written) -> String {
    let text = written.to_string();
    if kind == Kind::Url || looks_secret(&text) {
        "\"***\"".into()
    } else {
        text
    }
}

/// Returns `true` for text that contains `@`, as a URL with a user does, or a word for a secret, as
/// connection strings do.
fn looks_secret(text: &str) -> bool {
    const MARKS: [&str; 5] = ["@", "password", "passwd", "secret", "token"];
    let text = text.to_ascii_lowercase();
    MARKS.iter().any(|mark| text.contains(mark))
}

fn remedy(kind: Kind, written: &Written) -> String {
    let (Kind::Choice(words), Written::Word(text) | Written::String(text)) = (kind, written) else {
        return format!("write {}", kind.expected());
    };
    match super::layer::nearest(&text.to_ascii_lowercase(), words.iter().copied()) {
        Some(word) if words.len() > 1 => {
            format!("did you mean {word:?}? It is {}", kind.expected())
        }
        _ => format!("write {}", kind.expected()),
    }
}
