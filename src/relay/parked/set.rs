//! Waiting aggregates: the leader's copy of the table. It costs one look-up in an empty map while
//! nothing is parked.
//!
//! `total` bounds the memory: each listed event counts as one, and so does a range, regardless of
//! its number of events. Events that wait for a topic are only counted here: while the topic is
//! unusable, all of its events wait.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

/// An aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Aggregate {
    pub(crate) kind: String,
    pub(crate) id: String,
}

/// An event to park, with the values that are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) seq: i64,
    pub(crate) id: uuid::Uuid,
    pub(crate) aggregate: Aggregate,
    pub(crate) topic: String,
    /// The reason why it is undeliverable. `None` if it waits behind an undeliverable event.
    pub(crate) reason: Option<String>,
    /// The topic that it waits for.
    pub(crate) waits_for: Option<String>,
}

/// The later events of an aggregate with many waiting events, as one reference: the aggregate's
/// events in the outbox between two numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) from: i64,
    /// The id of the first event.
    pub(crate) id: uuid::Uuid,
    pub(crate) to: i64,
    pub(crate) events: u64,
    pub(crate) topic: String,
}

/// Limits on waiting events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Maximum number of events of one aggregate that are listed one by one.
    pub(crate) per_aggregate: u64,
    pub(crate) total: u64,
}

/// The limit on parked events is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full(pub(crate) u64);

/// The waiting events of one aggregate. A range follows all listed events.
#[derive(Debug, Default)]
struct Waits {
    listed: BTreeSet<i64>,
    range: Option<Range>,
}

/// The set of parked events.
#[derive(Debug)]
pub(crate) struct ParkedSet {
    limits: Limits,
    /// Waiting events by kind and id of the aggregate. An event is looked up without an allocation.
    aggregates: HashMap<String, HashMap<String, Waits>>,
    /// Number of listed events and ranges.
    total: u64,
    /// Events beyond the first of each range.
    ranged: u64,
    /// Number of events that wait for each topic.
    waiting: HashMap<String, u64>,
    /// Events that are not in the table yet. The position must not pass them.
    pending: Vec<Reference>,
    /// Aggregates whose range is new or has grown, and is not stored in this form.
    grown: HashSet<Aggregate>,
    /// Aggregates with events that can be released.
    ready: VecDeque<Aggregate>,
}

/// Maximum number of events that are collected before they are stored together.
const PENDING_MAX: usize = 2_000;

impl Waits {
    fn first(&self) -> Option<i64> {
        self.listed
            .first()
            .copied()
            .into_iter()
            .chain(self.range.as_ref().map(|range| range.from))
            .min()
    }

    fn has(&self, seq: i64) -> bool {
        self.listed.contains(&seq)
            || self
                .range
                .as_ref()
                .is_some_and(|range| (range.from..=range.to).contains(&seq))
    }
}

