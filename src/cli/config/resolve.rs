//! Merges the layers into the effective configuration, or returns all of its errors.
//!
//! | file | content |
//! |---|---|
//! | `effective` | the effective configuration |
//! | `kafka` | brokers and librdkafka properties |
//! | `entries` | the printable form, without secrets |

mod effective;
mod entries;
mod kafka;

use std::collections::BTreeMap;

use self::entries::shown;
pub(crate) use self::{
    effective::{Config, LogFormat},
    entries::Entry,
};
use super::fault::{Fault, Place};
use super::key::{self, KEYS, Key, Kind};
use super::layer::Layer;
use super::validate::{self, Invalid};
use super::value::{self, Meant, Written};
use crate::postgres;

/// Settings that a command requires.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// `database.url`.
    pub(crate) database: Need,
    /// `kafka.brokers`.
    pub(crate) brokers: Need,
}

/// Use of a service by a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The command does not use the service.
    Unused,
    /// The command uses the service if its address is configured.
    Optional,
    Required,
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
                Err(problem) => self.wrong(key, problem.to_string(), remedy(key.kind, written)),
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

    fn database(&mut self, needed: Need) -> Option<postgres::DatabaseSettings> {
        if needed == Need::Unused {
            return None;
        }
        let Some(Meant::Text(url)) = self.meant.get(key::DATABASE_URL.path) else {
            if needed == Need::Required {
                self.missing(&key::DATABASE_URL);
            }
            return None;
        };
        match postgres::DatabaseSettings::parse(url) {
            Ok(settings) => Some(settings),
            Err(error) => {
                let remedy = "correct it; the form is \
                              postgres://user:password@host:5432/database?sslmode=verify-full";
                self.wrong(&key::DATABASE_URL, error.to_string(), remedy.into());
                None
            }
        }
    }

    fn missing(&mut self, key: &'static Key) {
        // A value of the wrong type, or a file that cannot be read, has already been reported.
        let is_reported = self.faults.iter().any(|fault| fault.key == key.path);
        if is_reported || self.written.contains_key(key.path) {
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
