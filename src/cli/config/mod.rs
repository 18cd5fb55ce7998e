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
mod validate;
mod value;

use std::path::{Path, PathBuf};

pub(crate) use self::resolve::{Config, Entry, LogFormat, Needs, resolve};
pub(crate) use fault::{Fault, Faults, Place};
pub(crate) use key::{BROKERS, CONFIG_ENV, KEYS, Key, Kind, PROPERTY_FLAG};
pub(crate) use layer::Layer;

/// Longest duration of a command argument in milliseconds, which is older than any event.
const TEN_YEARS: u64 = 10 * 365 * 86_400_000;

/// Parses a duration that is an argument of a command rather than a setting.
///
/// # Errors
///
/// Returns a description of the valid durations.
pub(crate) fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let kind = Kind::Duration(0, TEN_YEARS);
    match value::read(kind, &value::Written::Word(text.into())) {
        Ok(value::Meant::Number(milliseconds)) => {
            Ok(std::time::Duration::from_millis(milliseconds))
        }
        _ => Err(format!("write {}", kind.expected())),
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
            Ok(text) => Layer::of_file(&path, &text),
            Err(error) => Layer {
                faults: vec![unreadable(&path, place, &error)],
                ..Layer::default()
            },
        });
    }
    layers.push(Layer::of_environment(environment));
    layers.push(flags);
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
