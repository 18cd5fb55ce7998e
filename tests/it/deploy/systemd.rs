//! The systemd unit.

use super::{Folder, run, text};
use crate::deploy::seconds;

const UNIT: &str = "deploy/systemd/tidings-relay.service";

/// Returns the value of a setting.
fn value<'t>(unit: &'t str, name: &str) -> &'t str {
    let line = unit.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.strip_prefix('='))
        .unwrap_or_else(|| panic!("the unit has no {name}"))
}

#[test]
fn systemd_accepts_the_unit() {
    let unit = text(UNIT);
    let program = "/usr/local/bin/tidings";
    assert!(unit.contains(program), "{unit}");
    let unit = unit.replace(program, env!("CARGO_BIN_EXE_tidings"));
    let folder = Folder::new();
    let file = folder.file("tidings-relay.service", &unit);
    let remedy = "on Debian: apt-get install systemd";
    let Some(text) = run("systemd-analyze", &["verify", &file], remedy) else {
        return;
    };
    // Unknown settings are reported, but are not failures.
    let ours: Vec<_> = text
        .lines()
        .filter(|line| line.contains("tidings-relay"))
        .collect();
    assert!(ours.is_empty(), "{ours:#?}");
}

#[test]
fn the_unit_stops_later_than_the_relay_and_leaves_faults_of_an_operator_alone() {
    let unit = text(UNIT);
    let stop: u64 = value(&unit, "TimeoutStopSec").parse().expect("seconds");
    // The default of `shutdown_grace`, and two seconds to report undrained events.
    let reference = text("docs/configuration.md");
    let row = reference
        .lines()
        .find(|line| line.starts_with("| `shutdown_grace`"));
    let default = row
        .and_then(|row| row.split('|').nth(4))
        .expect("a default");
    assert!(
        stop > seconds(default.trim().trim_matches('`')) + 2,
        "{stop}"
    );
    assert_eq!(value(&unit, "RestartPreventExitStatus"), "2 3");
    let arguments = value(&unit, "ExecStart").split(' ').skip(1);
    let command: Vec<_> = arguments.collect();
    assert_eq!(command, ["relay", "--config", "/etc/tidings/relay.toml"]);
}
