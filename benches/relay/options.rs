//! What to measure.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::harness::{outbox::Backlog, tidings::Mode};

/// How fast the relay drains a backlog out of the write-ahead log.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench relay --")]
pub(crate) struct Options {
    /// What to measure; several separated by commas. All but `long`, `huge` and `poison` unless given.
    #[arg(long = "scenario", value_delimiter = ',', env = "BENCH_SCENARIO")]
    scenarios: Vec<Scenario>,
    /// Events in the backlog, in place of each scenario's own number.
    #[arg(long, env = "BENCH_EVENTS")]
    events: Option<u64>,
    /// Events a transaction, in place of each scenario's own number.
    #[arg(long, env = "BENCH_PER_TX")]
    per_tx: Option<u64>,
    /// Bytes of padding in each payload (which has 50 more), in place of each scenario's own number.
    #[arg(long, env = "BENCH_PAD")]
    pad: Option<u32>,
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 3, env = "BENCH_ROUNDS")]
    pub(crate) rounds: usize,
    /// Leave Debezium out.
    #[arg(long)]
    pub(crate) skip_debezium: bool,
    /// Leave the limits out: the walsender read by a bare reader, and a bare producer.
    #[arg(long)]
    pub(crate) skip_limits: bool,
    /// Another build of the binary, to compare with this one.
    #[arg(long)]
    pub(crate) tidings: Option<PathBuf>,
}

/// A backlog and what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// A million events of 250 B, ten a transaction.
    Drain,
    /// Three million events of 250 B, ten a transaction: the defaults against Debezium.
    Long,
    /// 300,000 events, each in a transaction of its own.
    Single,
    /// 500,000 events of 540 B.
    Wide,
    /// A million events of 250 B, of which the topic refuses one in a hundred, beside a topic that takes all of them.
    Poison,
    /// Two million events in one transaction. Give `--events 10000000` for the full size.
    Huge,
}

/// A scenario with its numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sized {
    pub(crate) scenario: Scenario,
    pub(crate) backlog: Backlog,
}

impl Scenario {
    /// The name of its database.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Long => "long",
            Self::Single => "single",
            Self::Wide => "wide",
            Self::Huge => "huge",
            Self::Poison => "poison",
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

    /// The ways of Tidings that the scenario compares.
    pub(crate) fn modes(scenario: Scenario) -> &'static [Mode] {
        match scenario {
            Scenario::Drain | Scenario::Single => {
                &[Mode::Default, Mode::WalOnce, Mode::WalAtLeastOnce]
            }
            Scenario::Wide | Scenario::Long | Scenario::Poison => &[Mode::Default],
            Scenario::Huge => &[Mode::Default, Mode::WalOnce],
        }
    }

    /// The scenario with the numbers that were asked for.
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