impl ParkedSet {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            aggregates: HashMap::new(),
            total: 0,
            ranged: 0,
            waiting: HashMap::new(),
            pending: Vec::new(),
            grown: HashSet::new(),
            ready: VecDeque::new(),
        }
    }

    /// Loads an aggregate of the table: its events, its range, and whether its first event can be
    /// released.
    pub(crate) fn load(
        &mut self,
        aggregate: Aggregate,
        events: Vec<i64>,
        range: Option<Range>,
        ready: bool,
    ) {
        if ready {
            self.ready.push_back(aggregate.clone());
        }
        self.total += events.len() as u64 + u64::from(range.is_some());
        self.ranged += range
            .as_ref()
            .map_or(0, |range| range.events.saturating_sub(1));
        let waits = Waits {
            listed: events.into_iter().collect(),
            range,
        };
        self.aggregates
            .entry(aggregate.kind)
            .or_default()
            .insert(aggregate.id, waits);
    }

    /// Loads the number of events in the table that wait for a topic.
    pub(crate) fn load_waiting(&mut self, topic: &str, events: u64) {
        self.waiting.insert(topic.to_owned(), events);
    }

    /// Returns `true` if nothing is parked.
    pub(crate) fn is_empty(&self) -> bool {
        self.aggregates.is_empty() && self.waiting.is_empty()
    }

    /// Returns the number of parked events and the number of their aggregates. Events that wait for
    /// a topic count without their aggregates.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let waiting: u64 = self.waiting.values().sum();
        (
            self.total + self.ranged + waiting,
            self.aggregates.values().map(|ids| ids.len() as u64).sum(),
        )
    }

    /// Returns `true` if an event must wait with its aggregate.
    pub(crate) fn holds(&self, kind: &str, id: &str, seq: i64) -> bool {
        let waits = self.aggregates.get(kind).and_then(|ids| ids.get(id));
        waits
            .and_then(Waits::first)
            .is_some_and(|first| seq >= first)
    }

    /// Returns `true` if more events may be collected before the pending ones are stored.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.len() < PENDING_MAX && self.grown.len() < PENDING_MAX
    }

    /// Parks an event, and with it all later ones of its aggregate. The caller stores it before the
    /// position passes it. Does nothing if the event is parked already and was only read again
    /// because the position had not passed it.
    ///
    /// Events that wait behind another one are listed up to a limit, and form a range beyond it.
    ///
    /// # Errors
    ///
    /// Returns [`Full`] if the limit is reached.
    pub(crate) fn park(&mut self, event: Reference) -> Result<(), Full> {
        let Limits {
            per_aggregate,
            total,
        } = self.limits;
        let waits = self
            .aggregates
            .get_mut(&event.aggregate.kind)
            .and_then(|ids| ids.get_mut(&event.aggregate.id));
        if let Some(waits) = waits {
            if waits.has(event.seq) {
                return Ok(());
            }
            if let Some(range) = &mut waits.range
                && event.seq > range.to
            {
                (range.to, range.events) = (event.seq, range.events + 1);
                self.ranged += 1;
                self.grown.insert(event.aggregate);
                return Ok(());
            }
            let last = waits.listed.last().copied().unwrap_or_default();
            let many = waits.listed.len() as u64 >= per_aggregate || self.total >= total / 2;
            if many
                && self.total < total
                && event.reason.is_none()
                && event.seq > last
                && waits.range.is_none()
            {
                let Reference {
                    seq,
                    id,
                    aggregate,
                    topic,
                    ..
                } = event;
                waits.range = Some(Range {
                    from: seq,
                    id,
                    to: seq,
                    events: 1,
                    topic,
                });
                self.total += 1;
                self.grown.insert(aggregate);
                return Ok(());
            }
        }
        if self.total >= total {
            return Err(Full(total));
        }
        self.insert(&event.aggregate, event.seq);
        self.pending.push(event);
        Ok(())
    }

    fn insert(&mut self, aggregate: &Aggregate, seq: i64) {
        let ids = self.aggregates.entry(aggregate.kind.clone()).or_default();
        self.total += u64::from(
            ids.entry(aggregate.id.clone())
                .or_default()
                .listed
                .insert(seq),
        );
    }

    /// Parks an event until its topic is usable.
    pub(crate) fn wait_for_topic(&mut self, event: Reference, topic: &str) {
        self.waits_for(topic);
        self.pending.push(event);
    }

    /// Counts one more event that waits for a topic.
    pub(crate) fn waits_for(&mut self, topic: &str) {
        *self.waiting.entry(topic.to_owned()).or_default() += 1;
    }

    /// Subtracts events that no longer wait for a topic.
    pub(crate) fn waited_for(&mut self, topic: &str, events: usize) {
        if let Some(waiting) = self.waiting.get_mut(topic) {
            // Keeps at least one, because only the table shows that no event waits.
            *waiting = waiting.saturating_sub(events as u64).max(1);
        }
    }

    /// Records that the table contains no event that waits for the topic.
    pub(crate) fn nothing_waits_for(&mut self, topic: &str) {
        self.waiting.remove(topic);
    }

    /// Records that an event of the table waits with its aggregate from now on.
    pub(crate) fn adopt(&mut self, aggregate: &Aggregate, seq: i64) {
        self.insert(aggregate, seq);
    }

    /// Returns the events that must be stored.
    pub(crate) fn pending(&self) -> &[Reference] {
        &self.pending
    }

    /// Returns the ranges that must be stored.
    pub(crate) fn grown(&self) -> impl Iterator<Item = (&Aggregate, &Range)> {
        let range = |aggregate: &Aggregate| self.range(aggregate);
        self.grown
            .iter()
            .filter_map(move |aggregate| Some((aggregate, range(aggregate)?)))
    }

    /// Returns the range of an aggregate.
    pub(crate) fn range(&self, aggregate: &Aggregate) -> Option<&Range> {
        self.aggregates
            .get(&aggregate.kind)?
            .get(&aggregate.id)?
            .range
            .as_ref()
    }

    /// Returns `true` if nothing remains to be stored.
    pub(crate) fn is_stored(&self) -> bool {
        self.pending.is_empty() && self.grown.is_empty()
    }

    /// Records that all pending events are in the table.
    pub(crate) fn stored(&mut self) {
        self.pending.clear();
        self.grown.clear();
    }

    /// Records that the table lists the first events of an aggregate's range, and that `rest`
    /// remains of the range.
    pub(crate) fn unfold(&mut self, aggregate: &Aggregate, listed: &[i64], rest: Option<Range>) {
        for seq in listed {
            self.insert(aggregate, *seq);
        }
        self.set_range(aggregate, rest);
    }

    fn set_range(&mut self, aggregate: &Aggregate, range: Option<Range>) {
        let Some(ids) = self.aggregates.get_mut(&aggregate.kind) else {
            return;
        };
        let Some(waits) = ids.get_mut(&aggregate.id) else {
            return;
        };
        let beyond = |range: &Option<Range>| {
            range
                .as_ref()
                .map_or(0, |range| range.events.saturating_sub(1))
        };
        self.ranged = (self.ranged + beyond(&range)).saturating_sub(beyond(&waits.range));
        self.total = (self.total + u64::from(range.is_some()))
            .saturating_sub(u64::from(waits.range.is_some()));
        waits.range = range;
        self.grown.remove(aggregate);
    }

    /// Removes events of an aggregate, and its range if the range starts with one of them. An
    /// aggregate without events is forgotten, and its next event is published directly.
    pub(crate) fn released(&mut self, aggregate: &Aggregate, seqs: &[i64]) {
        if self
            .range(aggregate)
            .is_some_and(|range| seqs.contains(&range.from))
        {
            self.set_range(aggregate, None);
        }
        let Some(ids) = self.aggregates.get_mut(&aggregate.kind) else {
            return;
        };
        let Some(waits) = ids.get_mut(&aggregate.id) else {
            return;
        };
        self.total -= seqs.iter().filter(|seq| waits.listed.remove(seq)).count() as u64;
        if waits.first().is_none() {
            ids.remove(&aggregate.id);
        }
        if ids.is_empty() {
            self.aggregates.remove(&aggregate.kind);
        }
    }

    /// Records that the table contains no event of this aggregate, and removes all of them.
    pub(crate) fn free(&mut self, aggregate: &Aggregate) {
        let waits = self
            .aggregates
            .get(&aggregate.kind)
            .and_then(|ids| ids.get(&aggregate.id));
        let Some(waits) = waits else { return };
        let all: Vec<i64> = waits
            .listed
            .iter()
            .copied()
            .chain(waits.range.as_ref().map(|range| range.from))
            .collect();
        self.released(aggregate, &all);
    }

    /// Returns an aggregate with events that can be released.
    pub(crate) fn next_ready(&mut self) -> Option<Aggregate> {
        self.ready.pop_front()
    }

    /// Records that more events of this aggregate can be released.
    pub(crate) fn make_ready(&mut self, aggregate: Aggregate) {
        if !self.ready.contains(&aggregate) {
            self.ready.push_back(aggregate);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn reference(id: u8, seq: i64, reason: bool) -> Reference {
        let aggregate = Aggregate {
            kind: "order".into(),
            id: id.to_string(),
        };
        let reason = reason.then(|| "no".to_owned());
        Reference {
            seq,
            id: uuid::Uuid::nil(),
            aggregate,
            topic: "order".into(),
            reason,
            waits_for: None,
        }
    }

    /// A plain list of waiting events as the reference model, with the events that are part of a
    /// range.
    #[derive(Default)]
    struct Plain {
        events: BTreeSet<i64>,
        ranged: BTreeSet<i64>,
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_list_holds_and_no_more_than_it_may(
            steps in proptest::collection::vec((0u8..6, 0u8..4), 0..200),
            per_aggregate in 1u64..8,
            total in 1u64..16,
        ) {
            let mut set = ParkedSet::new(Limits { per_aggregate, total });
            let mut plain: BTreeMap<u8, Plain> = BTreeMap::new();
            let mut next = 0;
            for (action, id) in steps {
                let aggregate = reference(id, 0, false).aggregate;
                match action {
                    0..=3 => {
                        next += 1;
                        let first = !plain.contains_key(&id);
                        match set.park(reference(id, next, first)) {
                            Ok(()) => {
                                let list = plain.entry(id).or_default();
                                list.events.insert(next);
                                if set.range(&aggregate).is_some_and(|range| range.from <= next) {
                                    list.ranged.insert(next);
                                }
                            }
                            Err(Full(limit)) => prop_assert!(limit == total && set.total == total),
                        }
                        // The event is read again.
                        if plain
                            .get(&id)
                            .is_some_and(|list| list.events.contains(&next))
                        {
                            let before = set.counts();
                            prop_assert_eq!(set.park(reference(id, next, false)), Ok(()));
                            prop_assert_eq!(set.counts(), before);
                        }
                    }
                    4 => set.stored(),
                    _ => {
                        let first = plain.get(&id).and_then(|list| list.events.first().copied());
                        if let Some(first) = first {
                            let list = plain.get_mut(&id).expect("there");
                            if list.ranged.contains(&first) {
                                list.events.retain(|seq| !list.ranged.contains(seq));
                                list.ranged.clear();
                            }
                            list.events.remove(&first);
                            set.released(&aggregate, &[first]);
                        }
                    }
                }
                plain.retain(|_, list| !list.events.is_empty());
                let events: usize = plain.values().map(|list| list.events.len()).sum();
                prop_assert_eq!(set.counts(), (events as u64, plain.len() as u64));
                prop_assert!(set.total <= total && set.is_empty() == plain.is_empty());
                for id in 0..4u8 {
                    for seq in 0..=next + 1 {
                        let first = plain.get(&id).and_then(|list| list.events.first());
                        prop_assert_eq!(
                            set.holds("order", &id.to_string(), seq),
                            first.is_some_and(|first| seq >= *first)
                        );
                    }
                    let listed = plain
                        .get(&id)
                        .map_or(0, |list| list.events.len() - list.ranged.len());
                    prop_assert!(listed as u64 <= per_aggregate.max(1));
                }
            }
        }
    }

    #[test]
    fn what_waits_behind_many_is_a_range_that_is_unfolded_in_order() {
        let mut set = ParkedSet::new(Limits {
            per_aggregate: 2,
            total: 100,
        });
        let aggregate = reference(1, 0, false).aggregate;
        for seq in 1..=9 {
            assert_eq!(set.park(reference(1, seq, seq == 1)), Ok(()));
        }
        assert_eq!(
            (set.counts(), set.total, set.pending().len()),
            ((9, 1), 3, 2)
        );
        let range = set.range(&aggregate).cloned().expect("a range");
        assert_eq!((range.from, range.to, range.events), (3, 9, 7));
        assert_eq!(set.grown().count(), 1);
        set.stored();
        assert!(set.grown().next().is_none());
        set.released(&aggregate, &[1, 2]);
        assert!(set.holds("order", "1", 3) && !set.holds("order", "1", 2));
        set.unfold(
            &aggregate,
            &[3, 4],
            Some(Range {
                from: 5,
                events: 5,
                ..range
            }),
        );
        assert_eq!((set.counts(), set.total), ((7, 1), 3));
        set.unfold(&aggregate, &[5, 6, 7, 8, 9], None);
        set.released(&aggregate, &[3, 4, 5, 6, 7, 8, 9]);
        assert!(set.is_empty() && set.counts() == (0, 0));
    }

    #[test]
    fn an_aggregate_of_which_the_table_has_nothing_is_forgotten() {
        let mut set = ParkedSet::new(Limits {
            per_aggregate: 10,
            total: 10,
        });
        let aggregate = reference(1, 0, false).aggregate;
        let range = Range {
            from: 8,
            id: uuid::Uuid::nil(),
            to: 20,
            events: 5,
            topic: "order".into(),
        };
        set.load(aggregate.clone(), vec![5, 7], Some(range), true);
        assert!(
            set.holds("order", "1", 5)
                && !set.holds("order", "1", 4)
                && !set.holds("order", "2", 6)
        );
        assert_eq!(
            (set.next_ready(), set.counts()),
            (Some(aggregate.clone()), (7, 1))
        );
        set.free(&aggregate);
        assert!(set.is_empty() && set.counts() == (0, 0));
    }

    #[test]
    fn what_waits_for_a_topic_is_counted_until_the_table_has_none() {
        let mut set = ParkedSet::new(Limits {
            per_aggregate: 1,
            total: 1,
        });
        (1..=3).for_each(|seq| set.wait_for_topic(reference(1, seq, true), "t"));
        assert_eq!(
            (
                set.counts(),
                set.pending().len(),
                set.holds("order", "1", 9)
            ),
            ((3, 0), 3, false)
        );
        set.waited_for("t", 3);
        assert!(!set.is_empty(), "more may have come");
        set.nothing_waits_for("t");
        assert!(set.is_empty());
    }
}
