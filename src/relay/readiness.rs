//! Readiness of a relay: the standing reasons against it, by the check that shows them.
//!
//! Each part of the relay raises and clears its own reasons, so none of them hides another. A check fails while at least
//! one of its reasons stands, and lists all of them.

use std::collections::BTreeMap;

use super::observe::{Check, CheckState};

/// The checks, in the order in which a relay starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Database,
    Lease,
    Kafka,
    Stream,
    Progress,
}

impl Part {
    pub(super) const ALL: [Self; 5] = [Self::Database, Self::Lease, Self::Kafka, Self::Stream, Self::Progress];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Lease => "lease",
            Self::Kafka => "kafka",
            Self::Stream => "stream",
            Self::Progress => "progress",
        }
    }
}

/// The owner of a reason. Raising a reason replaces the earlier one of the same owner only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The part has not been tried since the process started.
    NotTried,
    /// The last session was interrupted, and none has delivered since.
    Interrupted,
    /// No broker can be reached.
    Cluster,
    /// A session that is no relay holds the lock of the lease.
    LockHolder,
    /// A [`Reason`](super::observe::Reason), by its number.
    Held(u64),
}

/// The standing reasons, and what each check shows while it has none.
#[derive(Debug)]
pub(super) struct Board {
    notes: BTreeMap<Part, String>,
    reasons: BTreeMap<(Part, Cause), String>,
    held: u64,
}

impl Board {
    /// A board on which nothing but progress has a good note yet.
    pub(super) fn new() -> Self {
        let mut board = Self { notes: BTreeMap::new(), reasons: BTreeMap::new(), held: 0 };
        for part in Part::ALL.into_iter().filter(|part| *part != Part::Progress) {
            board.raise(part, Cause::NotTried, "not tried yet".into());
        }
        board
    }

    /// Sets what the check shows while no reason stands. Clears no reason but [`Cause::NotTried`].
    pub(super) fn note(&mut self, part: Part, text: String) {
        self.clear(part, Cause::NotTried);
        self.notes.insert(part, text);
    }

    pub(super) fn raise(&mut self, part: Part, cause: Cause, text: String) {
        self.reasons.insert((part, cause), text);
    }

    pub(super) fn clear(&mut self, part: Part, cause: Cause) {
        self.reasons.remove(&(part, cause));
    }

    /// Clears this cause in every part.
    pub(super) fn clear_everywhere(&mut self, cause: Cause) {
        self.reasons.retain(|(_, standing), _| *standing != cause);
    }

    /// A number for one more held reason.
    pub(super) fn next_held(&mut self) -> Cause {
        self.held += 1;
        Cause::Held(self.held)
    }

    /// Every check. `stalled` is the reason why delivery does not progress, if it does not.
    pub(super) fn checks(&self, stalled: Option<String>) -> Vec<Check> {
        Part::ALL.into_iter().map(|part| Check { name: part.name(), state: self.state(part, stalled.as_deref()) }).collect()
    }

