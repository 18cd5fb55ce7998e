//! Decisions of operators by which the topics differ from the outbox on purpose, and the events
//! that wait in the relay. Pure.

use crate::relay::position::{Position, Snapshot};

use super::entry::State;

/// The relay's view of the outbox in one snapshot of the database.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    /// Parked events, by `seq`, ascending.
    pub(crate) parked: Vec<i64>,
    pub(crate) parked_ranges: Vec<Range>,
    /// Discarded events, by `seq`, ascending.
    pub(crate) discarded: Vec<i64>,
    pub(crate) discarded_ranges: Vec<Range>,
    /// Skipped events, by `seq`, ascending.
    pub(crate) skipped: Vec<i64>,
    pub(crate) moves: Vec<PositionMove>,
}

/// Events of one aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// Hash of the aggregate.
    pub(crate) aggregate: u64,
    pub(crate) from: i64,
    pub(crate) to: i64,
}

/// A change of the position by an operator.
#[derive(Debug)]
pub(crate) struct PositionMove {
    /// `None` if its transaction ids have no meaning in this database.
    pub(crate) before: Option<Position>,
    pub(crate) after: Position,
    /// The transactions that had ended.
    pub(crate) visible: Snapshot,
}

impl Decisions {
    /// Returns the state of an event, and the number of records that operators have caused in
    /// addition to the first one.
    pub(crate) fn state(
        &self,
        position: &Position,
        (xid, seq): (u64, i64),
        aggregate: u64,
    ) -> (State, u8) {
        let within = |ranges: &[Range]| {
            ranges
                .iter()
                .any(|range| range.aggregate == aggregate && (range.from..=range.to).contains(&seq))
        };
        let contains =
            |events: &[i64], ranges: &[Range]| events.binary_search(&seq).is_ok() || within(ranges);
        let (mut skipped, mut repeats) = (self.skipped.binary_search(&seq).is_ok(), 0u8);
        for moved in &self.moves {
            let after = moved.after.covers(xid, seq);
            let before = moved.before.as_ref();
            skipped |= after && !before.is_some_and(|before| before.covers(xid, seq));
            // The position before may be newer in Kafka. Every event of that time may repeat.
            repeats = repeats.saturating_add(u8::from(!after && moved.visible.sees(xid)));
        }
        let state = if contains(&self.discarded, &self.discarded_ranges) {
            State::Discarded
        } else if contains(&self.parked, &self.parked_ranges) {
            State::Parked
        } else if !position.covers(xid, seq) {
            State::Waiting
        } else if skipped {
            State::Skipped
        } else {
            State::Published
        };
        (state, repeats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(seen: &str) -> Position {
        Position {
            snapshot: seen.parse().expect("a snapshot"),
            ..Position::start()
        }
    }

    #[test]
    fn each_decision_excuses_exactly_its_events() {
        let range = |aggregate, from, to| Range {
            aggregate,
            from,
            to,
        };
        let decisions = Decisions {
            parked: vec![2, 4],
            parked_ranges: vec![range(7, 10, 12)],
            discarded: vec![3],
            discarded_ranges: vec![range(8, 10, 12)],
            skipped: vec![5],
            moves: Vec::new(),
        };
        let position = position("100:100:");
        let state = |xid, seq, aggregate| decisions.state(&position, (xid, seq), aggregate);
        assert_eq!(state(50, 1, 0), (State::Published, 0));
        assert_eq!(state(50, 2, 0), (State::Parked, 0));
        assert_eq!(state(50, 3, 0), (State::Discarded, 0));
        assert_eq!(state(50, 5, 0), (State::Skipped, 0));
        assert_eq!(state(50, 11, 7), (State::Parked, 0));
        assert_eq!(state(50, 11, 8), (State::Discarded, 0));
        assert_eq!(state(50, 11, 9), (State::Published, 0));
        assert_eq!(state(100, 6, 0), (State::Waiting, 0));
    }

    #[test]
    fn a_move_excuses_the_events_between_its_positions() {
        let moved = |before: Option<&str>, after: &str, visible: &str| PositionMove {
            before: before.map(position),
            after: position(after),
            visible: visible.parse().expect("a snapshot"),
        };
        let now = position("100:100:");
        let with = |moves| Decisions {
            moves,
            ..Decisions::default()
        };
        // Skipped from transaction 20 to 30.
        let skip = with(vec![moved(Some("20:20:"), "30:30:", "30:30:")]);
        assert_eq!(skip.state(&now, (19, 1), 0), (State::Published, 0));
        assert_eq!(skip.state(&now, (20, 1), 0), (State::Skipped, 0));
        assert_eq!(skip.state(&now, (30, 1), 0), (State::Published, 0));
        // Rewound from 30 to 20, when transactions up to 35 had ended.
        let rewind = with(vec![moved(Some("30:30:"), "20:20:", "35:35:")]);
        assert_eq!(rewind.state(&now, (19, 1), 0), (State::Published, 0));
        assert_eq!(rewind.state(&now, (20, 1), 0), (State::Published, 1));
        assert_eq!(rewind.state(&now, (34, 1), 0), (State::Published, 1));
        assert_eq!(rewind.state(&now, (35, 1), 0), (State::Published, 0));
        // The position belonged to another database.
        let moved_in = with(vec![moved(None, "30:30:", "30:30:")]);
        assert_eq!(moved_in.state(&now, (5, 1), 0), (State::Skipped, 0));
    }
}
