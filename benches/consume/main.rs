//! Throughput of a subscriber that handles the backlog of a topic.
//!
//! The topic has 8 partitions, JSON records of 250 bytes and 20,000 keys. Order is kept per key.
//!
//! ```sh
//! # Every scenario once, with its peers.
//! cargo bench --bench consume
//! # Tidings alone.
//! cargo bench --bench consume -- --no-peers
//! cargo bench --bench consume -- --scenario no-work,one-milli --rounds 3
//! # An existing topic, for example one that the peers read too.
//! cargo bench --bench consume -- --brokers host:9092 --topic t --records 1000000
//! ```

// The runtime of the benchmark owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

#[path = "../harness/mod.rs"]
mod harness;

// The allocator that `docs/subscribing.md` recommends.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod bare;
mod fill;
mod options;
mod peers;
mod pgbench;
mod report;
mod scenarios;
mod timer;

use clap::Parser;
use harness::{Outcome, servers::Servers};
use options::{Options, Scenario};
use peers::Peer;
use report::{Path, Report};

#[tokio::main]
async fn main() -> Outcome<()> {
    let options = Options::parse_from(harness::arguments());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    if let (Some(database), [scenario]) = (&options.measure, &options.scenarios()[..]) {
        let (brokers, topic) = (
            options.brokers.as_deref().unwrap_or_default(),
            options.topic.as_deref().unwrap_or_default(),
        );
        let measured = scenarios::run(
            *scenario,
            brokers,
            database,
            topic,
            options.records.unwrap_or_default(),
        )
        .await?;
        println!(
            "{} {} {}",
            measured.seconds, measured.cpu_seconds, measured.peak_megabytes
        );
        return Ok(());
    }
    let servers = Servers::start()?;
    println!("{}", servers.describe());
    let brokers = options
        .brokers
        .clone()
        .unwrap_or_else(|| servers.kafka.brokers());
    println!(
        "{:<10} {:<18} {:>9} {:>9} {:>12} {:>9} {:>9}",
        "scenario", "consumer", "records", "seconds", "records/s", "CPU s", "peak MB"
    );
    let mut report = Report::default();
    for scenario in options.scenarios() {
        let records = options.records.unwrap_or(scenario.records());
        let topic = match &options.topic {
            Some(topic) => topic.clone(),
            None => fill::topic(&brokers, records, scenario.keys()).await?,
        };
        // Otherwise the first consumer would wait for a broker whose JVM is cold.
        tokio::task::block_in_place(|| bare::read(&brokers, &topic, records))?;
        for _ in 0..options.rounds {
            let database = servers.postgres.url();
            report.add(
                scenario,
                Path::Tidings,
                scenarios::run_apart(scenario, &brokers, &database, &topic, records)?,
            );
            if scenario == Scenario::NoWork {
                report.add(
                    scenario,
                    Path::Bare,
                    tokio::task::block_in_place(|| bare::read(&brokers, &topic, records))?,
                );
                report.add(
                    scenario,
                    Path::Parsed,
                    tokio::task::block_in_place(|| bare::parse(&brokers, &topic, records))?,
                );
            }
            if !options.no_peers {
                beside(scenario, &brokers, &database, &topic, records, &mut report).await;
            }
        }
    }
    report.print();
    Ok(())
}

/// Runs the peers of a scenario. A peer that is not available is skipped and the reason printed.
async fn beside(
    scenario: Scenario,
    brokers: &str,
    database: &str,
    topic: &str,
    records: u64,
    report: &mut Report,
) {
    for peer in Peer::ALL {
        match tokio::task::block_in_place(|| peer.run(scenario, brokers, topic, records)) {
            Ok(measured) => measured
                .into_iter()
                .for_each(|measured| report.add(scenario, Path::Peer(peer), measured)),
            Err(error) => println!(
                "{:<10} {} skipped: {error}",
                scenario.name(),
                Path::Peer(peer)
            ),
        }
    }
    match pgbench::run(database, scenario, records).await {
        Ok(measured) => measured
            .into_iter()
            .for_each(|measured| report.add(scenario, Path::Pgbench, measured)),
        Err(error) => println!("{:<10} pgbench skipped: {error}", scenario.name()),
    }
}
