//! Order of the events of each aggregate within a partition. Pure.
//!
//! Let event `e` stand behind event `f` of the same aggregate, and let `e.seq < f.seq`: the order
//! of the records is not the order of the inserts. A relay may publish in the order of the inserts
//! or in the order of the commits, so this is wrong exactly if `e` also committed before `f`:
//!
//! | evidence | verdict |
//! |---|---|
//! | the same transaction | wrong |
//! | commit times, `e` earlier by more than [`CLOCK_MICROS`] | wrong |
//! | commit times, `f` earlier by more than that | right: the writers did not lock the aggregate |
//! | none | undecided. Wrong if every writer locks the aggregate before it publishes |
//!
//! The server keeps commit times only with `track_commit_timestamp = on`.

use std::collections::HashMap;
use std::io;

use super::entry::{DeliveredEvent, Id, PlaceIndex, UNKNOWN_TIME};
use super::report::{Fault, Findings, Kind, Tally};

/// Commit times that differ by less do not prove an order: the server reads the clock before it
/// writes the commit record.
const CLOCK_MICROS: i64 = 100_000;

/// Number of earlier transactions of an aggregate that are compared with each event. Writers that
/// lock the aggregate need one; the others are for writers that do not.
const FRONT_MAX: usize = 16;

/// Number of aggregates in each of two generations whose last events are remembered from one round
/// to the next.
const AGGREGATES_MAX: usize = 20_000;

/// Assumptions about the writers of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writers {
    /// Unknown.
    Any,
    /// Every transaction locks the aggregate before it publishes.
    Lock,
    /// Unknown, and the relay delivers at least once: a leader that was suspended may send events
    /// that it had read before its successor sends earlier ones. No order is then wrong.
    AtLeastOnce,
}

/// Relation of two events of one aggregate, of which the first has the smaller `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commits {
    InOrder,
    Reversed,
    Unknown,
}

/// The last events of aggregates in earlier rounds.
#[derive(Default)]
pub(crate) struct Recent {
    young: HashMap<(u64, PlaceIndex), DeliveredEvent>,
    old: HashMap<(u64, PlaceIndex), DeliveredEvent>,
}

impl Recent {
    fn get(&self, key: (u64, PlaceIndex)) -> Option<&DeliveredEvent> {
        self.young.get(&key).or_else(|| self.old.get(&key))
    }

    fn insert(&mut self, event: DeliveredEvent) {
        if self.young.len() >= AGGREGATES_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert((event.aggregate, event.place), event);
    }
}

/// Checks events that are sorted by aggregate, place and offset.
///
/// # Errors
///
/// Returns the error of the input.
pub(crate) fn check_order(
    events: impl Iterator<Item = io::Result<DeliveredEvent>>,
    writers: Writers,
    recent: &mut Recent,
    tally: &mut Tally,
    findings: &mut Findings,
) -> io::Result<()> {
    let mut front: Vec<DeliveredEvent> = Vec::new();
    for event in events {
        let event = event?;
        let key = (event.aggregate, event.place);
        if front
            .first()
            .is_none_or(|first| (first.aggregate, first.place) != key)
        {
            remember(&front, recent);
            front.clear();
            front.extend(recent.get(key).filter(|last| last.offset < event.offset));
        }
        if let Some((verdict, before)) = judge(&front, &event, writers) {
            let (kind, count) = match verdict {
                Commits::InOrder => (Kind::Reordered, &mut tally.reordered),
                Commits::Reversed => {
                    tally.in_commit_order += 1;
                    extend(&mut front, event);
                    continue;
                }
                Commits::Unknown => (Kind::OrderUndecided, &mut tally.order_undecided),
            };
            *count += 1;
            findings.add(Fault {
                kind,
                id: event.id,
                place: Some((event.place, event.offset)),
                other: Some(before),
                copies: 1,
            });
        }
        extend(&mut front, event);
    }
    remember(&front, recent);
    Ok(())
}

/// Returns the verdict about an event behind those of the front, with the event that it
/// contradicts. Returns `None` if the event follows in the order of the inserts.
fn judge(
    front: &[DeliveredEvent],
    event: &DeliveredEvent,
    writers: Writers,
) -> Option<(Commits, Id)> {
    let verdicts = front
        .iter()
        .filter(|before| before.seq > event.seq)
        .map(|before| (commits(event, before, writers), before.id));
    let severity = |commits: &Commits| match commits {
        Commits::Reversed => 0,
        Commits::Unknown => 1,
        Commits::InOrder => 2,
    };
    verdicts.max_by_key(|(commits, _)| severity(commits))
}

/// Compares the commits of two events, of which the first has the smaller `seq`.
fn commits(first: &DeliveredEvent, second: &DeliveredEvent, writers: Writers) -> Commits {
    if writers == Writers::AtLeastOnce {
        return Commits::Unknown;
    }
    if first.xid == second.xid || writers == Writers::Lock {
        return Commits::InOrder;
    }
    if first.committed == UNKNOWN_TIME || second.committed == UNKNOWN_TIME {
        return Commits::Unknown;
    }
    let later = second.committed - first.committed;
    if later.abs() < CLOCK_MICROS {
        Commits::Unknown
    } else if later > 0 {
        Commits::InOrder
    } else {
        Commits::Reversed
    }
}

