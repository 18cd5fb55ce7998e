//! The comparison for a program that knows its events and reads its records itself.
//!
//! ```
//! use tidings::verification::{HistoryEvent, HistoryRecord, compare_history};
//! use uuid::Uuid;
//!
//! let event = |seq| HistoryEvent { id: Uuid::from_u128(seq), aggregate: 7, seq: seq as i64 }; let
//! record = |seq, offset| HistoryRecord { id: Uuid::from_u128(seq), partition: 0, offset }; let
//! verdict = compare_history([event(1), event(2)], [record(2, 0), record(1, 1), record(1, 2)])?;
//! assert_eq!((verdict.lost, verdict.repeated, verdict.reordered), (0, 1, 1));
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io;

use uuid::Uuid;

use super::compare::{Inputs, Rules, compare};
use super::entry::{CommittedEvent, NOWHERE, Origin, State, TopicRecord, UNKNOWN_TIME};
use super::horizon::Horizons;
use super::order::{Recent, Writers, check_order};
use super::sorter::Sorter;

/// An event that must be in the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryEvent {
    /// Id of the event.
    pub id: Uuid,
    /// Number of the aggregate.
    pub aggregate: u64,
    /// Place of the event in the order of its aggregate.
    pub seq: i64,
}

/// A record of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryRecord {
    /// Id of the event.
    pub id: Uuid,
    /// Partition of the record.
    pub partition: i32,
    /// Offset of the record.
    pub offset: i64,
}

/// Result of [`compare_history`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryVerdict {
    /// Events without a record.
    pub lost: u64,
    /// Records of an event in addition to the first one.
    pub repeated: u64,
    /// Events behind a later one of their aggregate, in one partition.
    pub reordered: u64,
    /// Records without an event.
    pub never_committed: u64,
}

/// Compares events with the records of one topic. It is the comparison of `tidings verify`. Large
/// inputs are sorted in temporary files.
///
/// # Errors
///
/// Returns an error if a temporary file cannot be used.
pub fn compare_history(
    events: impl IntoIterator<Item = HistoryEvent>,
    records: impl IntoIterator<Item = HistoryRecord>,
) -> io::Result<HistoryVerdict> {
    let folder = std::env::temp_dir();
    let mut inputs = Inputs {
        events: Sorter::new(&folder),
        records: Sorter::new(&folder),
    };
    for event in events {
        inputs.events.push(CommittedEvent {
            id: event.id.into_bytes(),
            seq: event.seq,
            xid: event.seq.cast_unsigned(),
            aggregate: event.aggregate,
            committed: UNKNOWN_TIME,
            place: NOWHERE,
            state: State::Published,
            repeats: 0,
        })?;
    }
    for record in records {
        inputs.records.push(TopicRecord {
            id: record.id.into_bytes(),
            place: record.partition.cast_unsigned(),
            offset: record.offset,
            time: 0,
            origin: Origin::Relay,
        })?;
    }
    let rules = Rules {
        exactly_once: true,
        folder: &folder,
    };
    let mut compared = compare(inputs, &rules, &mut Horizons::default())?;
    check_order(
        compared.delivered.sorted()?,
        Writers::Lock,
        &mut Recent::default(),
        &mut compared.tally,
        &mut compared.findings,
    )?;
    Ok(HistoryVerdict {
        lost: compared.missing.len(),
        repeated: compared.tally.repeated,
        reordered: compared.tally.reordered,
        never_committed: compared.unknown.len(),
    })
}
