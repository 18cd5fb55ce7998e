//! The release binary as `tidings relay`. Every setting except source and delivery has its default.

use std::path::PathBuf;

use super::{Outcome, process::Process};

/// Source and delivery guarantee of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// The table while the relay is behind, the log otherwise; exactly once.
    Default,
    /// The log only, exactly once.
    WalOnce,
    /// The log only, at least once.
    WalAtLeastOnce,
    /// The table only, exactly once.
    Poll,
}

/// The program and arguments of a relay.
pub(crate) struct Tidings {
    program: PathBuf,
    brokers: String,
    logs: PathBuf,
}

impl Tidings {
    /// Uses the binary that cargo built for this benchmark, or `other` if given.
    pub(crate) fn new(other: Option<PathBuf>, brokers: String) -> Self {
        let program = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_tidings").into());
        Self {
            program,
            brokers,
            logs: std::env::temp_dir(),
        }
    }

    /// Starts a relay on `database`. All events are published to `topic`.
    pub(crate) fn start(&self, database: &str, topic: &str, mode: Mode) -> Outcome<Process> {
        let (source, delivery) = match mode {
            Mode::Default => ("auto", "exactly-once"),
            Mode::WalOnce => ("wal", "exactly-once"),
            Mode::WalAtLeastOnce => ("wal", "at-least-once"),
            Mode::Poll => ("poll", "exactly-once"),
        };
        let kafka = [
            "--brokers",
            &self.brokers,
            "--topic",
            topic,
            "--delivery",
            delivery,
        ];
        let arguments = [
            &[
                "relay",
                "--database-url",
                database,
                "--listen",
                "off",
                "--source",
                source,
            ][..],
            &kafka,
        ]
        .concat();
        let log = self.logs.join(format!(
            "tidings-bench-{}-{source}-{delivery}.log",
            std::process::id()
        ));
        Process::start(
            &self.program,
            &arguments.into_iter().map(str::to_owned).collect::<Vec<_>>(),
            &log,
        )
    }
}
