//! Events that cannot be handled: they are parked, sent to the dead letters, and replayed from
//! there. `attempt/escalation.rs` decides which.
//!
//! | file | content |
//! |---|---|
//! | `parked` | the table of parked events |
//! | `dead_letter` | topics and headers of dead letters and of retries |
//! | `redrive` | listing, replaying and discarding dead letters |
//! | `letter_reader` | reading dead letters one by one |
//!
//! `consume/partition.rs` keeps the order: it tracks the parked aggregates of its partition, and
//! parks their later events too.

pub(crate) mod dead_letter;
#[cfg(feature = "cli")]
pub(crate) mod letter_reader;
pub(crate) mod parked;
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) mod redrive;
