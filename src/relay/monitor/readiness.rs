//! Readiness of a relay: the standing reasons against it, grouped by the check that shows them.
//!
//! Each part of the relay raises and clears its own reasons, so none of them hides another. A check
//! fails while at least one of its reasons stands, and lists all of them.

use std::collections::BTreeMap;

use super::metrics::{CheckState, RelayCheck};

/// The checks, in the order of a relay's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Component {
    Database,
    Lease,
    Kafka,
    Stream,
    Progress,
}

impl Component {
    pub(crate) const ALL: [Self; 5] = [
        Self::Database,
        Self::Lease,
        Self::Kafka,
        Self::Stream,
        Self::Progress,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Lease => "lease",
            Self::Kafka => "kafka",
            Self::Stream => "stream",
            Self::Progress => "progress",
        }
    }
}

/// The owner of a reason. Raising a reason replaces only the earlier one of the same owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The part has not been tried since the process started.
    NotTried,
    /// The last session was interrupted, and none has delivered since.
    Interrupted,
    /// No broker is reachable.
    Cluster,
    /// A session other than a relay holds the lock of the lease.
    LockHolder,
    /// A [`Reason`](super::metrics::Reason), by its number.
    Held(u64),
}

/// The standing reasons, and the texts of checks without one.
#[derive(Debug)]
pub(crate) struct Board {
    notes: BTreeMap<Component, String>,
    reasons: BTreeMap<(Component, Cause), String>,
    held: u64,
}

impl Board {
    /// Creates a board with a reason against every check but progress.
    pub(crate) fn new() -> Self {
        let mut board = Self {
            notes: BTreeMap::new(),
            reasons: BTreeMap::new(),
            held: 0,
        };
        for part in Component::ALL
            .into_iter()
            .filter(|part| *part != Component::Progress)
        {
            board.raise(part, Cause::NotTried, "not tried yet".into());
        }
        board
    }

    /// Sets the text of a check that holds. Clears no reason but [`Cause::NotTried`].
    pub(crate) fn note(&mut self, part: Component, text: String) {
        self.clear(part, Cause::NotTried);
        self.notes.insert(part, text);
    }

    pub(crate) fn raise(&mut self, part: Component, cause: Cause, text: String) {
        self.reasons.insert((part, cause), text);
    }

    pub(crate) fn clear(&mut self, part: Component, cause: Cause) {
        self.reasons.remove(&(part, cause));
    }

    /// Clears this cause in every part.
    pub(crate) fn clear_everywhere(&mut self, cause: Cause) {
        self.reasons.retain(|(_, standing), _| *standing != cause);
    }

    /// Returns the cause for one more held reason.
    pub(crate) fn next_held(&mut self) -> Cause {
        self.held += 1;
        Cause::Held(self.held)
    }

    /// Returns the state of every check. `stalled` is the reason why delivery makes no progress, if
    /// there is one.
    pub(crate) fn checks(&self, stalled: Option<String>) -> Vec<RelayCheck> {
        Component::ALL
            .into_iter()
            .map(|part| RelayCheck {
                name: part.name(),
                state: self.state(part, stalled.as_deref()),
            })
            .collect()
    }

    fn state(&self, part: Component, stalled: Option<&str>) -> CheckState {
        let mut texts: Vec<&str> = stalled
            .filter(|_| part == Component::Progress)
            .into_iter()
            .collect();
        let mut not_tried = None;
        for ((_, cause), text) in self.reasons.iter().filter(|((of, _), _)| *of == part) {
            match cause {
                Cause::NotTried => not_tried = Some(text.as_str()),
                _ if texts.contains(&text.as_str()) => {}
                _ => texts.push(text),
            }
        }
        // A part with another reason has been tried and has not succeeded.
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

    fn failing(board: &Board, part: Component) -> Option<String> {
        match board.state(part, None) {
            CheckState::Ok(_) => None,
            CheckState::Failing(text) => Some(text),
        }
    }

    #[test]
    fn a_part_is_failing_until_it_was_tried() {
        let mut board = Board::new();
        assert_eq!(
            failing(&board, Component::Kafka).as_deref(),
            Some("not tried yet")
        );
        board.raise(Component::Kafka, Cause::Cluster, "no broker answers".into());
        assert_eq!(
            failing(&board, Component::Kafka).as_deref(),
            Some("no broker answers")
        );
        board.clear(Component::Kafka, Cause::Cluster);
        assert_eq!(
            failing(&board, Component::Kafka).as_deref(),
            Some("not tried yet")
        );
        board.note(Component::Kafka, "connected".into());
        assert_eq!(
            board.state(Component::Kafka, None),
            CheckState::Ok("connected".into())
        );
        assert!(failing(&board, Component::Stream).is_some());
        assert_eq!(failing(&board, Component::Progress), None);
    }

    #[test]
    fn a_note_does_not_hide_a_reason_and_every_reason_is_listed_once() {
        let mut board = Board::new();
        let (orders, bills) = (board.next_held(), board.next_held());
        board.raise(
            Component::Kafka,
            orders,
            "topic `orders` does not exist".into(),
        );
        board.raise(Component::Kafka, Cause::Cluster, "no broker answers".into());
        board.raise(Component::Kafka, bills, "no broker answers".into());
        board.note(Component::Kafka, "connected".into());
        assert_eq!(
            failing(&board, Component::Kafka).as_deref(),
            Some("no broker answers; topic `orders` does not exist")
        );
        board.clear(Component::Kafka, Cause::Cluster);
        board.clear(Component::Kafka, bills);
        assert_eq!(
            failing(&board, Component::Kafka).as_deref(),
            Some("topic `orders` does not exist")
        );
        board.clear(Component::Kafka, orders);
        assert_eq!(
            board.state(Component::Kafka, None),
            CheckState::Ok("connected".into())
        );
    }

    #[test]
    fn a_stall_fails_progress_and_no_other_check() {
        let board = Board::new();
        let failing: Vec<_> = board
            .checks(Some("stalled".into()))
            .into_iter()
            .map(|check| (check.name, check.state))
            .collect();
        assert!(failing.contains(&("progress", CheckState::Failing("stalled".into()))));
        assert!(!failing.contains(&("stream", CheckState::Failing("stalled".into()))));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Note(Component),
        Raise(Component, Cause),
        Clear(Component, Cause),
        ClearEverywhere(Cause),
    }

    fn step() -> impl Strategy<Value = Step> {
        let part = || proptest::sample::select(Component::ALL.to_vec());
        let cause = || {
            proptest::sample::select(vec![
                Cause::Interrupted,
                Cause::Cluster,
                Cause::Held(1),
                Cause::Held(2),
            ])
        };
        prop_oneof![
            part().prop_map(Step::Note),
            (part(), cause()).prop_map(|(part, cause)| Step::Raise(part, cause)),
            (part(), cause()).prop_map(|(part, cause)| Step::Clear(part, cause)),
            cause().prop_map(Step::ClearEverywhere),
        ]
    }

    proptest! {
        /// In any order of the writers, a check fails exactly while a reason stands.
        #[test]
        fn a_check_fails_exactly_while_a_reason_of_its_part_stands(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let mut board = Board::new();
            Component::ALL
                .into_iter()
                .for_each(|part| board.note(part, "fine".into()));
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
                for part in Component::ALL {
                    prop_assert_eq!(
                        failing(&board, part).is_some(),
                        standing.iter().any(|(of, _)| *of == part)
                    );
                }
            }
        }
    }
}
