//! Result of a verification.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::entry::{Id, PlaceIndex};

/// Maximum number of findings of each kind that are named. All are counted.
const NAMED_MAX: usize = 20;

/// Counts of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    /// Events in the outbox, in the verified range.
    pub(crate) committed: u64,
    /// Records of events in the topics, in the range that was read.
    pub(crate) records: u64,
    /// Events that must have a record and have one.
    pub(crate) delivered: u64,
    /// Events that are not published yet.
    pub(crate) waiting: u64,
    /// Events that are published already, although the stored position does not contain them yet.
    pub(crate) ahead: u64,
    pub(crate) parked: u64,
    /// Events that are only in a dead letter topic of the relay.
    pub(crate) dead_lettered: u64,
    pub(crate) discarded: u64,
    pub(crate) skipped: u64,
    pub(crate) scheduled: u64,
    /// Additional records that operators or other relays have caused.
    pub(crate) repeated_on_purpose: u64,
    /// Additional records that delivery at least once allows.
    pub(crate) repeated_at_least_once: u64,
    /// Events behind a later insert that certainly committed earlier.
    pub(crate) in_commit_order: u64,
    /// Records of other sources.
    pub(crate) foreign: u64,
    /// Records of events that committed after the snapshot, or before the verified range.
    pub(crate) outside: u64,

    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    pub(crate) reordered: u64,
    pub(crate) never_committed: u64,

    pub(crate) order_undecided: u64,
    /// Records whose row retention has deleted.
    pub(crate) without_row: u64,
    /// Events whose record Kafka may have deleted.
    pub(crate) trimmed: u64,
    /// Events of a compacted topic without a record.
    pub(crate) compacted: u64,
    /// Events without a record whose topic does not exist.
    pub(crate) without_topic: u64,
    /// Events without a record in a partition with a transaction that does not end.
    pub(crate) hidden: u64,
    /// Records without a row, while transactions that may contain it do not end.
    pub(crate) not_visible: u64,
}

impl Tally {
    /// Returns the number of faults.
    pub(crate) fn wrong(&self) -> u64 {
        self.lost + self.repeated + self.reordered + self.never_committed
    }

    /// Returns the number of events and records that could not be verified.
    pub(crate) fn unverified(&self) -> u64 {
        self.without_row
            + self.trimmed
            + self.compacted
            + self.without_topic
            + self.hidden
            + self.not_visible
    }
}

/// Kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Lost,
    Repeated,
    Reordered,
    NeverCommitted,
    OrderUndecided,
}

/// A finding before its event and its partition are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) id: Id,
    pub(crate) place: Option<(PlaceIndex, i64)>,
    /// The event in front of which it belongs.
    pub(crate) other: Option<Id>,
    /// Number of its records.
    pub(crate) copies: u64,
}

/// The first findings of each kind.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Fault>);

impl Findings {
    pub(crate) fn add(&mut self, fault: Fault) {
        let kind = fault.kind;
        if self.0.iter().filter(|other| other.kind == kind).count() < NAMED_MAX {
            self.0.push(fault);
        }
    }

    pub(crate) fn into_faults(self) -> Vec<Fault> {
        self.0
    }
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) event: Uuid,
    /// `type/id`. `None` if the event is not in the outbox.
    pub(crate) aggregate: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) topic: Option<Arc<str>>,
    pub(crate) partition: Option<i32>,
    pub(crate) offset: Option<i64>,
    /// Number of its records, if it is repeated.
    pub(crate) copies: Option<u64>,
    /// The event in front of which it belongs, if it is out of order.
    pub(crate) behind: Option<Uuid>,
}

/// A partition of which only a part could be verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Gap {
    pub(crate) topic: Arc<str>,
    /// `None` if the whole topic is affected.
    pub(crate) partition: Option<i32>,
    pub(crate) reason: GapReason,
    /// The first offset that Kafka keeps.
    pub(crate) first_offset: Option<i64>,
}

/// Reason why a part of a topic cannot be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GapReason {
    /// The first records were deleted.
    Trimmed,
    Compacted,
    /// The topic does not exist.
    Missing,
    /// A transaction does not end.
    OpenTransaction,
}

/// Result of a verification.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) relay: String,
    /// The database's time of the snapshot.
    pub(crate) snapshot_at: DateTime<Utc>,
    /// Every event that occurred before this time is verified.
    pub(crate) verified_until: DateTime<Utc>,
    /// Only events that occurred from this time on were verified.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) matches: bool,
    #[serde(flatten)]
    pub(crate) tally: Tally,
    pub(crate) findings: Vec<Finding>,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) seconds: f64,
}
