//! Moves of a position by an operator. The commands store the results.

use super::{GivenUp, Position, Snapshot};
use crate::postgres::Lsn;

/// Maximum number of events that are given up one by one and not yet passed. Larger numbers are no
/// longer exceptions.
pub(crate) const GIVEN_UP_MAX: usize = 1_000;

impl Position {
    /// Returns the position for publishing everything in the outbox. Events of transactions below
    /// `floor` may be missing from it.
    pub(crate) fn rewound_to_the_start(floor: u64) -> Self {
        Self {
            floor,
            ..Self::start()
        }
    }

    /// Returns the position for publishing all transactions from `first` on again. Older events
    /// that were not published stay unpublished. The window that was being read restarts, which can
    /// only repeat events.
    pub(crate) fn rewound_to(&self, first: u64, floor: u64) -> Self {
        Self {
            snapshot: self.snapshot.below(first),
            extra_xids: self.extra_xids.below(first),
            // `seq` does not show which of these events must be published again.
            streamed_seqs: None,
            partial_tx: self.partial_tx.filter(|partial| partial.xid < first),
            skipped: self
                .skipped
                .iter()
                .copied()
                .filter(|event| event.xid < first)
                .collect(),
            released: self.released.clone(),
            floor: self.floor.max(floor),
            ..Self::start()
        }
    }

    /// Returns the position where exactly the transactions below `first` count as published. For a
    /// database where the position's transaction ids are no longer valid.
    pub(crate) fn of_all_below(first: u64, floor: u64) -> Self {
        Self {
            snapshot: Snapshot::of_all_below(first),
            floor,
            ..Self::start()
        }
    }

    /// Returns the position where everything that `snapshot` sees counts as published. `insert` is
    /// the log's insert position, read after the snapshot.
    pub(crate) fn skipped_to(&self, snapshot: Snapshot, insert: Lsn, floor: u64) -> Self {
        Self {
            extra_xids: self.extra_xids.unseen_by(&snapshot),
            streamed_seqs: self.streamed_seqs.clone(),
            partial_tx: self
                .partial_tx
                .filter(|partial| !snapshot.sees(partial.xid)),
            skipped: self
                .skipped
                .iter()
                .copied()
                .filter(|event| !snapshot.sees(event.xid))
                .collect(),
            window: None,
            resume_lsn: self.resume_lsn,
            published_lsn: self.published_lsn.max(insert),
            witness: None,
            released: self.released.clone(),
            floor: self.floor.max(floor),
            snapshot,
        }
    }

    /// Returns the same position for another database that continues this one. Its transaction ids
    /// have the same meaning, and its log positions do not.
    pub(crate) fn adopted(self) -> Self {
        Self {
            resume_lsn: Lsn::default(),
            published_lsn: Lsn::default(),
            ..self
        }
    }

    /// Returns the position where everything from transactions below `first` is published, for a
    /// database whose rows were given new transaction ids. Parked events keep their numbers.
    pub(crate) fn renumbered(self, first: u64) -> Self {
        Self {
            released: self.released,
            ..Self::of_all_below(first, first)
        }
    }

    /// Returns a bound above every transaction id that the position contains.
    pub(crate) fn end(&self) -> u64 {
        let window = self.window.as_ref().map_or(0, |window| window.to.xmax());
        let partial = self.partial_tx.map_or(0, |partial| partial.xid + 1);
        let also = self.extra_xids.last().map_or(0, |xid| xid + 1);
        let witness = self.witness.map_or(0, |witness| witness.xid + 1);
        [self.snapshot.xmax(), window, partial, also, witness]
            .into_iter()
            .max()
            .unwrap_or_default()
    }

    /// AckedBatches an event as given up. Returns `false` if too many are marked already.
    pub(crate) fn give_up(&mut self, event: GivenUp) -> bool {
        let room = self.skipped.len() < GIVEN_UP_MAX;
        if room && !self.skipped.contains(&event) {
            self.skipped.push(event);
        }
        room
    }

    /// Returns `true` if the operator has given this event up.
    pub(crate) fn gave_up(&self, seq: i64) -> bool {
        self.skipped.iter().any(|event| event.seq == seq)
    }

    /// Returns `true` if the position needs an event that may be missing, where events of
    /// transactions below `floor` may be missing.
    pub(crate) fn needs_below(&self, floor: u64) -> bool {
        self.floor < floor && self.first_unpublished() < floor
    }

