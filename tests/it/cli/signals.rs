//! Signals to a relay process.

use std::io::{BufRead, Read, Write};
use std::process::Command;

use super::{Running, against, relay_name, signal};
use crate::support::services::{TestDatabase, migrated_database};

fn relay(database: &TestDatabase) -> Command {
    against(
        database,
        &[
            "relay",
            "--name",
            &relay_name(),
            "--listen",
            "127.0.0.1:0",
            "--log-format",
            "json",
        ],
    )
}

fn line_with(relay: &mut Running, text: &str) -> String {
    let lines = relay.stderr.by_ref().lines().map_while(Result::ok);
    let mut seen = Vec::new();
    for line in lines {
        if line.contains(text) {
            return line;
        }
        seen.push(line);
    }
    panic!("{text} is not in: {seen:#?}")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_signal_that_ends_a_process_drains_a_relay() {
    let database = migrated_database().await;
    for name in ["TERM", "INT", "QUIT"] {
        let mut relay = Running::start(relay(&database));
        line_with(&mut relay, "leads");
        let (code, log) = relay.stop(name);
        assert!(
            code == 0 && log.contains(&format!("SIG{name}")) && log.contains("stopped"),
            "{name}: {log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_applies_the_log_level_and_names_what_needs_a_restart() {
    let database = migrated_database().await;
    let mut file = std::env::temp_dir();
    file.push(format!("tidings-{}.toml", uuid::Uuid::now_v7()));
    std::fs::write(&file, "[log]\nlevel = 'info'\n").expect("a file");
    let mut command = relay(&database);
    command.env("TIDINGS_CONFIG", &file);
    let mut relay = Running::start(command);
    line_with(&mut relay, "leads");

    std::fs::write(&file, "shutdown_grace = '20s'\n[log]\nlevel = 'debug'\n").expect("a file");
    signal(&relay.child, "HUP");
    let line = line_with(&mut relay, "read the configuration again");
    assert!(
        line.contains("shutdown_grace") && line.contains("require a restart"),
        "{line}"
    );
    line_with(&mut relay, "\"level\":\"DEBUG\"");
    std::fs::File::options()
        .append(true)
        .open(&file)
        .and_then(|mut file| file.write_all(b"nonsense = 1\n"))
        .expect("a file");
    signal(&relay.child, "HUP");
    line_with(&mut relay, "log.nonsense: is not a known key");
    let (code, log) = relay.stop("TERM");
    std::fs::remove_file(&file).expect("the file exists");
    assert_eq!(code, 0, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_leaves_at_once() {
    let database = migrated_database().await;
    // The broker never answers, so the relay still waits for it after the first signal.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut command = relay(&database);
    command.args(["--shutdown-grace", "1h"]).env(
        "KAFKA_BROKERS",
        silent.local_addr().expect("an address").to_string(),
    );
    let mut relay = Running::start(command);
    signal(&relay.child, "QUIT");
    line_with(&mut relay, "draining");
    signal(&relay.child, "HUP");
    let (code, log) = relay.stop("TERM");
    // The relay may have drained before the second signal arrived.
    assert!(
        code == 130 && log.contains("exiting immediately") || code == 0 && log.contains("stopped"),
        "{code}: {log}"
    );
}
