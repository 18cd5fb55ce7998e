//! The servers start, respond, survive the actions of a test, and never outlive their owner.

// The runtime of a test owns its tasks, and ends with the test.
#![allow(clippy::disallowed_methods)]

mod cluster;
mod owner;
mod pair;
#[cfg(feature = "databases")]
mod per_test;
mod private;
mod wire;
