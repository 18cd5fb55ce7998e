//! The command line: arguments, output and exit codes.

mod admin;
mod confirm;
mod dead_letters;
mod hostile;
mod output;
mod overview;
mod path;
mod setup;
mod signals;
mod silent;
mod streams;
mod trial;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use serde_json::Value;

use crate::support::eventually::until_blocking;
use crate::support::services::{TestDatabase, brokers, database, migrated_database};

fn tidings(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn against(database: &TestDatabase, arguments: &[&str]) -> Command {
    let mut command = tidings(arguments);
    command
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", brokers());
    command
}

/// Runs the command to its end. Returns its exit code, stdout and stderr.
fn ended(mut command: Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("the output is UTF-8");
    (
        status.code().expect("the process exits with a code"),
        text(stdout),
        text(stderr),
    )
}

/// A relay in a separate process, with the admin address from its first log line.
pub(crate) struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    admin: String,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        let mut line = String::new();
        stderr
            .read_line(&mut line)
            .expect("the first log line can be read");
        let line: Value = serde_json::from_str(&line).expect("a log line is JSON");
        let admin = line["admin"]
            .as_str()
            .and_then(|url| url.strip_prefix("http://"))
            .expect("the start line names the admin server")
            .to_owned();
        Self {
            child,
            stderr,
            admin,
        }
    }

    /// Returns the address of the admin server.
    pub(crate) fn admin(&self) -> &str {
        &self.admin
    }

    pub(crate) fn get(&self, path: &str) -> String {
        get(&self.admin, path).expect("the admin server answers")
    }

    /// Sends the signal and waits for the end of the process. Returns its exit code and the rest of
    /// its log.
    pub(crate) fn stop(mut self, name: &str) -> (i32, String) {
        signal(&self.child, name);
        let mut rest = String::new();
        self.stderr
            .read_to_string(&mut rest)
            .expect("the log is UTF-8");
        (
            self.child
                .wait()
                .expect("the process ends")
                .code()
                .expect("the process exits with a code"),
            rest,
        )
    }
}

