//! Partitions of the relay's topics, with the parts of them that can be verified.

use std::collections::HashMap;
use std::sync::Arc;

use super::entry::{NOWHERE, PlaceIndex};
use super::report::{Gap, GapReason};
use crate::kafka::{PartEnd, PartitionExtent, partition_of};

/// A topic that the relay publishes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelayTopic {
    pub(crate) topic: String,
    /// Number of partitions that keys are spread over.
    pub(crate) partitions: i32,
    /// Number of other relays of the database that publish to it.
    pub(crate) other_relays: u8,
    pub(crate) is_compacted: bool,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) is_compacted: bool,
    /// The first records were deleted before they could be read.
    pub(crate) is_trimmed: bool,
    /// A transaction does not end.
    pub(crate) is_hidden: bool,
    /// The first offset that Kafka keeps.
    pub(crate) low: i64,
}

/// All partitions, and the topics that do not exist.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) list: Vec<Place>,
    index: HashMap<Arc<str>, HashMap<i32, PlaceIndex>>,
    topics: HashMap<String, RelayTopic>,
    pub(crate) missing: Vec<String>,
}

impl Places {
    pub(crate) fn new(topics: Vec<RelayTopic>, extents: &[PartitionExtent]) -> Self {
        let topics: HashMap<_, _> = topics
            .into_iter()
            .map(|topic| (topic.topic.clone(), topic))
            .collect();
        let mut places = Self::default();
        for extent in extents {
            let (topic, partition) = (&extent.partition.topic, extent.partition.number);
            let number = PlaceIndex::try_from(places.list.len()).unwrap_or(NOWHERE);
            places
                .index
                .entry(topic.clone())
                .or_default()
                .insert(partition, number);
            places.list.push(Place {
                topic: topic.clone(),
                partition,
                is_compacted: topics.get(&**topic).is_some_and(|topic| topic.is_compacted),
                is_trimmed: false,
                is_hidden: false,
                low: extent.low,
            });
        }
        places.missing = topics
            .keys()
            .filter(|topic| !places.index.contains_key(topic.as_str()))
            .cloned()
            .collect();
        places.missing.sort();
        places.topics = topics;
        places
    }

    /// Returns the index of a partition.
    pub(crate) fn find(&self, topic: &str, partition: i32) -> PlaceIndex {
        let partitions = self.index.get(topic);
        partitions
            .and_then(|partitions| partitions.get(&partition))
            .copied()
            .unwrap_or(NOWHERE)
    }

    /// Returns `true` if the relay has published to this topic.
    pub(crate) fn is_used(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// Returns the names of the topics that the relay has published to.
    pub(crate) fn used(&self) -> impl Iterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// Returns the partition of a key in a topic, as the relay chooses it, and the number of other
    /// relays that publish to the topic.
    pub(crate) fn of_key(&self, topic: &str, key: &str) -> (PlaceIndex, u8) {
        let Some(pinned) = self.topics.get(topic) else {
            return (NOWHERE, 0);
        };
        let partition = partition_of(key.as_bytes(), pinned.partitions);
        (self.find(topic, partition), pinned.other_relays)
    }

    /// Marks the partitions that were not read completely.
    pub(crate) fn hide(&mut self, ends: &[PartEnd]) {
        for end in ends.iter().filter(|end| end.is_hidden) {
            let place = self.find(&end.partition.topic, end.partition.number);
            if let Some(place) = self.list.get_mut(place as usize) {
                place.is_hidden = true;
            }
        }
    }

    /// Returns a partition by its index.
    pub(crate) fn get(&self, place: PlaceIndex) -> Option<&Place> {
        self.list.get(place as usize)
    }

    /// Returns the partitions whose first records were deleted.
    pub(crate) fn trimmed(&self) -> impl Iterator<Item = PlaceIndex> {
        (0..)
            .zip(&self.list)
            .filter(|(_, place)| place.is_trimmed)
            .map(|(number, _)| number)
    }

    /// Returns the parts that cannot be verified. A compacted topic is one part.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        let mut gaps: Vec<Gap> = self
            .missing
            .iter()
            .map(|topic| Gap {
                topic: topic.as_str().into(),
                partition: None,
                reason: GapReason::Missing,
                first_offset: None,
            })
            .collect();
        for place in &self.list {
            let gap = |partition, reason, first_offset| Gap {
                topic: place.topic.clone(),
                partition,
                reason,
                first_offset,
            };
            if place.is_compacted && place.partition == 0 {
                gaps.push(gap(None, GapReason::Compacted, None));
            }
            if place.is_trimmed {
                gaps.push(gap(
                    Some(place.partition),
                    GapReason::Trimmed,
                    Some(place.low),
                ));
            }
            if place.is_hidden {
                gaps.push(gap(Some(place.partition), GapReason::OpenTransaction, None));
            }
        }
        gaps
    }
}
