//! Tables, colors and `--watch`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use serde_json::Value;

use super::{against, ended, signal};
use crate::support::services::{TestDatabase, brokers, migrated_database};
use crate::support::terminal::on_a_terminal;

const ESCAPE: char = '\u{1b}';

/// A database with a relay whose leader has a long name in characters of two columns.
async fn with_a_relay() -> TestDatabase {
    let database = migrated_database().await;
    for statement in [
        "insert into tidings.relay (name, leader, position)
            values ('orders', '注文-a-host-with-a-long-name:7', '{}'), ('billing', 'host:8', '{}')",
        "insert into tidings.relay_topic (relay, topic, partitions) values ('orders', '注文', 6)",
    ] {
        sqlx::query(statement)
            .execute(&database.pool)
            .await
            .expect("the rows can be inserted");
    }
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_fits_80_columns_unless_a_width_is_set() {
    let database = with_a_relay().await;
    let (code, narrow, _) = ended(against(&database, &["relay", "list"]));
    assert!(
        code == 0 && narrow.contains("relay           orders\n"),
        "{narrow}"
    );
    assert!(
        narrow.lines().all(|line| line.chars().count() <= 80),
        "{narrow}"
    );
    let mut command = against(&database, &["relay", "list"]);
    command.env("COLUMNS", "200");
    let (_, wide, _) = ended(command);
    let rows: Vec<&str> = wide.lines().collect();
    assert!(
        rows.len() == 3 && rows[0].starts_with("relay    leader"),
        "{wide}"
    );
    let (_, text, _) = ended(against(&database, &["status"]));
    // The second column of the topics begins after two spaces, though the name has two characters.
    assert!(
        text.contains("topic  relay   partitions") && text.contains("注文   orders"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn color_follows_the_flag_and_the_variable() {
    let database = with_a_relay().await;
    let colored = |arguments: &[&str], variable: Option<&str>| {
        let mut command = against(&database, arguments);
        if let Some(value) = variable {
            command.env("NO_COLOR", value);
        }
        let (code, text, _) = ended(command);
        assert_eq!(code, 0);
        text.contains(ESCAPE)
    };
    assert!(!colored(&["status"], None), "no terminal");
    assert!(colored(&["status", "--color", "always"], None));
    assert!(colored(&["status", "--color", "always"], Some("1")));
    assert!(!colored(&["status", "--color", "never"], None));
    assert!(!colored(&["-h"], None));
    assert!(colored(&["-h", "--color=always"], None));
    let colored_there = |options: &str, variable: &str| {
        let output = on_a_terminal(&format!("status {options}"))
            .env("DATABASE_URL", &database.url)
            .env("NO_COLOR", variable)
            .stdin(Stdio::null())
            .output()
            .expect("script(1) starts");
        String::from_utf8(output.stdout)
            .expect("text")
            .contains("\u{1b}[1m")
    };
    assert!(colored_there("", ""));
    assert!(!colored_there("", "1"));
    assert!(!colored_there("--color never", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_cannot_color_the_terminal_of_an_operator_who_wants_color() {
    let database = migrated_database().await;
    sqlx::query("insert into tidings.relay (name, leader, position) values ('orders', $1, '{}')")
        .bind("\u{1b}[31mhost\u{2061}:7\u{2060}")
        .execute(&database.pool)
        .await
        .expect("the row can be inserted");
    let (_, text, _) = ended(against(&database, &["status", "--color", "always"]));
    assert!(
        text.contains("\\u{1b}[31mhost\\u{2061}:7\\u{2060}"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_list_is_repeated_until_a_signal() {
    let database = with_a_relay().await;
    let mut child = against(&database, &["relay", "list", "--json", "--watch", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut rounds = serde_json::Deserializer::from_reader(reader).into_iter::<Value>();
    for _ in 0..2 {
        let status = rounds.next().expect("a round").expect("JSON");
        assert_eq!(status["relays"].as_array().map(Vec::len), Some(2));
    }
    signal(&child, "INT");
    assert_eq!(child.wait().expect("the process ends").code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_list_replaces_its_text_on_a_terminal_and_shows_a_later_error() {
    let database = with_a_relay().await;
    let mut child = on_a_terminal("status --watch 1")
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", brokers())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script(1) starts");
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut until = |wanted: &str| {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            let count = reader.read_line(&mut line).expect("text");
            assert!(count > 0, "the command ended before {wanted}");
        }
    };
    until("Ctrl-C ends");
    until("orders");
    sqlx::query("drop table tidings.relay cascade")
        .execute(&database.pool)
        .await
        .expect("the table can be dropped");
    until("error: the tables of Tidings are not in schema tidings");
    // The terminal sends SIGINT to the command for this character.
    let mut keyboard = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut keyboard, b"\x03").expect("typed");
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("text");
    assert_eq!(
        child.wait().expect("the command ends").code(),
        Some(0),
        "{rest}"
    );
}
