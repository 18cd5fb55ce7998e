//! Duration of a page query on the outbox while a transaction is open that began before all of its
//! events.
//!
//! Run it with `cargo bench --bench poll -- --events 5000000`. `docs/benchmarks.md` explains the
//! figures.

// The runtime of the benchmark owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

#[path = "harness/mod.rs"]
mod harness;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use harness::{
    Outcome,
    outbox::{KEYS, Outbox},
    servers::Servers,
    tidings::{Mode, Tidings},
    topic,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// Measures page queries of the relay that reads the table.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench poll --")]
struct Options {
    /// Events in the outbox.
    #[arg(long, default_value_t = 5_000_000)]
    events: u64,
    /// Single events after the backlog, one every 20 ms.
    #[arg(long, default_value_t = 500)]
    trickle: u64,
}

/// Makes the server log the duration of each statement.
const SETTINGS: &[(&str, &str)] = &[
    ("logging_collector", "on"),
    ("log_directory", "log"),
    ("log_filename", "statements.log"),
    ("log_rotation_size", "0"),
    ("log_min_duration_statement", "0"),
    ("log_line_prefix", "[%a] "),
];

/// Inserts an event and leaves the transaction open.
const OPEN: &str = "begin;
    insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
    values ('order', 'open', 'OrderPlaced', '{}')";

const ONE: &str = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
    values ('order', '1', 'OrderPlaced', '{}')";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let options = Options::parse_from(harness::arguments());
    let servers = Servers::start_with(SETTINGS)?;
    println!("{}", servers.describe());
    let tidings = Tidings::new(None, servers.kafka.brokers());
    let mut outbox = Outbox::create(&servers, "poll", &tidings).await?;
    topic::create(&servers.kafka.brokers(), "poll").await?;
    let mut open = PgConnection::connect(&outbox.url).await?;
    sqlx::raw_sql(OPEN).execute(&mut open).await?;
    for sql in [
        "set synchronous_commit = off".to_owned(),
        format!("call load({}, 1000, 200, {KEYS})", options.events),
        "checkpoint".into(),
    ] {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut outbox.session)
            .await?;
    }

    let mut statements = Statements {
        path: servers.postgres.data_folder().join("log/statements.log"),
        read: 0,
    };
    statements.pages()?;
    let relay = tidings.start(&outbox.url, "poll", Mode::Poll)?;
    topic::watch(&servers.kafka.brokers(), "poll", options.events, &relay)?;
    let backlog = statements.pages()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    statements.pages()?;
    for _ in 0..options.trickle {
        sqlx::raw_sql(ONE).execute(&mut outbox.session).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let head = statements.pages()?;
    relay.stop()?;
    sqlx::raw_sql("rollback").execute(&mut open).await?;

    println!(
        "\n{} events, and one transaction that was opened before them\n\
         \n| statement | count | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|",
        options.events
    );
    tell("page of the backlog, at most 1,000 events", backlog.pages);
    tell("page at the head, one or a few events", head.pages);
    tell("bounds of a window at the head", head.bounds);
    outbox.finish().await
}

/// Durations of statements of the relay, in milliseconds.
#[derive(Default)]
struct Durations {
    pages: Vec<f64>,
    bounds: Vec<f64>,
}

/// The server's statement log, read incrementally.
struct Statements {
    path: PathBuf,
    read: usize,
}

impl Statements {
    /// Returns the durations that were logged since the last call.
    fn pages(&mut self) -> Outcome<Durations> {
        let log = std::fs::read(&self.path)?;
        let new = String::from_utf8_lossy(&log[self.read..]).into_owned();
        self.read = log.len();
        let mut durations = Durations::default();
        for line in new.lines().filter(|line| line.contains("relay table]")) {
            let Some((_, rest)) = line.split_once("duration: ") else {
                continue;
            };
            let Some((milliseconds, statement)) = rest.split_once(" ms ") else {
                continue;
            };
            let milliseconds = milliseconds.parse()?;
            if statement.contains(": copy (") {
                durations.pages.push(milliseconds);
            } else if statement.contains("execute") && statement.contains("select min(seq)") {
                durations.bounds.push(milliseconds);
            }
        }
        Ok(durations)
    }
}

fn tell(name: &str, mut milliseconds: Vec<f64>) {
    milliseconds.sort_by(f64::total_cmp);
    let Some(last) = milliseconds.len().checked_sub(1) else {
        return println!("| {name} | 0 | – | – | – |");
    };
    let at = |quantile: f64| milliseconds[(last as f64 * quantile) as usize];
    println!(
        "| {name} | {} | {:.2} | {:.2} | {:.2} |",
        last + 1,
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
