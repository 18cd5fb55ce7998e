//! What to measure.

use clap::{Parser, ValueEnum};

/// How fast a subscriber handles what is in a topic.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench consume --")]
pub(crate) struct Options {
    /// What to measure; several separated by commas. All unless given.
    #[arg(long = "scenario", value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// Records in the topic, in place of each scenario's own number.
    #[arg(long)]
    pub(crate) records: Option<u64>,
    /// Rounds of each scenario.
    #[arg(long, default_value_t = 1)]
    pub(crate) rounds: usize,
    /// Neither consumers of the JVM, which Maven fetches once, nor pgbench.
    #[arg(long)]
    pub(crate) no_peers: bool,
    /// Handle the topic by one scenario, with this database, and say what it took: what each round starts as a process of its own.
    #[arg(long, hide = true, requires = "topic", requires = "brokers")]
    pub(crate) measure: Option<String>,
    /// Another Kafka.
    #[arg(long)]
    pub(crate) brokers: Option<String>,
    /// A topic that is there, with as many records as --records says.
    #[arg(long, requires = "records")]
    pub(crate) topic: Option<String>,
}

/// What the handler does, and how many run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// Nothing but reading the event.
    NoWork,
    /// Waits for 1 ms, 256 at once.
    OneMilli,
    /// Waits for 10 ms, 1,024 at once.
    TenMilli,
    /// Waits for 1 ms, 256 at once, with 200 keys.
    FewKeys,
    /// One update, with an inbox, one event a transaction, on 16 connections.
    EffectOnce,
    /// The same, 32 events a transaction.
    #[value(name = "batch-32")]
    Batch32,
    /// The same, 100 events a transaction.
    #[value(name = "batch-100")]
    Batch100,
    /// One update for all of up to 32 events.
    SetBased,
}

/// How events are handled by transactions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transactions {
    /// How many at once. There are twice as many handlers: the next one begins by the message that commits one before.
    pub(crate) connections: usize,
    /// Events in each.
    pub(crate) events: usize,
    /// By one update for all of them.
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

    /// How many microseconds a handler without an inbox waits, and how many run at once.
    pub(crate) fn waits(self) -> Option<(u64, usize)> {
        match self {
            Self::NoWork => Some((0, 64)),
            Self::OneMilli | Self::FewKeys => Some((1_000, 256)),
            Self::TenMilli => Some((10_000, 1_024)),
            Self::EffectOnce | Self::Batch32 | Self::Batch100 | Self::SetBased => None,
        }
    }

    /// What its transactions hold, if it has an inbox.
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