    /// Returns the first transaction that may be unpublished: all transactions below it are
    /// published.
    fn first_unpublished(&self) -> u64 {
        let in_progress = self
            .snapshot
            .in_progress()
            .iter()
            .copied()
            .find(|xid| !self.extra_xids.contains(*xid));
        in_progress.unwrap_or_else(|| self.extra_xids.first_absent(self.snapshot.xmax()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{Partial, Window, XidSet},
        *,
    };

    /// Returns whether transaction `xid` is published, by the rule of `is_published`. Each
    /// transaction has one event with `seq` equal to `xid`.
    fn published(position: &Position, xid: u64) -> bool {
        let seq = i64::try_from(xid).expect("small");
        position.snapshot.sees(xid)
            || position.extra_xids.contains(xid)
            || position
                .partial_tx
                .is_some_and(|partial| partial.xid == xid && seq <= partial.seq)
            || position
                .window
                .as_ref()
                .is_some_and(|window| seq <= window.after && window.to.sees(xid))
            || position.gave_up(seq)
    }

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        (
            3u64..40,
            0u64..20,
            proptest::collection::btree_set(0u64..20, 0..5),
        )
            .prop_map(|(xmin, span, open)| {
                let open: Vec<String> = open
                    .iter()
                    .filter(|xid| **xid < span)
                    .map(|xid| (xmin + xid).to_string())
                    .collect();
                format!("{xmin}:{}:{}", xmin + span, open.join(","))
                    .parse()
                    .expect("a snapshot")
            })
    }

    fn positions() -> impl Strategy<Value = Position> {
        let ids = proptest::collection::vec(3u64..70, 0..20);
        (
            snapshots(),
            ids,
            3u64..70,
            0i64..70,
            proptest::collection::vec(3u64..70, 0..3),
        )
            .prop_map(|(seen, ids, partial, after, given_up)| {
                let mut also = XidSet::default();
                ids.iter().for_each(|xid| also.insert(*xid));
                let to = Snapshot::of_all_below(seen.xmax() + 10);
                let partial = Some(Partial {
                    xid: partial,
                    events: 1,
                    seq: partial.cast_signed(),
                });
                let given_up = given_up
                    .iter()
                    .map(|xid| GivenUp {
                        xid: *xid,
                        seq: xid.cast_signed(),
                    })
                    .collect();
                Position {
                    snapshot: seen,
                    extra_xids: also,
                    partial_tx: partial,
                    window: Some(Window { to, after }),
                    skipped: given_up,
                    ..Position::start()
                }
            })
    }

    proptest! {
        #[test]
        fn a_rewind_publishes_all_that_is_younger_and_passes_over_nothing_that_was_not_published(
            position in positions(),
            first in 3u64..70,
        ) {
            let rewound = position.rewound_to(first, 0);
            for xid in 3..90 {
                prop_assert!(
                    !published(&rewound, xid) || (xid < first && published(&position, xid))
                );
                // An older event is repeated only if it was part of the window.
                let in_window = position
                    .window
                    .as_ref()
                    .is_some_and(|window| window.to.sees(xid))
                    && !position.snapshot.sees(xid);
                prop_assert!(
                    published(&rewound, xid)
                        || xid >= first
                        || !published(&position, xid)
                        || in_window
                );
            }
        }

        #[test]
        fn a_skip_publishes_nothing_that_is_visible_and_everything_that_is_not(
            position in positions(),
            snapshot in snapshots(),
        ) {
            let skipped = position.skipped_to(snapshot.clone(), Lsn(0), 0);
            for xid in 3..90 {
                let alone = position.extra_xids.contains(xid)
                    || position.partial_tx.is_some_and(|partial| partial.xid == xid)
                    || position.gave_up(xid.cast_signed());
                prop_assert_eq!(published(&skipped, xid), snapshot.sees(xid) || alone);
            }
        }

        #[test]
        fn what_may_be_gone_is_needed_if_one_of_it_is_not_published(
            position in positions(),
            floor in 0u64..90,
            forgone in 0u64..90,
        ) {
            let position = Position {
                window: None,
                partial_tx: None,
                skipped: Vec::new(),
                floor: forgone,
                ..position
            };
            let needed = (3..floor).any(|xid| !published(&position, xid));
            prop_assert_eq!(position.needs_below(floor), needed && forgone < floor);
        }
    }

    #[test]
    fn after_a_rewind_nothing_of_the_log_is_known_and_deleted_rows_are_forgone() {
        let position = Position {
            snapshot: Snapshot::of_all_below(50),
            resume_lsn: Lsn(9),
            published_lsn: Lsn(9),
            ..Position::start()
        };
        let all = Position::rewound_to_the_start(20);
        assert_eq!(
            (
                all.resume_lsn,
                all.published_lsn,
                all.snapshot.clone(),
                all.floor
            ),
            (Lsn(0), Lsn(0), Snapshot::of_nothing(), 20)
        );
        assert!(!all.needs_below(20) && all.needs_below(21));
        assert!(!position.needs_below(50) && position.needs_below(51));
        assert_eq!(Position::of_all_below(30, 20).rewound_to(25, 22).floor, 22);
    }
}
