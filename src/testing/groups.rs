//! Topics, partitions and groups of the in-memory bus: the assignment of records to members.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::event::Envelope;
use crate::kafka::{Incoming, Letter, Place, partition_of};
use crate::subscriber::{Bus, InMemory, MemoryInbox};

/// Record that has not been delivered yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    letter: Letter,
    /// Aggregate of an event that names no topic. Each group expects the event in the topic that it
    /// reads for the aggregate.
    aggregate: Option<String>,
    offset: i64,
    timestamp: i64,
}

/// Members of one group, and their in-memory replacement for a database.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) members: Vec<usize>,
    pub(super) memory: Arc<MemoryInbox>,
}

/// Pending records, and the groups that receive them.
#[derive(Debug, Default)]
pub(super) struct Topics {
    pending: VecDeque<Pending>,
    offset: i64,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) partitions: Option<i32>,
    pub(super) twice: bool,
    pub(super) shuffle: Option<u64>,
}

impl Topics {
    /// Publishes an event.
    pub(super) fn publish(&mut self, bus: &Bus, envelope: &Envelope, timestamp: i64) {
        let aggregate = envelope
            .topic
            .is_none()
            .then(|| envelope.aggregate_type.clone().into_owned());
        self.enqueue(bus.letter(envelope), aggregate, timestamp, self.twice);
    }

    /// Sends a record to a retry topic.
    pub(super) fn retry(&mut self, letter: Letter, timestamp: i64) {
        self.enqueue(letter, None, timestamp, false);
    }

    fn enqueue(&mut self, letter: Letter, aggregate: Option<String>, timestamp: i64, twice: bool) {
        let pending = Pending {
            letter,
            aggregate,
            offset: self.offset,
            timestamp,
        };
        self.offset += 1;
        self.pending.extend(twice.then(|| pending.clone()));
        self.pending.push_back(pending);
    }

    /// Returns the number of pending records.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Delivers each record to one member of each group that reads its topic. Repeated deliveries
    /// come after all other records.
    pub(super) fn distribute(&mut self, members: &mut [InMemory]) {
        let mut known = HashSet::new();
        let (mut first, again): (Vec<_>, Vec<_>) = self
            .pending
            .drain(..)
            .partition(|record| known.insert(record.offset));
        first.extend(again);
        if let Some(seed) = &mut self.shuffle {
            shuffle(&mut first, seed);
        }
        let partitions = self.partition_count();
        for record in &first {
            for group in self.groups.values() {
                deliver(record, group, members, partitions);
            }
        }
    }

    /// Returns the number of partitions of each topic: the configured number, or the number of
    /// members of the largest group.
    fn partition_count(&self) -> i32 {
        let largest = self
            .groups
            .values()
            .map(|group| group.members.len())
            .max()
            .unwrap_or(1);
        self.partitions
            .unwrap_or_else(|| i32::try_from(largest).unwrap_or(i32::MAX))
            .max(1)
    }

    /// Removes the last record and returns it as a subscriber of its topic would read it.
    pub(super) fn pop(&mut self) -> Option<Incoming> {
        let record = self.pending.pop_back()?;
        Some(record.in_topic(&record.letter.topic, 1))
    }
}

fn deliver(record: &Pending, group: &Group, members: &mut [InMemory], partitions: i32) {
    let Some(first) = group.members.first() else {
        return;
    };
    let topic = match &record.aggregate {
        Some(aggregate) => members[*first].topic_of(aggregate).to_owned(),
        None => record.letter.topic.clone(),
    };
    let readers: Vec<usize> = group
        .members
        .iter()
        .copied()
        .filter(|member| members[*member].reads(&topic))
        .collect();
    let incoming = record.in_topic(&topic, partitions);
    let Some(owner) = readers
        .get(incoming.partition.unsigned_abs() as usize % readers.len().max(1))
        .copied()
    else {
        return;
    };
    // During a deployment, events of a type go to the members that handle it.
    let able = if members[owner].takes(&incoming) {
        None
    } else {
        readers
            .iter()
            .copied()
            .find(|member| members[*member].takes(&incoming))
    };
    members[able.unwrap_or(owner)].push(&incoming);
}

impl Pending {
    fn in_topic(&self, topic: &str, partitions: i32) -> Incoming {
        let partition = match &self.letter.key {
            Some(key) => partition_of(key, partitions),
            None => i32::try_from(self.offset % i64::from(partitions)).unwrap_or_default(),
        };
        let place = Place {
            topic: topic.into(),
            partition,
            offset: self.offset,
            timestamp: self.timestamp,
        };
        let headers = self
            .letter
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()));
        Incoming::new(
            place,
            self.letter.key.as_deref(),
            self.letter.value.as_deref(),
            headers,
        )
    }
}

/// Fisher-Yates shuffle with a platform-independent generator (SplitMix64).
fn shuffle(records: &mut [Pending], seed: &mut u64) {
    for at in (1..records.len()).rev() {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        records.swap(at, ((mixed ^ (mixed >> 31)) % (at as u64 + 1)) as usize);
    }
}
