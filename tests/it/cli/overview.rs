//! `tidings` without a command: the state and the next step.

use super::{Running, against, ended, relay_name, tidings};
use crate::support::place::until;
use crate::support::services::{TestDatabase, brokers, database};

/// Runs the binary without a command. Returns its exit code, stdout and stderr.
fn overview(database: &TestDatabase) -> (i32, String, String) {
    ended(against(database, &[]))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_from_an_empty_machine_to_a_running_relay_leads_to_the_next_step() {
    let (code, text, error) = ended(tidings(&[]));
    assert_eq!(code, 0, "{error}");
    assert!(text.contains("-> export DATABASE_URL="), "{text}");

    let database = database().await;
    let (code, text, error) = overview(&database);
    assert_eq!(code, 0, "{error}");
    assert!(text.ends_with("-> run `tidings migrate`\n"), "{text}");

    let (code, _, error) = ended(against(&database, &["migrate"]));
    assert_eq!(code, 0, "{error}");
    let (_, text, _) = overview(&database);
    assert!(text.contains("no relay has run"), "{text}");
    let mut no_brokers = against(&database, &[]);
    no_brokers.env_remove("KAFKA_BROKERS");
    let (_, text, _) = ended(no_brokers);
    assert!(text.contains("-> set --brokers or KAFKA_BROKERS"), "{text}");

    let name = relay_name();
    let arguments = ["relay", "--name", &name, "--listen", "127.0.0.1:0"];
    let arguments = [&arguments[..], &["--log-format", "json"]].concat();
    let relay = Running::start(against(&database, &arguments));
    let text = until("the relay leads and reports no problem", async || {
        let (code, text, error) = overview(&database);
        assert_eq!(code, 0, "{error}");
        (text.contains(&name) && text.contains("no problem was found")).then_some(text)
    })
    .await;
    assert!(text.lines().count() <= 24, "{text}");
    let (code, log) = relay.stop("TERM");
    assert_eq!(code, 0, "{log}");
}

#[test]
fn a_wrong_setting_and_a_server_that_is_not_there_are_failures_of_the_overview_too() {
    let mut wrong = tidings(&["--schema", "No Schema"]);
    wrong.env("DATABASE_URL", "postgres://a@127.0.0.1:1/b");
    let (code, _, error) = ended(wrong);
    assert_eq!(code, 2, "{error}");
    let mut absent = tidings(&[]);
    absent.env("DATABASE_URL", "postgres://a@127.0.0.1:1/b");
    let (code, _, error) = ended(absent);
    assert!(code == 1 && error.contains("\n  -> "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_read_from_a_file_and_never_printed() {
    let database = database().await;
    let folder = std::env::temp_dir().join(format!("tidings-{}", uuid::Uuid::now_v7()));
    std::fs::create_dir(&folder).expect("a folder");
    let (url, password) = (folder.join("url"), folder.join("password"));
    std::fs::write(&url, format!("{}\n", database.url)).expect("a file");
    std::fs::write(&password, "hunter2\n").expect("a file");
    let mut check = tidings(&["check", "--json"]);
    check
        .env("DATABASE_URL_FILE", &url)
        .env("KAFKA_BROKERS", brokers())
        .env("TIDINGS_KAFKA_PROPERTIES_SSL_KEY_PASSWORD_FILE", &password);
    let (_, text, error) = ended(check);
    assert!(
        text.contains("environment DATABASE_URL_FILE")
            && text.contains("environment TIDINGS_KAFKA_PROPERTIES_SSL_KEY_PASSWORD_FILE"),
        "{text} {error}"
    );
    assert!(
        !text.contains("hunter2") && !error.contains("hunter2"),
        "{text} {error}"
    );
    std::fs::remove_dir_all(&folder).expect("the folder exists");
}
