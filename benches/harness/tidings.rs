//! Tidings as anybody runs it: the release binary, `tidings relay`, every setting at its default but for source and delivery.

use std::path::PathBuf;

use super::{Outcome, process::Process};

/// What it reads, and what it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// The table while behind and the log at its head, exactly once.
    Default,
    /// The log alone, exactly once.
    WalOnce,
    /// The log alone, at least once.
    WalAtLeastOnce,
    /// The table alone, exactly once.
    Poll,
}

/// How to start the relay.
pub(crate) struct Tidings {
    program: PathBuf,
    brokers: String,
    logs: PathBuf,
}

impl Tidings {
    /// The binary that cargo built for this benchmark, or another build of it.
    pub(crate) fn new(other: Option<PathBuf>, brokers: String) -> Self {
        let program = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_tidings").into());
        Self {
            program,
            brokers,
            logs: std::env::temp_dir(),
        }
    }

    /// Starts it on `database`, with every event going to `topic`.
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
