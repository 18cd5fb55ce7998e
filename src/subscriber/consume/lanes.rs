//! Lanes that order records: one per aggregate, created for its first pending record and removed
//! after its last. Pure.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Records that wait for their turn, by lane. A lane is identified by a 64-bit hash of its
/// aggregate. Two aggregates with the same hash wait for each other, which costs time but does not
/// affect correctness.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    lanes: HashMap<u64, Lane<T>, BuildHasherDefault<AsItIs>>,
    /// Lanes with a record that may start, in the order of becoming ready.
    ready: VecDeque<u64>,
    waiting: usize,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    running: bool,
}

/// Lanes, each with its number of records.
pub(crate) type LaneCounts = Vec<(u64, usize)>;

impl<T> Lanes<T> {
    pub(crate) fn new() -> Self {
        Self {
            lanes: HashMap::default(),
            ready: VecDeque::new(),
            waiting: 0,
        }
    }

    /// Adds a record at the end of a lane.
    pub(crate) fn push(&mut self, lane: u64, record: T) {
        self.waiting += 1;
        let entry = self.lanes.entry(lane).or_insert_with(|| {
            self.ready.push_back(lane);
            Lane {
                waiting: VecDeque::new(),
                running: false,
            }
        });
        entry.waiting.push_back(record);
    }

    /// Returns `true` if no lane has a record that runs or waits.
    pub(crate) fn are_free(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Returns `true` if the lane has no record that runs or waits.
    pub(crate) fn is_free(&self, lane: u64) -> bool {
        !self.lanes.contains_key(&lane)
    }

    /// Marks a free lane as running. Its record is not stored here.
    pub(crate) fn occupy(&mut self, lane: u64) {
        self.lanes.insert(
            lane,
            Lane {
                waiting: VecDeque::new(),
                running: true,
            },
        );
    }

    /// Starts the next ready lane: takes its first record and the following ones that `together`
    /// accepts, up to `max`. The lane counts as running until [`finish`](Self::finish).
    pub(crate) fn start(
        &mut self,
        max: usize,
        mut together: impl FnMut(&T, &T) -> bool,
    ) -> Option<(u64, Vec<T>)> {
        let hash = self.ready.pop_front()?;
        let lane = self.lanes.get_mut(&hash).expect("a ready lane exists");
        lane.running = true;
        let first = lane.waiting.pop_front().expect("a ready lane has a record");
        let mut records = vec![first];
        while records.len() < max
            && lane
                .waiting
                .front()
                .is_some_and(|next| together(&records[0], next))
        {
            records.extend(lane.waiting.pop_front());
        }
        self.waiting -= records.len();
        Some((hash, records))
    }

    /// Starts several lanes, up to `max` records in total, as long as `together` and `joins` accept
    /// the head of the next lane. Returns the records, and the lanes with the number of records of
    /// each.
    pub(crate) fn start_several(
        &mut self,
        max: usize,
        mut together: impl FnMut(&T, &T) -> bool,
        joins: impl Fn(&T) -> bool,
    ) -> Option<(Vec<T>, LaneCounts)> {
        let (lane, mut records) = self.start(max, &mut together)?;
        let mut lanes = vec![(lane, records.len())];
        while records.len() < max
            && self
                .next()
                .is_some_and(|next| together(&records[0], next) && joins(next))
        {
            let Some((lane, more)) = self.start(max - records.len(), &mut together) else {
                break;
            };
            lanes.push((lane, more.len()));
            records.extend(more);
        }
        Some((records, lanes))
    }

    /// Returns the record at the head of the lane that would start next.
    pub(crate) fn next(&self) -> Option<&T> {
        self.lanes.get(self.ready.front()?)?.waiting.front()
    }

    /// Returns started records of a running lane to its front, in this order.
    pub(crate) fn put_back(&mut self, lane: u64, records: Vec<T>) {
        let Some(lane) = self.lanes.get_mut(&lane) else {
            return;
        };
        self.waiting += records.len();
        records
            .into_iter()
            .rev()
            .for_each(|record| lane.waiting.push_front(record));
    }

    /// Marks a lane as not running, so that its next record may start.
    pub(crate) fn finish(&mut self, lane: u64) {
        let Some(entry) = self.lanes.get_mut(&lane) else {
            return;
        };
        entry.running = false;
        if entry.waiting.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.ready.push_back(lane);
        }
    }

    /// Returns `true` if a record may start.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Returns the number of records that have not started.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.waiting
    }
}

/// A hasher for keys that are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("lanes are identified by u64 only")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    /// Operations on lanes: a record arrives, a record runs without being queued, the next lane
    /// starts, or a running lane finishes.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(u64),
        Occupy(u64),
        Start(usize),
        Finish(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let lane = 0..5u64;
        prop_oneof![
            lane.clone().prop_map(Step::Push),
            lane.prop_map(Step::Occupy),
            (1..4usize).prop_map(Step::Start),
            (0..5usize).prop_map(Step::Finish)
        ]
    }

    proptest! {
        #[test]
        fn each_lane_runs_one_start_at_a_time_and_in_order_and_none_is_forgotten(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut lanes = Lanes::new();
            // The model: all waiting records in order of arrival, and the lanes that run.
            let (mut model, mut running, mut arrived): (
                HashMap<u64, VecDeque<u32>>,
                Vec<u64>,
                u32,
            ) = Default::default();
            for step in steps {
                match step {
                    Step::Push(lane) => {
                        lanes.push(lane, arrived);
                        model.entry(lane).or_default().push_back(arrived);
                        arrived += 1;
                    }
                    Step::Occupy(lane) => {
                        let idle = !running.contains(&lane)
                            && model.get(&lane).is_none_or(VecDeque::is_empty);
                        prop_assert_eq!(lanes.is_free(lane), idle);
                        prop_assert_eq!(
                            lanes.are_free(),
                            running.is_empty() && model.values().all(VecDeque::is_empty)
                        );
                        if idle {
                            lanes.occupy(lane);
                            running.push(lane);
                        }
                    }
                    Step::Start(max) => match lanes.start(max, |_, _| true) {
                        Some((lane, records)) => {
                            prop_assert!(!running.contains(&lane));
                            prop_assert!(records.len() <= max);
                            let expected: Vec<u32> =
                                model.entry(lane).or_default().drain(..records.len()).collect();
                            prop_assert_eq!(records, expected);
                            running.push(lane);
                        }
                        None => {
                            let idle = model
                                .iter()
                                .filter(|(lane, records)| {
                                    !records.is_empty() && !running.contains(lane)
                                })
                                .count();
                            prop_assert_eq!(idle, 0);
                        }
                    },
                    Step::Finish(at) if at < running.len() => lanes.finish(running.swap_remove(at)),
                    Step::Finish(_) => {}
                }
                prop_assert_eq!(lanes.waiting(), model.values().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(running.iter().collect::<HashSet<_>>().len(), running.len());
            }
        }
    }
}
