//! Confirmation of commands whose effect cannot be undone.

use std::io::Write as _;
use std::process::Stdio;

use super::{against, ended, relay_name, tidings};
use crate::support::services::{TestDatabase, brokers, migrated_database};
use crate::support::terminal::on_a_terminal;

/// A database with one parked event of the relay. The relay never ran, so nothing acts on marks.
async fn with_a_parked_event(relay: &str) -> TestDatabase {
    let database = migrated_database().await;
    let statements = [
        format!("insert into tidings.relay (name) values ('{relay}')"),
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
            values ('order', '7', 'OrderPlaced', '{}')"
            .to_owned(),
        format!(
            "insert into tidings.parked (relay, seq, id, aggregatetype, aggregateid, topic, reason)
                select '{relay}', seq, id, aggregatetype, aggregateid, 'order', 'too large'
                from tidings.outbox"
        ),
    ];
    for statement in statements {
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&database.pool)
            .await
            .expect("the row can be inserted");
    }
    database
}

async fn marks(database: &TestDatabase) -> i64 {
    sqlx::query_scalar("select count(*) from tidings.parked where action is not null")
        .fetch_one(&database.pool)
        .await
        .expect("the table can be read")
}

/// Runs the command on a terminal of its own, and types the answer. Returns the exit code and the
/// output.
fn answered(database: &TestDatabase, line: &str, answer: &str) -> (i32, String) {
    let mut child = on_a_terminal(line)
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", brokers())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script(1) starts");
    let mut keyboard = child.stdin.take().expect("a pipe");
    keyboard.write_all(answer.as_bytes()).expect("typed");
    // The keyboard stays connected until the command has ended.
    let output = child.wait_with_output().expect("the command ends");
    drop(keyboard);
    let text = String::from_utf8(output.stdout).expect("text");
    (output.status.code().expect("a code"), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_a_terminal_states_its_effect_and_changes_nothing_without_a_yes() {
    let relay = relay_name();
    let database = with_a_parked_event(&relay).await;
    let line = format!("parked discard --all --name {relay}");
    for answer in ["no\n", "\n", "y\n"] {
        let (code, text) = answered(&database, &line, answer);
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains("1 event of 1 aggregate will be discarded and never published")
                && text.contains("Type yes to continue")
                && text.contains("not confirmed; nothing was changed"),
            "{text}"
        );
        assert_eq!(marks(&database).await, 0, "{answer:?}");
    }
    let (code, text) = answered(&database, &format!("{line} --dry-run"), "");
    assert!(code == 0 && !text.contains("Type yes"), "{text}");
    assert_eq!(marks(&database).await, 0, "a rehearsal");
    let (code, text) = answered(&database, &line, "yes\n");
    assert!(code == 0 && text.contains("1 event marked"), "{text}");
    assert_eq!(marks(&database).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_effect_on_a_relay_is_counted_before_it_is_confirmed() {
    let relay = relay_name();
    let database = with_a_parked_event(&relay).await;
    let (code, text) = answered(&database, &format!("relay skip --all --name {relay}"), "\n");
    assert!(
        code == 1 && text.contains("unpublished event") && text.contains("nothing was changed"),
        "{text}"
    );
    let (code, text) = answered(&database, &format!("relay forget {relay}"), "\n");
    assert!(
        code == 1 && text.contains("its publication will be removed"),
        "{text}"
    );
    let (code, text) = answered(&database, &format!("relay forget {relay}"), "yes\n");
    assert!(code == 0 && text.contains("forgotten"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_changes_nothing_without_the_flag() {
    let relay = relay_name();
    let database = with_a_parked_event(&relay).await;
    let arguments = ["parked", "discard", "--all", "--name", &relay];
    let (code, _, error) = ended(against(&database, &arguments));
    assert!(code == 2 && error.contains("-> add --yes"), "{error}");
    assert_eq!(marks(&database).await, 0);
    // Refused before the configuration is read.
    let (code, _, error) = ended(tidings(&arguments));
    assert!(code == 2 && error.contains("-> add --yes"), "{error}");
    let confirmed = [&arguments[..], &["--yes"]].concat();
    assert_eq!(ended(against(&database, &confirmed)).0, 0);
    assert_eq!(marks(&database).await, 1);
}
