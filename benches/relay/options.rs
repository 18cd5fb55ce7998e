//! Command line of the benchmark.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::harness::{outbox::Backlog, tidings::Mode};

/// Measures how fast the relay drains a backlog from the write-ahead log.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench relay --")]
pub(crate) struct Options {
    /// Scenarios to measure, separated by commas. Defaults to all except `long`, `huge`,
    /// `poison` and `topics`.
    #[arg(long = "scenario", value_delimiter = ',', env = "BENCH_SCENARIO")]
    scenarios: Vec<Scenario>,
    /// Events in the backlog. Defaults to the scenario's own number.
    #[arg(long, env = "BENCH_EVENTS")]
    events: Option<u64>,
    /// Events per transaction. Defaults to the scenario's own number.
    #[arg(long, env = "BENCH_PER_TX")]
    per_tx: Option<u64>,
    /// Bytes of padding per payload, in addition to 50 others. Defaults to the scenario's own
    /// number.
    #[arg(long, env = "BENCH_PAD")]
    pad: Option<u32>,
    /// Number of rounds. The table shows medians.
    #[arg(long, default_value_t = 3, env = "BENCH_ROUNDS")]
    pub(crate) rounds: usize,
    /// Skip Debezium.
    #[arg(long)]
    pub(crate) skip_debezium: bool,
    /// Skip the upper limits: a bare reader of the walsender, and a bare producer.
    #[arg(long)]
    pub(crate) skip_limits: bool,
    /// Another build of the binary, for comparison.
    #[arg(long)]
    pub(crate) tidings: Option<PathBuf>,
}

/// A backlog, for which the report defines goals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// A million events of 250 B, ten per transaction.
    Drain,
    /// Three million events of 250 B, ten per transaction: the defaults compared with Debezium.
    Long,
    /// 300,000 events, each in its own transaction.
    Single,
    /// 500,000 events of 540 B.
    Wide,
    /// A million events of 250 B. The topic refuses one in a hundred; another topic accepts all.
    Poison,
    /// 20,000 events for 2,000 existing topics, and the same events for one topic.
    Topics,
    /// Two million events in one transaction. Use `--events 10000000` for the full size.
    Huge,
}

/// A scenario and its backlog.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sized {
    pub(crate) scenario: Scenario,
    pub(crate) backlog: Backlog,
}

impl Scenario {
    /// Returns the name of the scenario, which is also that of its database.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Long => "long",
            Self::Single => "single",
            Self::Wide => "wide",
            Self::Huge => "huge",
            Self::Poison => "poison",
            Self::Topics => "topics",
        }
    }

    fn backlog(self) -> Backlog {
        match self {
            Self::Drain | Self::Poison => Backlog {
                events: 1_000_000,
                per_tx: 10,
                pad: 200,
            },
            Self::Long => Backlog {
                events: 3_000_000,
                per_tx: 10,
                pad: 200,
            },
            Self::Single => Backlog {
                events: 300_000,
                per_tx: 1,
                pad: 200,
            },
            Self::Wide => Backlog {
                events: 500_000,
                per_tx: 10,
                pad: 490,
            },
            Self::Topics => Backlog {
                events: 20_000,
                per_tx: 10,
                pad: 200,
            },
            Self::Huge => Backlog {
                events: 2_000_000,
                per_tx: u64::MAX,
                pad: 200,
            },
        }
    }
}

impl Options {
    pub(crate) fn scenarios(&self) -> Vec<Scenario> {
        match self.scenarios.is_empty() {
            true => vec![Scenario::Drain, Scenario::Single, Scenario::Wide],
            false => self.scenarios.clone(),
        }
    }

    /// Returns the modes of Tidings that the scenario compares.
    pub(crate) fn modes(scenario: Scenario) -> &'static [Mode] {
        match scenario {
            Scenario::Drain | Scenario::Single => {
                &[Mode::Default, Mode::WalOnce, Mode::WalAtLeastOnce]
            }
            Scenario::Wide | Scenario::Long | Scenario::Poison | Scenario::Topics => {
                &[Mode::Default]
            }
            Scenario::Huge => &[Mode::Default, Mode::WalOnce],
        }
    }

    /// Returns the scenario with the numbers of the command line.
    pub(crate) fn adjusted(&self, scenario: Scenario) -> Sized {
        let own = scenario.backlog();
        let events = self.events.unwrap_or(own.events);
        let per_tx = self.per_tx.unwrap_or(own.per_tx).min(events);
        Sized {
            scenario,
            backlog: Backlog {
                events,
                per_tx,
                pad: self.pad.unwrap_or(own.pad),
            },
        }
    }
}
