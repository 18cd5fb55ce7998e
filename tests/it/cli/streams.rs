//! Standard streams that cannot be written: a full disk, a closed reader, a blocked reader.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write, pipe};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use super::{against, ended, get, relay_name, signal, tidings};
use crate::support::eventually::until_blocking;
use crate::support::services::{TestDatabase, migrated_database};

/// Default capacity of a pipe on Linux, in bytes.
const PIPE_BYTES: usize = 64 << 10;

fn full_disk() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .expect("`/dev/full` exists")
        .into()
}

fn without_reader() -> Stdio {
    pipe().expect("a pipe").1.into()
}

const COMMANDS: [&[&str]; 14] = [
    &["--help"],
    &["-h"],
    &["--version"],
    &["migrate"],
    &["status"],
    &["status", "--json"],
    &["check"],
    &["check", "--json"],
    &["relay", "list"],
    &["parked", "list"],
    &["parked", "show", "--json"],
    &["sagas", "list"],
    &["sagas", "list", "--json"],
    &["topics", "list"],
];

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_ends_a_command_quietly_and_a_full_disk_with_an_error() {
    let database = migrated_database().await;
    for arguments in COMMANDS {
        let run = |stdout: Stdio| {
            let child = against(&database, arguments)
                .stdout(stdout)
                .stderr(Stdio::piped())
                .spawn();
            let output = child
                .and_then(Child::wait_with_output)
                .expect("the binary runs");
            (
                output.status.code(),
                String::from_utf8(output.stderr).expect("text"),
            )
        };
        assert_eq!(
            run(without_reader()),
            (Some(0), String::new()),
            "{arguments:?}"
        );
        let (code, error) = run(full_disk());
        assert!(
            code == Some(1) && error.contains("cannot write the result to stdout: No space"),
            "{arguments:?}: {code:?} {error}"
        );
    }
}

#[test]
fn an_error_that_cannot_be_printed_keeps_its_exit_code() {
    for stderr in [full_disk, without_reader] {
        let code = |arguments: &[&str]| {
            tidings(arguments)
                .stderr(stderr())
                .status()
                .expect("the binary runs")
                .code()
        };
        assert_eq!(code(&["no-such-command"]), Some(2));
        assert_eq!(code(&["relay"]), Some(2), "neither a database nor brokers");
        assert_eq!(
            code(&[
                "migrate",
                "--database-url",
                "postgres://ann@127.0.0.1:1/shop"
            ]),
            Some(1)
        );
    }
}

/// A relay whose stderr is chosen by the test. Its admin address is chosen in advance, because its
/// log cannot be read.
struct Blind {
    child: Child,
    admin: String,
    topic: String,
}

impl Blind {
    fn start(database: &TestDatabase, stderr: Stdio) -> Self {
        let free = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port");
        let (admin, topic) = (
            free.to_string(),
            format!("cli-{}", uuid::Uuid::now_v7().simple()),
        );
        let name = relay_name();
        let arguments = [
            "relay",
            "--name",
            &name,
            "--create-topics",
            "--topic",
            &topic,
            "--listen",
            &admin,
            "--log-level",
            "debug",
        ];
        let child = against(database, &arguments)
            .stderr(stderr)
            .spawn()
            .expect("the binary starts");
        Self {
            child,
            admin,
            topic,
        }
    }

    async fn publishes(&self, database: &TestDatabase) {
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
            values ('order', '1', 'T', '{}')";
        sqlx::query(insert)
            .execute(&database.pool)
            .await
            .expect("an event can be inserted");
        let published = format!("topic=\"{}\"", self.topic);
        until_blocking("the event is published", || {
            self.metric(&published).filter(|count| *count == 1)
        });
    }

