//! Printable form of the configuration, without secrets.

use super::Resolved;
use crate::{
    cli::config::{
        fault::Place,
        key::{KEYS, Kind, PROPERTIES},
        value::{self, Meant, Written},
    },
    kafka, postgres,
};

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

impl Resolved {
    /// Returns every key and every property, without secrets.
    pub(super) fn entries(&self, database: Option<&postgres::DatabaseSettings>) -> Vec<Entry> {
        let keys = KEYS.iter().map(|key| {
            let place = self
                .written
                .get(key.path)
                .map_or(Place::Default, |(_, place)| place.clone());
            let value = self
                .meant
                .get(key.path)
                .map(|meant| match (key.kind, meant) {
                    (Kind::Url, _) => {
                        database.map_or("***".into(), postgres::DatabaseSettings::redacted)
                    }
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
pub(super) fn shown(kind: Kind, written: &Written) -> String {
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
