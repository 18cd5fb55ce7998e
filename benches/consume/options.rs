//! Command line of the benchmark.

use clap::{Parser, ValueEnum};

/// Measures how fast a subscriber handles the backlog of a topic.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench consume --")]
pub(crate) struct Options {
    /// Scenarios to measure, separated by commas. Defaults to all.
    #[arg(long = "scenario", value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// Number of records in the topic. Defaults to the scenario's own number.
    #[arg(long)]
    pub(crate) records: Option<u64>,
    /// Number of rounds per scenario.
    #[arg(long, default_value_t = 1)]
    pub(crate) rounds: usize,
    /// Skip the JVM consumers (Maven downloads them once) and pgbench.
    #[arg(long)]
    pub(crate) no_peers: bool,
    /// Run one scenario against this database and print its figures. Each round runs as such a
    /// child process.
    #[arg(long, hide = true, requires = "topic", requires = "brokers")]
    pub(crate) measure: Option<String>,
    /// Bootstrap servers of another Kafka cluster.
    #[arg(long)]
    pub(crate) brokers: Option<String>,
    /// An existing topic that holds as many records as --records.
    #[arg(long, requires = "records")]
    pub(crate) topic: Option<String>,
}

/// Work of the handler, and the number of concurrent handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// Only decodes the event.
    NoWork,
    /// Waits for 1 ms; 256 handlers run concurrently.
    OneMilli,
    /// Waits for 10 ms; 1,024 handlers run concurrently.
    TenMilli,
    /// Waits for 1 ms; 256 handlers run concurrently. The topic has only 200 keys.
    FewKeys,
    /// One update with an inbox: one event per transaction, on 16 connections.
    EffectOnce,
    /// One update with an inbox: 32 events per transaction.
    #[value(name = "batch-32")]
    Batch32,
    /// One update with an inbox: 100 events per transaction.
    #[value(name = "batch-100")]
    Batch100,
    /// One set-based update for up to 32 events.
    SetBased,
}

/// Transactions of a scenario with an inbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transactions {
    /// Number of connections. There are twice as many handlers, because the message that commits
    /// one transaction also begins the next one.
    pub(crate) connections: usize,
    /// Events per transaction.
    pub(crate) events: usize,
    /// One statement updates the rows of all events of a transaction.
    pub(crate) at_once: bool,
}

impl Options {
    pub(crate) fn scenarios(&self) -> Vec<Scenario> {
        if self.scenarios.is_empty() {
            Scenario::value_variants().to_vec()
        } else {
            self.scenarios.clone()
        }
    }
}

impl Scenario {
    pub(crate) fn records(self) -> u64 {
        match self {
            Self::NoWork => 3_000_000,
            Self::OneMilli | Self::TenMilli | Self::FewKeys => 1_000_000,
            Self::EffectOnce => 60_000,
            Self::Batch32 | Self::Batch100 => 200_000,
            Self::SetBased => 500_000,
        }
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// Returns the handler's wait in microseconds and the concurrency, or `None` if the scenario
    /// uses an inbox.
    pub(crate) fn waits(self) -> Option<(u64, usize)> {
        match self {
            Self::NoWork => Some((0, 64)),
            Self::OneMilli | Self::FewKeys => Some((1_000, 256)),
            Self::TenMilli => Some((10_000, 1_024)),
            Self::EffectOnce | Self::Batch32 | Self::Batch100 | Self::SetBased => None,
        }
    }

    /// Returns the shape of the transactions, or `None` if the scenario uses no inbox.
    pub(crate) fn transactions(self) -> Option<Transactions> {
        let (connections, events, at_once) = match self {
            Self::EffectOnce => (16, 1, false),
            Self::Batch32 => (8, 32, false),
            Self::Batch100 => (8, 100, false),
            Self::SetBased => (8, 32, true),
            Self::NoWork | Self::OneMilli | Self::TenMilli | Self::FewKeys => return None,
        };
        Some(Transactions {
            connections,
            events,
            at_once,
        })
    }

    pub(crate) fn keys(self) -> u64 {
        if self == Self::FewKeys { 200 } else { 20_000 }
    }
}
