//! Cost of deleting published events: time, WAL, and the remaining sizes of table and indexes.
//!
//! Run it with `cargo bench --bench retention -- --events 1000000`. `docs/benchmarks.md` explains
//! the figures.

// The runtime of the benchmark owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

#[path = "harness/mod.rs"]
mod harness;

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;
use harness::{Outcome, outbox::Outbox, servers::Servers, tidings::Tidings, topic};
use sqlx::PgConnection;

/// Measures the cost of retention.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench retention --")]
struct Options {
    /// Events in the outbox.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Events per transaction.
    #[arg(long, default_value_t = 100)]
    per_tx: u64,
}

/// A relay with its own settings, killed on drop.
struct Relay(Child);

impl Relay {
    fn start(url: &str, brokers: &str, settings: &[&str]) -> Outcome<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args([
            "relay",
            "--database-url",
            url,
            "--brokers",
            brokers,
            "--topic",
            "retention",
            "--listen",
            "off",
            "--log-level",
            "warn",
        ]);
        Ok(Self(command.args(settings).stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the end of the WAL and the sizes of the table and the indexes, in bytes.
async fn sizes(session: &mut PgConnection) -> Outcome<(i64, i64, i64)> {
    let sql = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint,
        pg_table_size('tidings.outbox'), pg_indexes_size('tidings.outbox')";
    Ok(sqlx::query_as(sql).fetch_one(session).await?)
}

async fn until(session: &mut PgConnection, sql: &'static str) -> Outcome<()> {
    while !sqlx::query_scalar::<_, bool>(sql)
        .fetch_one(&mut *session)
        .await?
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let options = Options::parse_from(harness::arguments());
    let servers = Servers::start()?;
    println!("{}", servers.describe());
    let brokers = servers.kafka.brokers();
    let mut outbox =
        Outbox::create(&servers, "retention", &Tidings::new(None, brokers.clone())).await?;
    topic::create(&brokers, "retention").await?;
    let load = format!(
        "call load({}, {}, 200, 20000)",
        options.events, options.per_tx
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(load))
        .execute(&mut outbox.session)
        .await?;
    let relay = Relay::start(&outbox.url, &brokers, &["--retention=false"])?;
    let all = "select not exists (select from tidings.outbox o, tidings.relay r
               where o.xid >= pg_snapshot_xmin((r.position ->> 'seen')::pg_snapshot) limit 1)";
    until(&mut outbox.session, all).await?;
    drop(relay);
    sqlx::raw_sql("vacuum (analyze) tidings.outbox")
        .execute(&mut outbox.session)
        .await?;
    sqlx::raw_sql("checkpoint")
        .execute(&mut outbox.session)
        .await?;

    let before = sizes(&mut outbox.session).await?;
    let began = Instant::now();
    let relay = Relay::start(&outbox.url, &brokers, &["--retention-keep", "1s"])?;
    until(
        &mut outbox.session,
        "select count(*) <= 1 from (select from tidings.outbox limit 2) left_over",
    )
    .await?;
    let took = began.elapsed();
    drop(relay);
    let deleted = sizes(&mut outbox.session).await?;
    sqlx::raw_sql("vacuum tidings.outbox")
        .execute(&mut outbox.session)
        .await?;
    let vacuumed = sizes(&mut outbox.session).await?;

    let mb = |bytes: i64| bytes as f64 / 1e6;
    println!(
        "\n| events | deleted in s | WAL of the deletes MB | WAL of the vacuum MB \
         | table before, after MB | indexes before, after MB |\n|---|---|---|---|---|---|"
    );
    println!(
        "| {} | {:.1} | {:.0} | {:.0} | {:.0}, {:.0} | {:.0}, {:.0} |",
        options.events,
        took.as_secs_f64(),
        mb(deleted.0 - before.0),
        mb(vacuumed.0 - deleted.0),
        mb(before.1),
        mb(vacuumed.1),
        mb(before.2),
        mb(vacuumed.2)
    );
    outbox.finish().await
}