/// Requests `path` from an admin server. Returns `None` if the server does not answer.
pub(crate) fn get(admin: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(admin).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Returns a relay name that is unique on the shared server, because slots belong to the whole
/// server.
fn relay_name() -> String {
    format!("t_{}", uuid::Uuid::now_v7().simple())
}

fn signal(process: &Child, name: &str) {
    crate::support::services::signal(process.id(), name);
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failed assertion must not leave a relay behind. The relay may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_lead_from_an_empty_database_to_a_published_event() {
    let database = database().await;
    let topic = format!("cli-{}", uuid::Uuid::now_v7().simple());
    let options = [
        "--name",
        "shop",
        "--create-topics",
        "--topic",
        &topic,
        "--log-format",
        "json",
        "--listen",
        "127.0.0.1:0",
    ];
    let with = |command: &'static str| {
        let mut arguments = vec![command];
        arguments.extend(options);
        against(&database, &arguments)
    };

    let (code, text, _) = ended(with("check"));
    assert!(
        code == 1 && text.contains("FAIL  tables") && text.contains("-> run `tidings migrate`"),
        "{text}"
    );
    let (code, _, error) = ended(with("status"));
    assert!(
        code == 3 && error.contains("run `tidings migrate`"),
        "{error}"
    );
    let (code, text, _) = ended(with("migrate"));
    assert!(
        code == 0 && text.contains("is migrated: 1 outbox"),
        "{text}"
    );
    let (code, text, _) = ended(with("migrate"));
    assert!(code == 0 && text.contains("up to date"), "{text}");
    let (code, text, _) = ended(with("check"));
    assert!(code == 0 && text.contains("a relay can run"), "{text}");
    let (code, text, _) = ended(with("status"));
    assert!(code == 0 && text.contains("no relay has run"), "{text}");

    let relay = Running::start(with("relay"));
    until_blocking("ready", || {
        relay
            .get("/health/ready")
            .starts_with("HTTP/1.1 200")
            .then_some(())
    });
    sqlx::query(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '1', 'OrderPlaced', '{}')",
    )
    .execute(&database.pool)
    .await
    .expect("an event can be inserted");
    let published = format!("topic=\"{topic}\"");
    until_blocking("the metric", || {
        relay
            .get("/metrics")
            .lines()
            .find(|line| line.contains(&published) && line.ends_with(" 1"))
            .map(drop)
    });
    assert!(
        relay
            .get("/metrics")
            .contains("content-type: application/openmetrics-text; version=1.0.0")
    );
    let status: Value = until_blocking("the count", || {
        let mut command = with("status");
        command.arg("--json");
        let (code, text, error) = ended(command);
        assert_eq!(code, 0, "{error}");
        let status: Value = serde_json::from_str(&text).expect("JSON");
        (status["relays"][0]["topics"][0]["published"] == 1).then_some(status)
    });
    let shop = &status["relays"][0];
    assert_eq!(
        (
            &shop["name"],
            &shop["slot"]["name"],
            &shop["slot"]["active"]
        ),
        (
            &"shop".into(),
            &format!("tidings_shop_{}", database.mark).into(),
            &true.into()
        )
    );
    assert_eq!(
        (&shop["lag"]["events"], &shop["topics"][0]["topic"]),
        (&0.into(), &topic.clone().into())
    );

    let (code, log) = relay.stop("TERM");
    assert_eq!(code, 0, "{log}");
    let (_, text, _) = ended(with("check"));
    assert!(
        text.contains(&topic)
            && text.contains(&format!(
                "tidings_shop_{}, of \"tidings\".\"outbox\"",
                database.mark
            )),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_listed_shown_retried_and_discarded_by_command() {
    let database = migrated_database().await;
    let topic = format!("cli-{}", uuid::Uuid::now_v7().simple());
    let options = [
        "--name",
        "shop2",
        "--create-topics",
        "--topic",
        &topic,
        "--max-message-bytes",
        "10kB",
        "--log-format",
        "json",
    ];
    let with = |arguments: &[&str]| against(&database, &[arguments, &options].concat());
    let json = |arguments: &[&str]| -> Value {
        let (code, text, error) = ended(with(&[arguments, &["--json"]].concat()));
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&text).expect("JSON")
    };
    let parked = || {
        json(&["parked", "list"])["parked"]
            .as_array()
            .expect("a list")
            .len()
    };
    let (_, text, _) = ended(with(&["parked", "list"]));
    assert_eq!(text, "nothing is parked by relay shop2\n");
    let (_, text, _) = ended(with(&["sagas", "list"]));
    assert_eq!(text, "no sagas\n");

    let relay = Running::start(with(&["relay", "--listen", "127.0.0.1:0"]));
    for (n, bytes) in [(1, 20_000), (2, 1)] {
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
            values ('order', '7/a', 'T', to_json(repeat($1, $2)))";
        sqlx::query(insert)
            .bind(n.to_string())
            .bind(bytes)
            .execute(&database.pool)
            .await
            .expect("the insert succeeds");
    }
    until_blocking("both are parked", || {
        (json(&["parked", "show"])["parked"]
            .as_array()
            .expect("a list")
            .len()
            == 2)
            .then_some(())
    });
    let listed = &json(&["parked", "list"])["parked"][0];
    assert_eq!(
        (&listed["events"], &listed["aggregate_id"], &listed["topic"]),
        (&2.into(), &"7/a".into(), &topic.clone().into())
    );
    let event = listed["event"]
        .as_str()
        .expect("the id of the blocking event")
        .to_owned();
    let (_, text, _) = ended(with(&["parked", "list"]));
    assert!(
        text.contains("order/7/a")
            && text.contains("larger than the 10000 bytes")
            && text.contains("parked retry"),
        "{text}"
    );
    let (_, text, _) = ended(with(&["parked", "show", "order/7/a"]));
    assert!(
        text.contains(&event) && text.contains("waits behind an earlier event"),
        "{text}"
    );
    let (_, text, _) = ended(with(&["status"]));
    assert!(
        text.contains("shop2: events parked: 2, of aggregates: 1")
            && text.contains("tidings parked list --name shop2"),
        "{text}"
    );
    let (_, text, _) = ended(against(&database, &["parked", "list", "--name", "another"]));
    assert!(
        text.contains("relay shop2 has parked 2 events\n  -> `tidings parked list --name shop2`"),
        "{text}"
    );
    assert!(
        relay.get("/health/ready").starts_with("HTTP/1.1 200"),
        "other aggregates continue"
    );
    assert!(
        relay
            .get("/metrics")
            .contains("tidings_relay_parked_events 2")
    );

    let (code, _, error) = ended(with(&["parked", "retry", "order/8"]));
    assert!(
        code == 3 && error.contains("no parked event for order/8"),
        "{error}"
    );
    let (code, _, error) = ended(with(&["parked", "retry", "8"]));
    assert!(code == 2 && error.contains("TYPE/ID"), "{error}");
    assert_eq!(
        ended(with(&["parked", "discard", "--yes"])).0,
        2,
        "`discard` without an argument must not discard everything"
    );
    let dry = json(&["parked", "discard", &event, "--dry-run"]);
    assert_eq!(
        (
            &dry["dry_run"],
            dry["events"].as_array().map(Vec::len),
            &dry["events"][0]["action"]
        ),
        (&true.into(), Some(1), &Value::Null)
    );
    let (code, _, error) = ended(with(&["relay", "skip", "--event", &event, "--yes"]));
    assert!(
        code == 3
            && error.contains("is parked")
            && error.contains(&format!("`tidings parked discard {event} --name shop2`")),
        "{error}"
    );
    let follower = json(&["parked", "show"])["parked"][1]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let retried = json(&["parked", "retry", &follower]);
    assert_eq!(
        retried["events"][0]["id"].as_str(),
        Some(event.as_str()),
        "the blocking event is retried"
    );
    until_blocking("the event was retried", || {
        (json(&["parked", "list"])["parked"][0]["tries"] == 2).then_some(())
    });
    let (_, text, _) = ended(with(&["parked", "discard", &event, "--yes"]));
    assert!(text.contains("1 event marked"), "{text}");
    until_blocking("the rest is released", || (parked() == 0).then_some(()));
    let (code, log) = relay.stop("TERM");
    assert!(
        code == 0 && log.contains(&event) && log.contains("discards a parked event"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_alive_and_says_what_it_waits_for_while_kafka_is_away() {
    let database = migrated_database().await;
    let mut command = against(
        &database,
        &["relay", "--listen", "127.0.0.1:0", "--log-format", "json"],
    );
    command.env("KAFKA_BROKERS", "127.0.0.1:1");
    let relay = Running::start(command);
    assert!(relay.get("/health/live").starts_with("HTTP/1.1 200"));
    let answer = relay.get("/health/ready");
    assert!(
        answer.starts_with("HTTP/1.1 503")
            && answer.contains("\"name\":\"kafka\"")
            && answer.contains("failing"),
        "{answer}"
    );
    let (code, log) = relay.stop("INT");
    assert_eq!(code, 0, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_port_in_use_is_told_with_the_flag_that_changes_it() {
    let database = migrated_database().await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken
        .local_addr()
        .expect("the listener has an address")
        .to_string();
    let (code, _, error) = ended(against(&database, &["relay", "--listen", &address]));
    assert_eq!(code, 1);
    assert!(
        error.contains(&address) && error.contains("--listen ADDRESS:PORT"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_as_json_gives_every_value_with_its_origin_and_every_finding() {
    let database = migrated_database().await;
    let mut command = against(&database, &["check", "--json"]);
    command.env("TIDINGS_SHUTDOWN_GRACE", "1m");
    let (code, text, _) = ended(command);
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &report["ok"]), (0, &true.into()));
    let entries = report["configuration"].as_array().expect("a list");
    let grace = entries
        .iter()
        .find(|entry| entry["key"] == "shutdown_grace")
        .expect("the key is listed");
    assert_eq!(
        (&grace["value"], &grace["from"]),
        (&"1m".into(), &"environment TIDINGS_SHUTDOWN_GRACE".into())
    );
    let findings = report["findings"].as_array().expect("a list");
    assert!(
        findings.iter().any(|finding| finding["end"] == "kafka"
            && finding["name"] == "reachable"
            && finding["state"] == "ok"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_warns_of_sagas_that_have_failed_and_of_those_that_nobody_runs() {
    let database = migrated_database().await;
    let (code, text, _) = ended(against(&database, &["check"]));
    assert!(code == 0 && text.contains("0 open, none failed"), "{text}");
    let insert =
        "insert into tidings.saga (id, name, version, key, status, state, progress, due_at)
        select gen_random_uuid(), name, 1, name, status, '{}', '{}', clock_timestamp() + due
        from (values ('pay', 'failed', null), ('ship', 'running', interval '-1 hour'), \
        ('tell', 'running', '1 hour')) s (name, status, due)";
    sqlx::query(insert)
        .execute(&database.pool)
        .await
        .expect("three sagas");
    let (code, text, _) = ended(against(&database, &["check"]));
    assert!(
        code == 0
            && text.contains("1 of pay have failed")
            && text.contains("tidings sagas list --saga pay"),
        "{text}"
    );
    assert!(
        text.contains("ship: a saga has been due for 1 h") && !text.contains("tell"),
        "{text}"
    );
}

#[test]
fn a_configuration_with_faults_ends_with_2_and_all_of_them_at_once() {
    let mut command = tidings(&["relay", "--shutdown-grace", "soon", "-X", "acks=1"]);
    command
        .env("DATABASE_URL", "postgres://ann:hunter2@db/shop?sslmod=x")
        .env("TIDINGS_LOG_LEVEL", "loud");
    let (code, _, error) = ended(command);
    assert_eq!(code, 2);
    for text in [
        "5 errors",
        "--shutdown-grace",
        "kafka.properties.acks",
        "did you mean sslmode?",
        "TIDINGS_LOG_LEVEL",
        "KAFKA_BROKERS",
    ] {
        assert!(error.contains(text), "{text} is not in: {error}");
    }
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn services_that_do_not_answer_are_told_with_the_reason_and_what_to_check() {
    let mut command = tidings(&["migrate"]);
    command.env("DATABASE_URL", "postgres://ann:hunter2@127.0.0.1:1/shop");
    let (code, _, error) = ended(command);
    assert!(
        code == 1
            && error.contains("refused")
            && error.contains("check that the server is running"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
    let mut command = tidings(&["check", "--brokers", "127.0.0.1:1"]);
    command.env("DATABASE_URL", "postgres://ann:hunter2@127.0.0.1:1/shop");
    let (code, text, _) = ended(command);
    assert!(
        code == 1 && text.matches("refused").count() == 2 && !text.contains("hunter2"),
        "{text}"
    );
}