    fn state(&self, part: Part, stalled: Option<&str>) -> CheckState {
        let mut texts: Vec<&str> = stalled.filter(|_| part == Part::Progress).into_iter().collect();
        let mut not_tried = None;
        for ((_, cause), text) in self.reasons.iter().filter(|((of, _), _)| *of == part) {
            match cause {
                Cause::NotTried => not_tried = Some(text.as_str()),
                _ if texts.contains(&text.as_str()) => {}
                _ => texts.push(text),
            }
        }
        // A part for which there is a reason has been tried, and has not succeeded.
        texts.extend(not_tried.filter(|_| texts.is_empty()));
        if texts.is_empty() {
            let note = self.notes.get(&part).map_or("no delay", String::as_str);
            return CheckState::Ok(note.to_owned());
        }
        CheckState::Failing(texts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failing(board: &Board, part: Part) -> Option<String> {
        match board.state(part, None) {
            CheckState::Ok(_) => None,
            CheckState::Failing(text) => Some(text),
        }
    }

    #[test]
    fn a_part_is_failing_until_it_was_tried() {
        let mut board = Board::new();
        assert_eq!(failing(&board, Part::Kafka).as_deref(), Some("not tried yet"));
        board.raise(Part::Kafka, Cause::Cluster, "no broker answers".into());
        assert_eq!(failing(&board, Part::Kafka).as_deref(), Some("no broker answers"));
        board.clear(Part::Kafka, Cause::Cluster);
        assert_eq!(failing(&board, Part::Kafka).as_deref(), Some("not tried yet"));
        board.note(Part::Kafka, "connected".into());
        assert_eq!(board.state(Part::Kafka, None), CheckState::Ok("connected".into()));
        assert!(failing(&board, Part::Stream).is_some());
        assert_eq!(failing(&board, Part::Progress), None);
    }

    #[test]
    fn a_note_does_not_hide_a_reason_and_every_reason_is_listed_once() {
        let mut board = Board::new();
        let (orders, bills) = (board.next_held(), board.next_held());
        board.raise(Part::Kafka, orders, "topic `orders` does not exist".into());
        board.raise(Part::Kafka, Cause::Cluster, "no broker answers".into());
        board.raise(Part::Kafka, bills, "no broker answers".into());
        board.note(Part::Kafka, "connected".into());
        assert_eq!(failing(&board, Part::Kafka).as_deref(), Some("no broker answers; topic `orders` does not exist"));
        board.clear(Part::Kafka, Cause::Cluster);
        board.clear(Part::Kafka, bills);
        assert_eq!(failing(&board, Part::Kafka).as_deref(), Some("topic `orders` does not exist"));
        board.clear(Part::Kafka, orders);
        assert_eq!(board.state(Part::Kafka, None), CheckState::Ok("connected".into()));
    }

    #[test]
    fn a_stall_fails_progress_and_no_other_check() {
        let board = Board::new();
        let failing: Vec<_> = board.checks(Some("stalled".into())).into_iter().map(|check| (check.name, check.state)).collect();
        assert!(failing.contains(&("progress", CheckState::Failing("stalled".into()))));
        assert!(!failing.contains(&("stream", CheckState::Failing("stalled".into()))));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Note(Part),
        Raise(Part, Cause),
        Clear(Part, Cause),
        ClearEverywhere(Cause),
    }

    fn step() -> impl Strategy<Value = Step> {
        let part = || proptest::sample::select(Part::ALL.to_vec());
        let cause = || proptest::sample::select(vec![Cause::Interrupted, Cause::Cluster, Cause::Held(1), Cause::Held(2)]);
        prop_oneof![
            part().prop_map(Step::Note),
            (part(), cause()).prop_map(|(part, cause)| Step::Raise(part, cause)),
            (part(), cause()).prop_map(|(part, cause)| Step::Clear(part, cause)),
            cause().prop_map(Step::ClearEverywhere),
        ]
    }

    proptest! {
        /// Whatever the order of the writers, a check fails exactly while a reason stands.
        #[test]
        fn a_check_fails_exactly_while_a_reason_of_its_part_stands(steps in proptest::collection::vec(step(), 0..60)) {
            let mut board = Board::new();
            Part::ALL.into_iter().for_each(|part| board.note(part, "fine".into()));
            let mut standing = std::collections::BTreeSet::new();
            for step in steps {
                match step {
                    Step::Note(part) => board.note(part, "fine".into()),
                    Step::Raise(part, cause) => {
                        board.raise(part, cause, format!("{cause:?}"));
                        standing.insert((part, cause));
                    }
                    Step::Clear(part, cause) => {
                        board.clear(part, cause);
                        standing.remove(&(part, cause));
                    }
                    Step::ClearEverywhere(cause) => {
                        board.clear_everywhere(cause);
                        standing.retain(|(_, other)| *other != cause);
                    }
                }
                for part in Part::ALL {
                    prop_assert_eq!(failing(&board, part).is_some(), standing.iter().any(|(of, _)| *of == part));
                }
            }
        }
    }
}
