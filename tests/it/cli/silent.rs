//! Commands whose database does not respond: none of them waits forever, and each names the cause.

use std::net::TcpListener;
use std::thread;

use super::{against, ended, tidings};
use crate::support::services::migrated_database;

/// The commands that read or mark rows and end.
const COMMANDS: &[&str] = &[
    "status",
    "check",
    "where order/7",
    "parked list",
    "parked retry --all",
    "sagas list",
    "migrate",
];

/// Those about subscribers.
const OF_SUBSCRIBERS: &[&str] = &[
    "subscribers list",
    "subscribers pause stock",
    "subscribers resume stock",
    "subscribers parked list",
    "subscribers parked retry --group stock --all",
    "subscribers parked discard --group stock --all --yes",
];

/// Runs the commands at the same time. Returns each with its exit code and its message.
fn all<'c>(
    commands: &[&'c str],
    start: impl Fn(&[&str]) -> std::process::Command,
) -> Vec<(&'c str, i32, String)> {
    let running: Vec<_> = commands
        .iter()
        .map(|arguments| {
            let command = start(&arguments.split(' ').collect::<Vec<_>>());
            (*arguments, thread::spawn(move || ended(command)))
        })
        .collect();
    running
        .into_iter()
        .map(|(arguments, ending)| {
            let (code, _, message) = ending.join().expect("the command ends");
            (arguments, code, message)
        })
        .collect()
}

#[test]
fn every_command_ends_if_the_database_accepts_connections_and_never_responds() {
    // The system accepts the connections, and no program reads them.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let url = format!("postgres://ann@127.0.0.1:{port}/shop?connect_timeout=2&sslmode=disable");
    let commands = [COMMANDS, OF_SUBSCRIBERS].concat();
    for (arguments, code, message) in all(&commands, |arguments| {
        let mut command = tidings(arguments);
        command
            .env("DATABASE_URL", &url)
            .env("KAFKA_BROKERS", "127.0.0.1:1");
        command
    }) {
        // `check` prints its findings, of which this is one.
        if arguments != "check" {
            assert!(
                message.contains("no response within 2 s"),
                "{arguments}: {message}"
            );
        }
        assert_eq!(code, 1, "{arguments}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_about_subscribers_ends_while_another_session_locks_the_tables() {
    let database = migrated_database().await;
    let mut lock = database.pool.begin().await.expect("a transaction");
    sqlx::query(
        "lock table tidings.subscriber, tidings.subscriber_control, tidings.subscriber_parked
         in access exclusive mode",
    )
    .execute(&mut *lock)
    .await
    .expect("the lock");
    let ends =
        tokio::task::block_in_place(|| all(OF_SUBSCRIBERS, |command| against(&database, command)));
    for (arguments, code, message) in ends {
        assert_eq!(code, 1, "{arguments}: {message}");
        assert!(
            message.contains("statement timeout"),
            "{arguments}: {message}"
        );
    }
    lock.rollback().await.expect("the lock is released");
}
