//! Tidings as anybody runs it: the release binary, `tidings relay`, every setting at its default.

use std::path::PathBuf;

use super::{Outcome, process::Process};

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
        Self { program, brokers, logs: std::env::temp_dir() }
    }

    /// Starts it on `database`, with every event going to `topic`.
    pub(crate) fn start(&self, database: &str, topic: &str) -> Outcome<Process> {
        let arguments = ["relay", "--database-url", database, "--brokers", &self.brokers, "--topic", topic, "--listen", "off"];
        let log = self.logs.join(format!("tidings-bench-{}.log", std::process::id()));
        Process::start(&self.program, &arguments.map(str::to_owned), &log)
    }
}