/// Adds an event to the front, which keeps the last event of each transaction. Beyond the maximum,
/// the event with the smallest `seq` is dropped: an event that contradicts it contradicts the
/// others too.
fn extend(front: &mut Vec<DeliveredEvent>, event: DeliveredEvent) {
    match front.iter_mut().find(|other| other.xid == event.xid) {
        Some(other) if other.seq < event.seq => *other = event,
        Some(_) => {}
        None => front.push(event),
    }
    if front.len() > FRONT_MAX {
        let smallest = (0..front.len()).min_by_key(|at| front[*at].seq);
        front.swap_remove(smallest.expect("a front with events"));
    }
}

fn remember(front: &[DeliveredEvent], recent: &mut Recent) {
    if let Some(last) = front.iter().max_by_key(|event| event.seq) {
        recent.insert(*last);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(aggregate: u64, offset: i64, seq: i64, xid: u64, committed: i64) -> DeliveredEvent {
        DeliveredEvent {
            aggregate,
            place: 0,
            offset,
            seq,
            xid,
            committed,
            id: u128::from(seq.cast_unsigned()).to_be_bytes(),
        }
    }

    fn checked(events: &[DeliveredEvent], writers: Writers) -> (u64, u64, u64) {
        let (mut tally, mut findings) = (Tally::default(), Findings::default());
        let mut recent = Recent::default();
        let events = events.iter().copied().map(Ok);
        check_order(events, writers, &mut recent, &mut tally, &mut findings).expect("no I/O");
        (
            tally.reordered,
            tally.in_commit_order,
            tally.order_undecided,
        )
    }

    const SECOND: i64 = 1_000_000;

    #[test]
    fn only_an_order_that_contradicts_inserts_and_commits_is_wrong() {
        use Writers::{Any, Lock};
        let unknown = UNKNOWN_TIME;
        let good = [event(1, 0, 1, 1, unknown), event(1, 1, 2, 2, unknown)];
        assert_eq!(checked(&good, Any), (0, 0, 0));
        // One transaction.
        let swapped = [event(1, 0, 2, 1, unknown), event(1, 1, 1, 1, unknown)];
        assert_eq!(checked(&swapped, Any), (1, 0, 0));
        assert_eq!(checked(&swapped, Writers::AtLeastOnce), (0, 0, 1));
        // Two transactions: without commit times the writers decide.
        let swapped = [event(1, 0, 2, 2, unknown), event(1, 1, 1, 1, unknown)];
        assert_eq!(checked(&swapped, Any), (0, 0, 1));
        assert_eq!(checked(&swapped, Lock), (1, 0, 0));
        // The second event committed first: the relay followed the commits.
        let commits = [event(1, 0, 2, 2, SECOND), event(1, 1, 1, 1, 2 * SECOND)];
        assert_eq!(checked(&commits, Any), (0, 1, 0));
        let against = [event(1, 0, 2, 2, 2 * SECOND), event(1, 1, 1, 1, SECOND)];
        assert_eq!(checked(&against, Any), (1, 0, 0));
        let close = [event(1, 0, 2, 2, SECOND + 1), event(1, 1, 1, 1, SECOND)];
        assert_eq!(checked(&close, Any), (0, 0, 1));
        // Other aggregates have no common order.
        let others = [event(1, 0, 2, 1, unknown), event(2, 1, 1, 1, unknown)];
        assert_eq!(checked(&others, Lock), (0, 0, 0));
    }

    #[test]
    fn an_event_is_compared_with_those_of_the_round_before() {
        let (mut tally, mut findings) = (Tally::default(), Findings::default());
        let mut recent = Recent::default();
        for round in [
            [event(1, 0, 5, 5, UNKNOWN_TIME)],
            [event(1, 1, 4, 4, UNKNOWN_TIME)],
        ] {
            let events = round.into_iter().map(Ok);
            check_order(
                events,
                Writers::Lock,
                &mut recent,
                &mut tally,
                &mut findings,
            )
            .expect("no I/O");
        }
        assert_eq!(tally.reordered, 1);
    }

    proptest! {
        /// The naive model compares each event with all earlier ones of its aggregate.
        #[test]
        fn the_front_finds_what_a_comparison_with_all_events_finds(
            drawn in proptest::collection::vec((0u64..3, 0i64..30, 0u64..8, 0i64..5), 0..40),
            locks in any::<bool>(),
        ) {
            let writers = if locks { Writers::Lock } else { Writers::Any };
            let mut events: Vec<DeliveredEvent> = Vec::new();
            for (offset, (aggregate, seq, xid, time)) in (0..).zip(drawn) {
                let committed = if time == 0 { UNKNOWN_TIME } else { xid as i64 * SECOND };
                events.push(event(aggregate, offset, seq, xid, committed));
            }
            events.sort_unstable();
            let mut expected = (0, 0, 0);
            for (at, event) in events.iter().enumerate() {
                let before = events[..at]
                    .iter()
                    .filter(|f| f.aggregate == event.aggregate && f.seq > event.seq)
                    .map(|f| commits(event, f, writers));
                match before.max_by_key(|verdict| match verdict {
                    Commits::Reversed => 0,
                    Commits::Unknown => 1,
                    Commits::InOrder => 2,
                }) {
                    None => {}
                    Some(Commits::InOrder) => expected.0 += 1,
                    Some(Commits::Reversed) => expected.1 += 1,
                    Some(Commits::Unknown) => expected.2 += 1,
                }
            }
            // Events of one transaction have one commit time in a database.
            let consistent = events.iter().all(|a| {
                events.iter().all(|b| a.xid != b.xid || a.committed == b.committed)
            });
            if consistent || locks {
                prop_assert_eq!(checked(&events, writers), expected);
            }
        }
    }
}
