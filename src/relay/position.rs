//! Where a relay stands in the stream of events, and what it is a position in.

use crate::postgres::Lsn;

/// How far a relay is: every event before it is in Kafka.
///
/// A position in the log alone is not enough: all events of a transaction share the position of its commit, and a relay may
/// die in the middle of one. So the second part counts the transaction's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// The commit record of the transaction.
    pub(crate) commit_lsn: Lsn,
    /// How many of its events are done.
    pub(crate) ordinal: u64,
}

impl Position {
    /// Whether the event number `ordinal` (from zero) of the transaction that committed at `commit_lsn` is done.
    pub(crate) fn covers(self, commit_lsn: Lsn, ordinal: u64) -> bool {
        (commit_lsn, ordinal) < (self.commit_lsn, self.ordinal)
    }
}

/// What a position is a position in. Another database's log has the same numbers and other events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `pg_control_system()`: given once, by initdb; copies of the cluster keep it.
    pub(crate) system_identifier: String,
    /// The database within the cluster; `drop database` and a restore change it.
    pub(crate) database_oid: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_within_a_transaction_covers_its_first_events_only() {
        let position = Position { commit_lsn: Lsn(20), ordinal: 2 };
        let covered = |lsn, ordinal| position.covers(Lsn(lsn), ordinal);
        assert!(covered(10, 99) && covered(20, 0) && covered(20, 1));
        assert!(!covered(20, 2) && !covered(21, 0));
    }
}
