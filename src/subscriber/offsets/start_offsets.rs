//! Where a group begins that begins at the end: in partitions that are there when the first member starts. Everything else came later, and is read from its beginning.
//!
//! What was there is what a member finds when it starts, in topics for which the group has committed nothing yet. So a partition that is added while members run, or while none does, is not among it.

use std::collections::HashSet;

use crate::kafka::{Committed, Known, Member, Partition};

/// The partitions at whose end a subscriber's group begins.
#[derive(Debug, Default)]
pub(crate) struct Beginning(HashSet<Partition>);

impl Beginning {
    /// What there is at this moment. Blocks while no broker answers, for twenty seconds a topic at most.
    ///
    /// # Errors
    /// When it is not told.
    pub(crate) fn at_the_ends(member: &Member, topics: &[String]) -> Result<Self, String> {
        let mut there = HashSet::new();
        for topic in topics {
            let partitions = member.partitions_of(topic)?;
            let Known { committed, never } = member.committed(&partitions)?;
            if committed.len() + never.len() < partitions.len() {
                return Err(format!(
                    "the coordinator does not tell what is committed for all partitions of topic {topic}"
                ));
            }
            if committed.is_empty() {
                there.extend(never);
            }
        }
        Ok(Self(there))
    }

    /// Where the group begins in those of the partitions for which it has never committed anything, if that is at their ends.
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
                    error,
                    "where the partition ends is not known: it is read from its beginning"
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

    /// The group has begun in these. Should its commits be gone once, with their topic, all that comes then is new.
    pub(crate) fn has_begun(&mut self, committed: &[Committed]) {
        for begun in committed {
            self.0.remove(&begun.partition);
        }
    }
}
