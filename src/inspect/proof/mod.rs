//! Proof that the topics of a relay contain the committed outbox.
//!
//! # Argument
//!
//! Events and records are compared while events flow, so the comparison needs one point in time at
//! which both sides are known. Three facts provide it:
//!
//! 1. **Lower bound.** The relay stores its position in the database *after* the records of the
//!    position are committed in Kafka (`src/relay/pipeline/checkpoint.rs`). Snapshot S of the
//!    database contains a position P. Every event in P that is not parked in S therefore has a
//!    committed record. The ends E of all partitions are queried after S is taken, so these records
//!    are before E. An event in P without a record before E is **lost**.
//! 2. **Upper bound.** A record exists only for a committed event. A row that S does not see is
//!    looked up after its record was read. A transaction may be in the log before other sessions
//!    see it. Therefore a row that is not found is looked up again after every transaction of the
//!    first query has ended. A record without a row is then **never committed**, unless retention
//!    has deleted the row: the table `retention` contains the time of the youngest deleted event.
//! 3. **Readers of committed records** see a record only when all transactions before it have
//!    ended. The reader therefore waits until the last stable offset has passed E.
//!
//! Events that S sees and P does not contain are waiting: with or without a record, they are right.
//! Events that an operator has left out or repeated are in the table `relay_decision`, which
//! triggers write (`migrations/0043_verification.sql`). Two records of one event at different
//! offsets are **repeated**, unless an operator has moved the relay back, or delivery is at least
//! once. `order` explains which order is **wrong**, and `horizon` which records Kafka may have
//! deleted.
//!
//! # Memory
//!
//! Nothing is kept per event. Events and records become entries of 54 and 37 bytes that are sorted
//! by event id in temporary files, merged, and sorted again by aggregate for the check of the order
//! (`sorter`). Memory is bounded by the buffers of the sorters (2 MB each, and 32 KB for each of at
//! most 32 files per level) and of the Kafka client, whatever the number of events. The files take
//! about 200 bytes per event.
//!
//! | file | content |
//! |---|---|
//! | `run` | one verification, and rounds that continue it |
//! | `prepare` | inputs of a round |
//! | `baseline` | snapshot of the database: position, decisions, events |
//! | `selection` | events that a round verifies (pure) |
//! | `decisions` | state of an event (pure) |
//! | `identify` | identity of a record (pure) |
//! | `places` | partitions |
//! | `compare` | events against records (pure) |
//! | `order` | order per aggregate (pure) |
//! | `missing`, `horizon` | events without a record, and trimmed partitions (pure) |
//! | `lookup` | records without an event in the snapshot |
//! | `history` | the comparison for programs that read their records themselves |
//! | `entry`, `sorter` | entries, and their sort in files |
//! | `progress` | how much of the topics is read |
//! | `report` | the result |

mod baseline;
mod compare;
mod decisions;
mod entry;
pub mod history;
mod horizon;
mod identify;
mod lookup;
mod missing;
mod order;
mod places;
mod prepare;
mod progress;
mod report;
mod run;
mod selection;
mod sorter;

pub(crate) use self::order::Writers;
pub(crate) use self::report::{Finding, Gap, GapReason, Kind, Report, Tally};
pub(crate) use self::run::{Rounds, Verifier};

use super::InspectError;
use crate::kafka::TopicError;

/// Error of a verification.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error(transparent)]
    Database(InspectError),
    #[error(transparent)]
    Kafka(#[from] TopicError),
    /// A temporary file cannot be used.
    #[error("cannot write temporary files")]
    File(#[from] std::io::Error),
    /// The relay cannot be verified. The text names the remedy.
    #[error("{0}")]
    Refused(String),
}

/// Returns the hash that identifies an aggregate within one process.
fn aggregate_hash(kind: &str, id: &str) -> u64 {
    use std::hash::BuildHasher as _;
    foldhash::quality::FixedState::default().hash_one((kind, id))
}
