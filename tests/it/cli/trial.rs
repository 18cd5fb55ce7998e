//! `tidings try`: example events from the publish to the verdict.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{against, ended, signal, tidings};
use crate::support::eventually::{PATIENCE, until_blocking};
use crate::support::services::{TestDatabase, brokers, database};

/// Returns the name of the schema, the relay and the topic in the printed commands.
fn name(text: &str) -> &str {
    let name = text.split("--schema ").nth(1).expect("the commands");
    name.split_whitespace().next().expect("a name")
}

/// Returns the number of schemas, slots and publications in the database.
async fn objects(database: &TestDatabase) -> i64 {
    sqlx::query_scalar(
        "select (select count(*) from pg_namespace where nspname like 'tidings%') \
         + (select count(*) from pg_publication)
         + (select count(*) from pg_replication_slots where database = current_database())",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the query succeeds")
}

/// Returns the topics whose names contain a text.
fn topics(with: &str) -> Vec<String> {
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .create()
        .expect("a client");
    let metadata = consumer.fetch_metadata(None, PATIENCE).expect("metadata");
    let names = metadata
        .topics()
        .iter()
        .map(|topic| topic.name().to_owned());
    names.filter(|name| name.contains(with)).collect()
}

fn assert_verdict(text: &str, events: u64) {
    let line = |name: &str| {
        let mut lines = text.lines().filter(|line| line.starts_with(name));
        let line = lines.next().unwrap_or_else(|| panic!("{name}: {text}"));
        line.split_whitespace().nth(name.split(' ').count())
    };
    assert_eq!(line("delivered"), Some(&*events.to_string()), "{text}");
    for name in ["lost", "repeated", "reordered", "never committed"] {
        assert_eq!(line(name), Some("0"), "{name}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_prints_the_committed_events_proves_them_and_leaves_nothing_behind() {
    let database = database().await;
    let mut command = against(&database, &["try", "--events", "20", "--rate", "50"]);
    command.env("COLUMNS", "200");
    let (code, text, error) = tokio::task::block_in_place(|| ended(command));
    // A busy server may cause a warning, e.g. about a transaction that the slot waits for.
    let errors: Vec<&str> = error
        .lines()
        .filter(|line| !line.contains(" WARN "))
        .collect();
    assert_eq!((code, errors), (0, Vec::new()), "{text}");
    for (event, count) in [("OrderPlaced", 10), ("OrderPaid", 5), ("OrderShipped", 5)] {
        assert_eq!(
            text.matches(&format!("  {event}  ")).count(),
            count,
            "{text}"
        );
    }
    assert!(!text.contains("OrderCancelled"), "{text}");
    assert!(
        text.contains("20 events committed, 6 transactions rolled"),
        "{text}"
    );
    let name = name(&text);
    assert_verdict(&text, 20);
    for command in ["console", "status"] {
        let line = format!("  tidings {command} --database-url \"$DATABASE_URL\" --schema {name}");
        assert!(text.contains(&line), "{line}: {text}");
    }
    assert!(
        text.contains(&format!("--schema {name} --brokers {}\n", brokers())),
        "{text}"
    );
    assert_eq!(objects(&database).await, 0);
    let mark = name.to_owned();
    // The metadata of a broker may follow the deletion after a moment.
    tokio::task::block_in_place(|| {
        until_blocking("its topics are deleted", || {
            topics(&mark).is_empty().then_some(())
        });
    });
}

/// A trial that runs until a signal.
fn started(mut command: Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let out = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    (child, out)
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_trial_with_the_verdict() {
    let database = database().await;
    tokio::task::block_in_place(|| {
        let (mut child, mut out) = started(against(&database, &["try", "--rate", "20"]));
        let mut text = String::new();
        while !text.contains("  OrderPaid  ") {
            let read = out.read_line(&mut text).expect("text");
            assert!(read > 0, "{text}");
        }
        // The commands for another terminal work while the trial runs.
        let schema = name(&text).to_owned();
        let status = against(&database, &["status", "--schema", &schema]);
        let (code, status, error) = ended(status);
        assert_eq!(code, 0, "{error}");
        assert!(status.contains(&schema), "{status}");
        let id = text.split("tidings where ").nth(1).expect("the command");
        let id = id.split(' ').next().expect("an id").to_owned();
        let path = against(&database, &["where", &id, "--schema", &schema]);
        let (code, path, error) = ended(path);
        assert!(code == 0 && path.contains("OrderPlaced"), "{path}{error}");

        signal(&child, "INT");
        out.read_to_string(&mut text).expect("text");
        let status = child.wait().expect("the process ends");
        let mut error = String::new();
        let mut stderr = child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut error).expect("text");
        assert_eq!(status.code(), Some(0), "{text}{error}");
        let committed = text
            .lines()
            .find_map(|line| line.split_once(" events committed, "))
            .expect("the counts");
        assert_verdict(&text, committed.0.parse().expect("a number"));
        assert!(text.ends_with("are removed\n"), "{text}");
    });
    assert_eq!(objects(&database).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_without_servers_starts_its_own() {
    let mut command = tidings(&["try", "--events", "3", "--rate", "50"]);
    for name in [
        "PATH",
        "HOME",
        "JAVA_HOME",
        "TIDINGS_CACHE",
        "TMPDIR",
        "TIDINGS_DEV_SERVICES",
    ] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let (code, text, error) = tokio::task::block_in_place(|| ended(command));
    assert_eq!(code, 0, "{text}{error}");
    assert_eq!(text.matches("  OrderPlaced  order/").count(), 3, "{text}");
    assert!(
        text.contains("tidings console --database-url 'postgres://"),
        "{text}"
    );
    assert_verdict(&text, 3);
}
