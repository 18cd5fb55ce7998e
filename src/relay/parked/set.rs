//! Which aggregates wait, as the leader knows it: a copy of the table that costs one look at an empty map while nothing is parked.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// An aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::relay) struct Aggregate {
    pub(in crate::relay) kind: String,
    pub(in crate::relay) id: String,
}

/// An event to be parked: what is stored of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::relay) struct Reference {
    pub(in crate::relay) seq: i64,
    pub(in crate::relay) id: uuid::Uuid,
    pub(in crate::relay) aggregate: Aggregate,
    pub(in crate::relay) topic: String,
    /// Why it cannot be delivered; `None`: it waits behind one that cannot.
    pub(in crate::relay) reason: Option<String>,
}

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) struct Limits {
    pub(in crate::relay) per_aggregate: u64,
    pub(in crate::relay) total: u64,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum Full {
    Aggregate(u64),
    Total(u64),
}

/// What is parked.
#[derive(Debug)]
pub(in crate::relay) struct ParkedSet {
    limits: Limits,
    /// The numbers that wait, by kind and id, so that an event is looked up without allocating.
    aggregates: HashMap<String, HashMap<String, BTreeSet<i64>>>,
    total: u64,
    /// Met, and not in the table yet. The position must not pass these.
    pending: Vec<Reference>,
    /// Aggregates of which nothing is in the way any more.
    ready: VecDeque<Aggregate>,
}

/// Most events that are met before they are stored together.
const PENDING_MAX: usize = 500;

impl ParkedSet {
    pub(in crate::relay) fn new(limits: Limits) -> Self {
        Self { limits, aggregates: HashMap::new(), total: 0, pending: Vec::new(), ready: VecDeque::new() }
    }

    /// An aggregate of the table: its events, and whether nothing is in the way of the first.
    pub(in crate::relay) fn load(&mut self, aggregate: Aggregate, events: Vec<i64>, ready: bool) {
        if ready {
            self.ready.push_back(aggregate.clone());
        }
        self.total += events.len() as u64;
        self.aggregates.entry(aggregate.kind).or_default().insert(aggregate.id, events.into_iter().collect());
    }

    /// Nothing is parked.
    pub(in crate::relay) fn is_empty(&self) -> bool {
        self.aggregates.is_empty()
    }

    /// How many events are parked, and of how many aggregates.
    pub(in crate::relay) fn counts(&self) -> (u64, u64) {
        (self.total, self.aggregates.values().map(|ids| ids.len() as u64).sum())
    }

    /// Whether an event has to wait with its aggregate.
    pub(in crate::relay) fn holds(&self, kind: &str, id: &str, seq: i64) -> bool {
        let events = self.aggregates.get(kind).and_then(|ids| ids.get(id));
        events.and_then(BTreeSet::first).is_some_and(|first| seq >= *first)
    }

    /// Whether more may be met before what was is stored.
    pub(in crate::relay) fn has_room(&self) -> bool {
        self.pending.len() < PENDING_MAX
    }

    /// An event waits, and with it all later ones of its aggregate. To be stored before the position passes it, unless it is met again
    /// because the position had not passed it when the relay died.
    ///
    /// # Errors
    /// When there are as many as may be.
    pub(in crate::relay) fn park(&mut self, event: Reference) -> Result<(), Full> {
        let Aggregate { kind, id } = &event.aggregate;
        let events = self.aggregates.get(kind).and_then(|ids| ids.get(id));
        if events.is_some_and(|events| events.contains(&event.seq)) {
            return Ok(());
        }
        if events.map_or(0, BTreeSet::len) as u64 >= self.limits.per_aggregate {
            return Err(Full::Aggregate(self.limits.per_aggregate));
        }
        if self.total >= self.limits.total {
            return Err(Full::Total(self.limits.total));
        }
        self.aggregates.entry(kind.clone()).or_default().entry(id.clone()).or_default().insert(event.seq);
        self.total += 1;
        self.pending.push(event);
        Ok(())
    }

    /// What is to be stored.
    pub(in crate::relay) fn pending(&self) -> &[Reference] {
        &self.pending
    }

    /// All that was pending is in the table.
    pub(in crate::relay) fn stored(&mut self) {
        self.pending.clear();
    }

    /// These events of an aggregate wait no more. An aggregate without any is forgotten: its next event goes straight on.
    pub(in crate::relay) fn released(&mut self, aggregate: &Aggregate, seqs: &[i64]) {
        let Some(ids) = self.aggregates.get_mut(&aggregate.kind) else { return };
        let Some(events) = ids.get_mut(&aggregate.id) else { return };
        self.total -= seqs.iter().filter(|seq| events.remove(seq)).count() as u64;
        if events.is_empty() {
            ids.remove(&aggregate.id);
        }
        if ids.is_empty() {
            self.aggregates.remove(&aggregate.kind);
        }
    }

    /// The table has nothing of this aggregate, whatever was thought.
    pub(in crate::relay) fn free(&mut self, aggregate: &Aggregate) {
        let events = self.aggregates.get(&aggregate.kind).and_then(|ids| ids.get(&aggregate.id));
        let events: Vec<i64> = events.into_iter().flatten().copied().collect();
        self.released(aggregate, &events);
    }

    /// An aggregate of which nothing is in the way any more.
    pub(in crate::relay) fn next_ready(&mut self) -> Option<Aggregate> {
        self.ready.pop_front()
    }

    /// More of this aggregate can be released.
    pub(in crate::relay) fn make_ready(&mut self, aggregate: Aggregate) {
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

    fn reference(id: u8, seq: i64) -> Reference {
        let aggregate = Aggregate { kind: "order".into(), id: id.to_string() };
        Reference { seq, id: uuid::Uuid::nil(), aggregate, topic: "order".into(), reason: None }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_list_holds_and_no_more_than_it_may(steps in proptest::collection::vec((0u8..5, 0u8..4, 1i64..12), 0..200), per_aggregate in 1u64..8, total in 1u64..16) {
            let mut set = ParkedSet::new(Limits { per_aggregate, total });
            let mut plain: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
            let mut unstored = 0;
            for (action, id, seq) in steps {
                let seq = seq * 4 + i64::from(id);
                let list = plain.entry(id).or_default();
                match action {
                    0..=2 => {
                        let (again, waiting) = (list.contains(&seq), list.len() as u64);
                        let all = set.counts().0;
                        match set.park(reference(id, seq)) {
                            Ok(()) if again => {}
                            Ok(()) => {
                                prop_assert!(waiting < per_aggregate && all < total);
                                list.push(seq);
                                unstored += 1;
                            }
                            Err(Full::Aggregate(limit)) => prop_assert!(!again && waiting == limit && limit == per_aggregate),
                            Err(Full::Total(limit)) => prop_assert!(!again && all == limit && limit == total),
                        }
                        prop_assert_eq!(set.pending().len(), unstored);
                    }
                    3 => {
                        set.stored();
                        unstored = 0;
                    }
                    _ => {
                        set.released(&reference(id, 0).aggregate, &[seq]);
                        list.retain(|other| *other != seq);
                    }
                }
                plain.retain(|_, list| !list.is_empty());
                prop_assert_eq!(set.counts(), (plain.values().map(Vec::len).sum::<usize>() as u64, plain.len() as u64));
                prop_assert_eq!(set.is_empty(), plain.is_empty());
                for id in 0..4u8 {
                    for seq in 0..50 {
                        let first = plain.get(&id).and_then(|list| list.iter().min());
                        prop_assert_eq!(set.holds("order", &id.to_string(), seq), first.is_some_and(|first| seq >= *first));
                    }
                }
            }
        }
    }

    #[test]
    fn an_aggregate_of_which_the_table_has_nothing_is_forgotten() {
        let mut set = ParkedSet::new(Limits { per_aggregate: 10, total: 10 });
        let aggregate = reference(1, 0).aggregate;
        set.load(aggregate.clone(), vec![5, 7], true);
        assert!(set.holds("order", "1", 5) && !set.holds("order", "1", 4) && !set.holds("order", "2", 6));
        assert_eq!(set.next_ready(), Some(aggregate.clone()));
        set.free(&aggregate);
        assert!(set.is_empty() && set.counts() == (0, 0));
    }
}
