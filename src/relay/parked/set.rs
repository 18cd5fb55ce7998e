//! Which aggregates wait, as the leader knows it: a copy of the table that costs one look at an empty map while nothing is parked.

use std::collections::{HashMap, HashSet, VecDeque};

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
    /// By kind and id, so that an event is looked up without allocating.
    aggregates: HashMap<String, HashMap<String, Waiting>>,
    total: u64,
    /// Met, and not in the table yet. The position must not pass these.
    pending: Vec<Reference>,
    /// Aggregates of which nothing is in the way any more.
    ready: VecDeque<Aggregate>,
}

/// Most events that are met before they are stored together.
const PENDING_MAX: usize = 500;

#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: i64,
    events: u64,
}

impl ParkedSet {
    pub(in crate::relay) fn new(limits: Limits) -> Self {
        Self { limits, aggregates: HashMap::new(), total: 0, pending: Vec::new(), ready: VecDeque::new() }
    }

    /// An aggregate of the table: its first event, how many there are, and whether nothing is in the way of the first.
    pub(in crate::relay) fn load(&mut self, aggregate: Aggregate, first: i64, events: u64, ready: bool) {
        if ready {
            self.ready.push_back(aggregate.clone());
        }
        self.total += events;
        self.aggregates.entry(aggregate.kind).or_default().insert(aggregate.id, Waiting { first, events });
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
        self.aggregates.get(kind).and_then(|ids| ids.get(id)).is_some_and(|waiting| seq >= waiting.first)
    }

    /// Whether more may be met before what was is stored.
    pub(in crate::relay) fn has_room(&self) -> bool {
        self.pending.len() < PENDING_MAX
    }

    /// An event waits, and with it all later ones of its aggregate. To be stored before the position passes it.
    ///
    /// # Errors
    /// When there are as many as may be.
    pub(in crate::relay) fn park(&mut self, event: Reference) -> Result<(), Full> {
        let ids = self.aggregates.get(&event.aggregate.kind);
        let waiting = ids.and_then(|ids| ids.get(&event.aggregate.id)).copied().unwrap_or(Waiting { first: event.seq, events: 0 });
        if waiting.events >= self.limits.per_aggregate {
            return Err(Full::Aggregate(self.limits.per_aggregate));
        }
        if self.total >= self.limits.total {
            return Err(Full::Total(self.limits.total));
        }
        let Aggregate { kind, id } = event.aggregate.clone();
        let waiting = Waiting { first: waiting.first.min(event.seq), events: waiting.events + 1 };
        self.aggregates.entry(kind).or_default().insert(id, waiting);
        self.total += 1;
        self.pending.push(event);
        Ok(())
    }

    /// What is to be stored.
    pub(in crate::relay) fn pending(&self) -> &[Reference] {
        &self.pending
    }

    /// All that was pending is in the table, where only `new` were not before.
    pub(in crate::relay) fn stored(&mut self, new: &HashSet<i64>) {
        for event in std::mem::take(&mut self.pending) {
            if !new.contains(&event.seq) {
                self.released(&event.aggregate, 1, None);
            }
        }
    }

    /// This many events of an aggregate do not wait any more; `first` is the first one that still does, if that has changed. An aggregate
    /// without any is forgotten.
    pub(in crate::relay) fn released(&mut self, aggregate: &Aggregate, events: u64, first: Option<i64>) {
        let Some(ids) = self.aggregates.get_mut(&aggregate.kind) else { return };
        let Some(waiting) = ids.get_mut(&aggregate.id) else { return };
        let gone = events.min(waiting.events);
        waiting.events -= gone;
        waiting.first = first.unwrap_or(waiting.first);
        self.total -= gone;
        if waiting.events == 0 {
            self.free(aggregate);
        }
    }

    /// The aggregate waits no more: its next event goes straight on.
    pub(in crate::relay) fn free(&mut self, aggregate: &Aggregate) {
        let Some(ids) = self.aggregates.get_mut(&aggregate.kind) else { return };
        if let Some(waiting) = ids.remove(&aggregate.id) {
            self.total -= waiting.events;
        }
        if ids.is_empty() {
            self.aggregates.remove(&aggregate.kind);
        }
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
        fn it_holds_what_a_plain_list_holds_and_no_more_than_it_may(steps in proptest::collection::vec((0u8..4, 0u8..4, 1i64..40), 0..200), per_aggregate in 1u64..8, total in 1u64..16) {
            let mut set = ParkedSet::new(Limits { per_aggregate, total });
            // Each aggregate's parked events; what is in the table.
            let mut plain: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
            let mut table: HashSet<i64> = HashSet::new();
            for (action, id, seq) in steps {
                let seq = seq * 4 + i64::from(id);
                match action {
                    0 | 1 => {
                        let waiting = plain.get(&id).map_or(0, Vec::len) as u64;
                        let all = plain.values().map(Vec::len).sum::<usize>() as u64;
                        let parked = set.park(reference(id, seq));
                        match parked {
                            Ok(()) => plain.entry(id).or_default().push(seq),
                            Err(Full::Aggregate(limit)) => prop_assert!(waiting >= limit),
                            Err(Full::Total(limit)) => prop_assert!(all >= limit),
                        }
                    }
                    2 => {
                        // What was parked before is in the table once.
                        let new: HashSet<i64> = set.pending().iter().map(|event| event.seq).filter(|seq| table.insert(*seq)).collect();
                        let pending: Vec<Reference> = set.pending().to_vec();
                        set.stored(&new);
                        for event in pending.iter().filter(|event| !new.contains(&event.seq)) {
                            let id: u8 = event.aggregate.id.parse().expect("a number");
                            let list = plain.get_mut(&id).expect("parked");
                            let at = list.iter().rposition(|seq| *seq == event.seq).expect("parked");
                            list.remove(at);
                            if list.is_empty() { plain.remove(&id); }
                        }
                    }
                    _ => {
                        set.stored(&set.pending().iter().map(|event| event.seq).collect());
                        set.free(&reference(id, 0).aggregate);
                        for seq in plain.remove(&id).unwrap_or_default() { table.remove(&seq); }
                    }
                }
                prop_assert_eq!(set.counts(), (plain.values().map(Vec::len).sum::<usize>() as u64, plain.len() as u64));
                prop_assert_eq!(set.is_empty(), plain.is_empty());
                for id in 0..4u8 {
                    prop_assert_eq!(set.holds("order", &id.to_string(), i64::MAX), plain.contains_key(&id));
                }
            }
        }
    }

    #[test]
    fn an_earlier_event_of_a_parked_aggregate_goes_and_a_later_one_waits() {
        let mut set = ParkedSet::new(Limits { per_aggregate: 10, total: 10 });
        set.park(reference(1, 5)).expect("room");
        assert!(set.holds("order", "1", 5) && set.holds("order", "1", 6) && !set.holds("order", "1", 4));
        assert!(!set.holds("order", "2", 6) && !set.holds("account", "1", 6));
        set.released(&reference(1, 0).aggregate, 0, Some(7));
        assert!(!set.holds("order", "1", 6) && set.holds("order", "1", 7));
    }
}
