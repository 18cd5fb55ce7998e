//! The configuration. Flags override the environment, which overrides the file.
//!
//! Each [`Layer`] holds the values that were given and their places. [`resolve`] merges the layers
//! and interprets the values. Neither does any I/O. All errors of all layers are reported
//! together.

mod debezium;
mod fault;
mod key;
mod layer;
#[cfg(test)]
mod reference;
mod resolve;
pub(crate) mod schema;
mod secret_file;
pub(crate) mod template;
mod validate;
mod value;

use std::path::{Path, PathBuf};

pub(crate) use self::resolve::{Config, Entry, LogFormat, Need, Needs, resolve};
pub(crate) use fault::{Fault, Faults, Place};
pub(crate) use key::{BROKERS, CONFIG_ENV, DATABASE_URL, KEYS, Key, Kind, LISTEN, PROPERTY_FLAG};
pub(crate) use layer::Layer;

/// Longest duration of a command argument in milliseconds, which is older than any event.
const TEN_YEARS: u64 = 10 * 365 * 86_400_000;

/// An argument is not a duration.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("write {}", .0.expected())]
pub(crate) struct DurationError(Kind);

/// Parses a duration that is an argument of a command rather than a setting.
///
/// # Errors
///
/// Returns [`DurationError`] with a description of the valid durations.
pub(crate) fn parse_duration(text: &str) -> Result<std::time::Duration, DurationError> {
    let kind = Kind::Duration(0, TEN_YEARS);
    match value::read(kind, &value::Written::Word(text.into())) {
        Ok(value::Meant::Number(milliseconds)) => {
            Ok(std::time::Duration::from_millis(milliseconds))
        }
        _ => Err(DurationError(kind)),
    }
}

/// Reads the layers and merges them.
///
/// # Errors
///
/// Returns every error in the configuration.
pub(crate) fn load(
    file: Option<&Path>,
    environment: &[(String, String)],
    flags: Layer,
    needs: Needs,
) -> Result<Config, Faults> {
    let named = environment
        .iter()
        .find(|(name, value)| name == CONFIG_ENV && !value.is_empty());
    let (file, place) = match (file, named) {
        (Some(file), _) => (Some(file.to_owned()), Some(Place::Flag("config"))),
        (None, Some((name, value))) => (
            Some(PathBuf::from(value)),
            Some(Place::Environment(name.clone())),
        ),
        (None, None) => (None, None),
    };
    let mut layers = Vec::new();
    if let Some(path) = file {
        layers.push(match std::fs::read_to_string(&path) {
            Ok(text) => secret_file::properties(Layer::of_file(&path, &text), secret_file::read),
            Err(error) => Layer {
                faults: vec![unreadable(&path, place, &error)],
                ..Layer::default()
            },
        });
    }
    layers.push(secret_file::layer(environment, secret_file::read));
    layers.push(secret_file::properties(flags, secret_file::read));
    resolve(layers, needs).map_err(Faults)
}

fn unreadable(path: &Path, place: Option<Place>, error: &std::io::Error) -> Fault {
    Fault {
        key: "config".into(),
        value: Some(format!("{:?}", path.display().to_string())),
        place,
        problem: format!("cannot be read: {error}"),
        remedy: "name an existing TOML file that this user may read".into(),
    }
}

#[cfg(test)]
mod tests;
