//! Start offsets of a new consumer group that is configured with `from_end`.
//!
//! The group starts at the end of the partitions that exist when the first member starts, in topics
//! for which the group has not committed anything yet. All other partitions are read from their
//! beginning, including partitions that are added later, whether members run at that time or not.

use std::collections::HashSet;

use crate::kafka::{Committed, ConsumerError, Known, Member, Partition};

/// The partitions at whose end a group starts.
#[derive(Debug, Default)]
pub(crate) struct StartOffsets(HashSet<Partition>);

impl StartOffsets {
    /// Returns the partitions that exist now, in topics without a commit. Blocks while no broker
    /// responds, for up to twenty seconds per topic.
    ///
    /// # Errors
    ///
    /// Returns an error if the partitions or the commits cannot be read.
    pub(crate) fn at_the_ends(member: &Member, topics: &[String]) -> Result<Self, ConsumerError> {
        let mut there = HashSet::new();
        for topic in topics {
            let partitions = member.partitions_of(topic)?;
            let Known { committed, never } = member.committed(&partitions)?;
            if committed.len() + never.len() < partitions.len() {
                return Err(ConsumerError::NoCommits(topic.clone()));
            }
            if committed.is_empty() {
                there.extend(never);
            }
        }
        Ok(Self(there))
    }

    /// Returns the start offsets of those partitions that start at their end and have no commit.
    /// `never` lists the partitions without a commit.
    pub(crate) fn ends(
        &self,
        subscriber: &str,
        member: &Member,
        never: &[Partition],
    ) -> Vec<Committed> {
        let end_of = |partition: &Partition| match member.end_now(partition) {
            Ok(offset) => Some(Committed {
                partition: partition.clone(),
                offset,
                metadata: String::new(),
            }),
            Err(error) => {
                tracing::warn!(
                    subscriber,
                    ?partition,
                    %error,
                    "the end of the partition cannot be read: it is read from its beginning"
                );
                None
            }
        };
        never
            .iter()
            .filter(|partition| self.0.contains(partition))
            .filter_map(end_of)
            .collect()
    }

    /// Records that the group has started in these partitions. If their commits disappear later,
    /// together with the topic, all records of a new topic are new and must be read.
    pub(crate) fn has_begun(&mut self, committed: &[Committed]) {
        for begun in committed {
            self.0.remove(&begun.partition);
        }
    }

    /// Records that the topic was created again, so that it is read from its beginning.
    pub(crate) fn forget(&mut self, topic: &str) {
        self.0.retain(|partition| *partition.topic != *topic);
    }

    #[cfg(test)]
    pub(crate) fn of(partitions: impl IntoIterator<Item = Partition>) -> Self {
        Self(partitions.into_iter().collect())
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, partition: &Partition) -> bool {
        self.0.contains(partition)
    }
}
