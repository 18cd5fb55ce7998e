//! Rows and records with terminal control sequences and line breaks in their text.

use std::process::Stdio;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::PgPool;

use super::{against, ended, get, relay_name, signal};
use crate::support::eventually::until_blocking;
use crate::support::records::{byte_headers, create_topic};
use crate::support::services::{brokers, migrated_database};

/// A window title, a line break, an eight-bit control sequence, a right-to-left override and a line
/// separator.
const HOSTILE: &str = "a\u{1b}]0;x\u{7}\nforged  row\r\u{9b}31m\u{202e}b\u{2028}";

/// Asserts that a terminal can display the text safely and that no text of a row begins a line.
fn assert_harmless(text: &str, what: &str) {
    let is_harmful = |character: char| {
        character.is_control() && character != '\n'
            || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2028}'..='\u{2029}')
    };
    assert!(!text.contains(is_harmful), "{what}: {text:?}");
    assert!(
        !text.lines().any(|line| line.starts_with("forged")),
        "{what}: {text}"
    );
}

async fn execute(pool: &PgPool, sql: &'static str) {
    sqlx::query(sql)
        .bind(HOSTILE)
        .execute(pool)
        .await
        .expect(sql);
}

async fn insert_rows(pool: &PgPool) {
    for sql in [
        "insert into tidings.relay (name, leader, source, source_reason, delivery, position) \
         values ('shop', $1, 'table', $1, $1, '{}')",
        "insert into tidings.relay_topic (relay, topic, partitions) values ('shop', $1, 1)",
        "insert into tidings.parked (relay, seq, id, aggregatetype, aggregateid, topic, reason)
         values ('shop', 1, '00000000-0000-0000-0000-000000000001', $1, $1, $1, $1)",
        "insert into tidings.saga (id, name, version, key, status, step, error, state, progress)
         values ('00000000-0000-0000-0000-000000000002', $1, 1, $1, 'failed', $1, $1, \
         to_json($1), jsonb_build_object(
             'status', 'failed', 'ahead', jsonb_build_array($1), 'current', null, 'done', \
             jsonb_build_array($1), 'undone', jsonb_build_array($1),
             'failed_compensations', jsonb_build_array(jsonb_build_object('step', $1, 'error', \
             $1))))",
        "insert into tidings.saga_lock (resource, saga) \
         values ($1, '00000000-0000-0000-0000-000000000002')",
    ] {
        execute(pool, sql).await;
    }
}

async fn send_letter(topic: &str) {
    create_topic(&brokers(), topic, 1).await;
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .create()
        .expect("a producer");
    let partition = 3_i32.to_be_bytes();
    let headers: [(&str, &[u8]); 7] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_type", HOSTILE.as_bytes()),
        (
            HOSTILE.split('\u{1b}').next_back().expect("text"),
            HOSTILE.as_bytes(),
        ),
        ("binary", &[0xff, 0x1b, 0x0a]),
        ("kafka_dlt-original-partition", &partition),
        ("kafka_dlt-exception-message", HOSTILE.as_bytes()),
    ];
    let record = FutureRecord::to(topic)
        .key(HOSTILE)
        .payload(HOSTILE)
        .headers(byte_headers(&headers));
    producer
        .send(record, Duration::from_secs(60))
        .await
        .expect("the record is sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_prints_a_control_character_or_a_line_of_a_row() {
    let database = migrated_database().await;
    insert_rows(&database.pool).await;
    let letters = format!("cli-{}.dlt", uuid::Uuid::now_v7().simple());
    send_letter(&letters).await;
    let (saga, event) = (
        "00000000-0000-0000-0000-000000000002",
        "00000000-0000-0000-0000-000000000001",
    );
    let aggregate = format!("{HOSTILE}/{HOSTILE}");
    let lists: [&[&str]; 8] = [
        &["status"],
        &["relay", "list"],
        &["topics", "list"],
        &["check"],
        &["parked", "list"],
        &["parked", "show"],
        &["sagas", "list"],
        &["sagas", "show", saga],
    ];
    for arguments in lists {
        let arguments = [arguments, &["--name", "shop"]].concat();
        let (_, text, error) = ended(against(&database, &arguments));
        assert!(
            text.contains("\\u{1b}]0;x"),
            "{arguments:?} shows the row: {text}{error}"
        );
        assert_harmless(&text, &format!("{arguments:?}"));
        let json = [&arguments[..], &["--json"]].concat();
        let (_, text, error) = ended(against(&database, &json));
        assert_harmless(&text, &format!("{json:?}"));
        let value: serde_json::Value = serde_json::from_str(&text)
            .unwrap_or_else(|why| panic!("{json:?}: {why}: {text}{error}"));
        let is_whole = value
            .to_string()
            .contains(serde_json::json!(HOSTILE).to_string().trim_matches('"'));
        assert!(is_whole || arguments[0] == "check", "{json:?}: {value}");
    }
    let others: [&[&str]; 9] = [
        &["parked", "show", &aggregate],
        &["parked", "show", HOSTILE],
        &["parked", "retry", &aggregate, "--dry-run"],
        &["parked", "discard", event, "--yes"],
        &["relay", "skip", "--event", event, "--yes"],
        &["dead-letters", "list", &letters],
        &["dead-letters", "show", &letters, "0/0"],
        &["dead-letters", "replay", &letters, "--all", "--dry-run"],
        &["dead-letters", "list", HOSTILE],
    ];
    for arguments in others {
        let (_, text, error) = ended(against(
            &database,
            &[arguments, &["--name", "shop"]].concat(),
        ));
        assert!(text.len() + error.len() > 0, "{arguments:?}");
        assert_harmless(&text, &format!("{arguments:?}"));
        assert_harmless(&error, &format!("{arguments:?}"));
    }
    let (_, text, _) = ended(against(
        &database,
        &["dead-letters", "show", &letters, "0/0"],
    ));
    assert!(
        text.contains("binary: (binary) 0xff1b0a")
            && text.contains("kafka_dlt-original-partition: (binary) 0x00000003"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_of_a_relay_holds_a_control_character_of_an_event() {
    let database = migrated_database().await;
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ($1, $1, $1, to_json($1))";
    execute(&database.pool, insert).await;
    let path = std::env::temp_dir().join(format!("tidings-{}.log", uuid::Uuid::now_v7()));
    for format in ["human", "json"] {
        let file = std::fs::File::create(&path).expect("a file");
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .to_string();
        let arguments = [
            "relay",
            "--name",
            &relay_name(),
            "--listen",
            &free,
            "--log-level",
            "debug",
            "--log-format",
            format,
        ];
        let mut child = against(&database, &arguments)
            .stderr(Stdio::from(file))
            .spawn()
            .expect("the binary starts");
        until_blocking("the event is parked", || {
            get(&free, "/metrics")
                .filter(|text| text.contains("tidings_relay_parked_events 1"))
                .map(drop)
        });
        signal(&child, "TERM");
        assert_eq!(child.wait().expect("the process ends").code(), Some(0));
        let log = std::fs::read_to_string(&path).expect("text");
        assert_harmless(&log, format);
        assert!(
            format == "human"
                || log
                    .lines()
                    .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
            "{log}"
        );
    }
    std::fs::remove_file(&path).expect("the file exists");
}
