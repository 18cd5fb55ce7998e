//! Shared parts of the benchmarks: servers, an outbox with a backlog, relays as child processes,
//! and their cost.
#![allow(dead_code, reason = "each benchmark uses some of the parts")]

pub(crate) mod debezium;
pub(crate) mod outbox;
pub(crate) mod process;
pub(crate) mod servers;
pub(crate) mod tidings;
pub(crate) mod topic;

/// Any error ends a benchmark and is printed.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Returns the process arguments without the flag that `cargo bench` adds.
pub(crate) fn arguments() -> impl Iterator<Item = String> {
    std::env::args().filter(|argument| argument != "--bench")
}
