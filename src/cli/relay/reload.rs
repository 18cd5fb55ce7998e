//! SIGHUP: reads the configuration again and applies the log level.
//!
//! All other settings are fixed for the lifetime of a relay. The log names the changed keys, so
//! that an operator does not expect them to be in effect.

use std::collections::BTreeSet;

use super::NEEDS;
use crate::cli::args::Settings;
use crate::cli::config::{Config, Entry, Fault};
use crate::cli::{load, logging};

/// The key that is applied without a restart.
const APPLIED: &str = "log.level";

/// Reads the configuration again. An invalid one changes nothing.
pub(super) fn reload(settings: &Settings, running: &Config) {
    let config = match load(settings, NEEDS) {
        Ok(config) => config,
        Err(faults) => {
            let text = |fault: &Fault| format!("{}: {}", fault.key, fault.problem);
            let faults = faults.0.iter().map(text).collect::<Vec<_>>().join("; ");
            tracing::warn!(
                faults,
                "the new configuration has errors; the relay keeps the current one"
            );
            return;
        }
    };
    logging::set_level(&config.log_level);
    let waiting: Vec<_> = changed(&running.entries, &config.entries)
        .into_iter()
        .collect();
    if waiting.is_empty() {
        tracing::info!(level = config.log_level, "read the configuration again");
    } else {
        let keys = waiting.join(", ");
        tracing::warn!(
            level = config.log_level,
            keys,
            "read the configuration again; changes to these keys require a restart"
        );
    }
}

/// Returns the keys that differ and are not applied. Entries mask secrets, so a changed secret is
/// not detected.
fn changed(before: &[Entry], after: &[Entry]) -> BTreeSet<String> {
    let lacking = |some: &[Entry], others: &[Entry]| -> Vec<String> {
        let has = |entry: &&Entry| {
            others
                .iter()
                .any(|other| (&other.key, &other.value) == (&entry.key, &entry.value))
        };
        some.iter()
            .filter(|entry| !has(entry))
            .map(|entry| entry.key.clone())
            .collect()
    };
    let keys = [lacking(before, after), lacking(after, before)].concat();
    keys.into_iter().filter(|key| key != APPLIED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::config::Place;

    #[test]
    fn keys_that_need_a_restart_are_named() {
        let entry = |key: &str, value: Option<&str>| Entry {
            key: key.into(),
            value: value.map(str::to_owned),
            place: Place::Default,
        };
        let before = [
            entry("name", Some("a")),
            entry("log.level", Some("info")),
            entry("kafka.properties.linger.ms", Some("1")),
        ];
        let after = [
            entry("name", Some("b")),
            entry("log.level", Some("debug")),
            entry("source", Some("poll")),
        ];
        let keys: Vec<_> = changed(&before, &after).into_iter().collect();
        assert_eq!(keys, ["kafka.properties.linger.ms", "name", "source"]);
        assert!(changed(&before, &before).is_empty());
    }
}
