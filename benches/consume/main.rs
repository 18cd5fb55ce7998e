//! How fast a subscriber handles what is in a topic: 8 partitions, JSON of 250 B, 20,000 keys, order per key.
//!
//! ```sh
//! cargo bench --bench consume                                   # every scenario once
//! cargo bench --bench consume -- --scenario no-work,one-milli --rounds 3
//! cargo bench --bench consume -- --brokers host:9092 --topic t  # a topic that is there, e.g. one that peers read too
//! ```

#[path = "../harness/mod.rs"]
mod harness;

mod fill;
mod options;
mod scenarios;
mod timer;

use clap::Parser;
use harness::{Outcome, servers::Servers};
use options::Options;

#[tokio::main]
async fn main() -> Outcome<()> {
    let options = Options::parse_from(harness::arguments());
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    let servers = Servers::start()?;
    println!("{}", servers.describe());
    let brokers = options.brokers.clone().unwrap_or_else(|| servers.kafka.brokers());
    println!("{:<16} {:>9} {:>9} {:>12} {:>9} {:>9}", "scenario", "records", "seconds", "records/s", "CPU s", "peak MB");
    for scenario in options.scenarios() {
        let records = options.records.unwrap_or(scenario.records());
        let topic = match &options.topic {
            Some(topic) => topic.clone(),
            None => fill::topic(&brokers, records, scenario.keys()).await?,
        };
        for _ in 0..options.rounds {
            scenarios::run(scenario, &brokers, &servers.postgres.url(), &topic, records).await?;
        }
    }
    Ok(())
}
