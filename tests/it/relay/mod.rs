//! Relays on real services. A history of aggregate versions decides, not the code under test.

mod acls;
mod authority;
mod clock;
mod content;
mod continuity;
mod debezium;
mod encrypted;
mod faults;
pub(crate) mod grants;
mod growth;
mod healing;
mod hostile;
mod isolation;
mod killed;
mod main_job;
mod names;
mod operator;
mod parked;
mod pooled;
mod preflight;
mod ready;
mod refusals;
mod retention;
mod scheduled;
mod shutdown;
mod transactions;
mod traps;
mod two;
mod unusable;
mod verify;

// `subscriber/foreign.rs` still uses this path.
pub(crate) use crate::support::records;
