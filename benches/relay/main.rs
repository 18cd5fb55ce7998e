//! Rate and cost of draining a backlog from the write-ahead log, compared with upper limits and
//! with a tuned Debezium.
//!
//! All paths run on the same Postgres and Kafka, in alternating rounds.
//!
//! `cargo bench --bench relay -- --help` lists the options. `docs/benchmarks.md` explains the
//! figures.

// The runtime of the benchmark owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

#[path = "../harness/mod.rs"]
mod harness;

mod ceiling;
mod options;
mod poison;
mod producer;
mod report;
mod rounds;
mod topics;

use clap::Parser as _;

use harness::{Outcome, debezium::Debezium, servers::Servers, tidings::Tidings};
use options::Options;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let options = Options::parse_from(harness::arguments());
    let servers = Servers::start()?;
    println!("{}", servers.describe());
    let tidings = Tidings::new(options.tidings.clone(), servers.kafka.brokers());
    let debezium = match options.skip_debezium {
        true => None,
        false => Debezium::of(&servers),
    };
    let mut reports = Vec::new();
    for scenario in options.scenarios() {
        let scenario = options.adjusted(scenario);
        if scenario.scenario == options::Scenario::Poison {
            poison::run(options.rounds, &servers, &tidings, scenario).await?;
            continue;
        }
        if scenario.scenario == options::Scenario::Topics {
            topics::run(options.rounds, &servers, &tidings, scenario).await?;
            continue;
        }
        reports.push(rounds::run(&options, &servers, &tidings, debezium.as_ref(), scenario).await?);
    }
    report::print(&reports);
    Ok(())
}