    /// Publishes one more event after [`LARGE_EVENTS`].
    async fn publishes_another(&self, database: &TestDatabase) {
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
            values ('order', '1', 'T', '{}')";
        sqlx::query(insert)
            .execute(&database.pool)
            .await
            .expect("an event can be inserted");
        let published = format!("topic=\"{}\"", self.topic);
        until_blocking("the event is published", || {
            self.metric(&published)
                .filter(|count| *count > LARGE_EVENTS)
        });
    }

    fn metric(&self, name: &str) -> Option<u64> {
        let text = get(&self.admin, "/metrics")?;
        text.lines()
            .find(|line| line.contains(name) && !line.starts_with('#'))?
            .rsplit(' ')
            .next()?
            .parse()
            .ok()
    }

    fn stop(mut self) -> Option<i32> {
        signal(&self.child, "TERM");
        self.child.wait().expect("the process ends").code()
    }
}

impl Drop for Blind {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_delivers_and_counts_the_lines_that_it_cannot_log() {
    for stderr in [full_disk, without_reader] {
        let database = migrated_database().await;
        let relay = Blind::start(&database, stderr());
        relay.publishes(&database).await;
        assert!(
            relay
                .metric("tidings_log_lines_dropped_total")
                .is_some_and(|count| count > 0)
        );
        assert_eq!(relay.stop(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_delivers_and_ends_while_the_reader_of_its_log_hangs() {
    let database = migrated_database().await;
    let (mut reader, mut writer) = pipe().expect("a pipe");
    writer
        .write_all(&vec![b'\n'; PIPE_BYTES])
        .expect("the pipe has room");
    let relay = Blind::start(&database, writer.into());
    relay.publishes(&database).await;
    assert_eq!(
        relay.metric("tidings_log_lines_dropped_total"),
        Some(0),
        "they wait"
    );
    assert_eq!(relay.stop(), Some(0));
    let mut log = String::new();
    reader.read_to_string(&mut log).expect("text");
    assert_eq!(log.trim(), "", "nothing could be written");
}

/// Events of 8 KiB: more than a pipe and the queue of the command contain.
const LARGE_EVENTS: u64 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_and_continues_receives_every_event_in_order() {
    let database = migrated_database().await;
    let relay = Blind::start(&database, Stdio::null());
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        select 'order', '1', 'T', jsonb_build_object('n', n, 'text', repeat('x', 8192)) \
        from generate_series(1, $1) n order by n";
    sqlx::query(insert)
        .bind(i32::try_from(LARGE_EVENTS).expect("a small number"))
        .execute(&database.pool)
        .await
        .expect("events can be inserted");
    let published = format!("topic=\"{}\"", relay.topic);
    until_blocking("the events are published", || {
        relay
            .metric(&published)
            .filter(|count| *count == LARGE_EVENTS)
    });
    let max = LARGE_EVENTS.to_string();
    let arguments = [
        "tail",
        &relay.topic,
        "--from-beginning",
        "--json",
        "--max",
        &max,
    ];
    let mut child = against(&database, &arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut numbers = Vec::new();
    let mut line = String::new();
    while reader.read_line(&mut line).expect("text") > 0 {
        if numbers.is_empty() {
            // Reads nothing while the relay works. The command fills the pipe and its queue.
            relay.publishes_another(&database).await;
        }
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        numbers.push(event["payload"]["n"].as_u64().expect("a number"));
        line.clear();
    }
    assert!(numbers.iter().copied().eq(1..=LARGE_EVENTS), "{numbers:?}");
    assert_eq!(child.wait().expect("the process ends").code(), Some(0));
    assert_eq!(relay.stop(), Some(0));
}

#[test]
fn a_panic_of_the_reader_of_a_list_is_not_one_of_the_command() {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        r#""$0" --help | head -n 1 && "$0" --help >&- 2>&-"#,
        env!("CARGO_BIN_EXE_tidings"),
    ]);
    let (code, text, error) = ended(command);
    assert_eq!((code, text.lines().count(), error.as_str()), (0, 1, ""));
}
