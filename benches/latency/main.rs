//! Latency from the insert of an event to a consumer at a steady rate, and the cost of an idle
//! relay.
//!
//! Compares Tidings with a Debezium tuned for latency, one after the other on the same Postgres and
//! Kafka.
//!
//! `cargo bench --bench latency -- --help` lists the options. `docs/benchmarks.md` explains the
//! figures.

// The runtime of the benchmark owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

#[path = "../harness/mod.rs"]
mod harness;

mod load;

use std::time::Duration;

use clap::Parser;
use harness::{
    Outcome,
    debezium::{self, Debezium, Tuning},
    outbox::Outbox,
    process::Process,
    servers::Servers,
    tidings::{Mode, Tidings},
    topic,
};
use load::Latencies;

/// Measures the latency of a relay and its cost when idle.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench latency --")]
struct Options {
    /// Events per second, each in its own transaction.
    #[arg(
        long = "rate",
        value_delimiter = ',',
        default_values_t = [500, 2000],
        env = "BENCH_RATES"
    )]
    rates: Vec<u32>,
    /// Seconds per rate.
    #[arg(long, default_value_t = 20, env = "BENCH_SECONDS")]
    seconds: u32,
    /// Skip Debezium.
    #[arg(long)]
    skip_debezium: bool,
    /// Another build of the binary, for comparison.
    #[arg(long)]
    tidings: Option<std::path::PathBuf>,
}

/// Rate and seconds of a run before the first measurement. A JVM compiles frequently executed code
/// only after a while.
const WARM_UP: (u32, u32) = (2000, 20);

/// Time over which the cost of an idle relay is measured.
const IDLE: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let options = Options::parse_from(harness::arguments());
    let servers = Servers::start()?;
    println!("{}", servers.describe());
    let tidings = Tidings::new(options.tidings.clone(), servers.kafka.brokers());
    println!(
        "\n| relay | events/s | p50 ms | p95 ms | p99 ms | max ms | CPU s |\
         \n|---|---|---|---|---|---|---|"
    );

    for (name, database, mode) in [
        ("Tidings, exactly once", "latency_tidings", Mode::Default),
        (
            "Tidings, at least once",
            "latency_at_least_once",
            Mode::WalAtLeastOnce,
        ),
    ] {
        let mut outbox = Outbox::create(&servers, database, &tidings).await?;
        topic::create(&servers.kafka.brokers(), database).await?;
        let relay = tidings.start(&outbox.url, database, mode)?;
        outbox.until_active("tidings", &relay).await?;
        measure(name, &options, &servers, &outbox.url, database, relay).await?;
        outbox.finish().await?;
    }

    if !options.skip_debezium
        && let Some(debezium) = Debezium::of(&servers)
    {
        let mut outbox = Outbox::create(&servers, "latency_debezium", &tidings).await?;
        topic::create(&servers.kafka.brokers(), "latency-debezium").await?;
        let slot = format!(
            "select pg_create_logical_replication_slot('{}', 'pgoutput')",
            debezium::SLOT
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(slot))
            .execute(&mut outbox.session)
            .await?;
        let relay = debezium.start(&outbox, "latency-debezium", Tuning::Latency)?;
        outbox.until_active(debezium::SLOT, &relay).await?;
        measure(
            "Debezium, tuned",
            &options,
            &servers,
            &outbox.url,
            "latency-debezium",
            relay,
        )
        .await?;
        outbox.finish().await?;
    }
    Ok(())
}

async fn measure(
    name: &str,
    options: &Options,
    servers: &Servers,
    url: &str,
    topic: &str,
    relay: Process,
) -> Outcome<()> {
    let brokers = servers.kafka.brokers();
    load::run(url, &brokers, topic, WARM_UP.0, WARM_UP.1).await?;
    for rate in &options.rates {
        let before = relay.cost().cpu_seconds;
        let Latencies { p50, p95, p99, max } =
            load::run(url, &brokers, topic, *rate, options.seconds).await?;
        let cost = relay.cost().cpu_seconds - before;
        println!("| {name} | {rate} | {p50:.2} | {p95:.2} | {p99:.2} | {max:.1} | {cost:.2} |");
    }
    let before = relay.cost().cpu_seconds;
    tokio::time::sleep(IDLE).await;
    let share = (relay.cost().cpu_seconds - before) / IDLE.as_secs_f64() * 100.0;
    println!("| {name} | idle | – | – | – | – | {share:.2} % of one core |");
    relay.stop()
}
