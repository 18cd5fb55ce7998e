//! Subscribers on real services. Effects counted in Postgres decide, not the code under test.

mod control;
mod delivery;
mod deployments;
mod encodings;
mod example;
mod failures;
mod foreign;
mod headers;
mod hostile;
mod identity;
mod keyless;
mod killed;
mod members;
pub(crate) mod observing;
mod panics;
mod process;
mod publishing;
mod raw_record;
mod redrive;
mod refused_letters;
mod sessions;
mod standstill;
mod statements;
mod tombstones;
mod topics;
mod transactions;
mod waits;

// `foreign.rs` still uses this path.
use crate::support::place;
