//! What the benchmarks share: servers, an outbox with a backlog, relays as child processes, and what they cost.
#![allow(dead_code, reason = "each benchmark uses its part")]

pub(crate) mod debezium;
pub(crate) mod outbox;
pub(crate) mod process;
pub(crate) mod servers;
pub(crate) mod tidings;
pub(crate) mod topic;

/// Any failure ends a benchmark with its text.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What `cargo bench` hands to every benchmark, and the arguments meant for this one.
pub(crate) fn arguments() -> impl Iterator<Item = String> {
    std::env::args().filter(|argument| argument != "--bench")
}
