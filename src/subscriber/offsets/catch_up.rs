//! Check that a subscriber's group has handled everything that some topics contained at a given
//! time, regardless of the current owners of the partitions.
//!
//! The check uses the group's commits and the finished offsets in their metadata. Therefore it
//! needs neither the assignment nor the other members. A partition without an owner is behind as
//! long as it contains a record that is not handled.

use super::metadata::OffsetMetadata;
use crate::{
    kafka::{
        ASK_LIMIT, Beat, Committed, ConsumerError, PartitionExtent, Replaceable, Settings,
        TopicReader, Unhandled, watched,
    },
    subscriber::Ground,
};

/// Reads the progress of the group in some topics.
pub(crate) struct CatchUp {
    settings: Settings,
    group: String,
    topics: Vec<String>,
    /// Kept between calls because it holds connections.
    reader: Replaceable<TopicReader>,
}

impl CatchUp {
    /// Creates a reader for the topics of these aggregates.
    pub(crate) fn new(ground: &Ground, aggregates: &[&'static str]) -> Self {
        let mut topics: Vec<String> = aggregates
            .iter()
            .flat_map(|aggregate| ground.topics_of(aggregate))
            .collect();
        topics.sort_unstable();
        topics.dedup();
        Self {
            settings: ground.kafka.clone(),
            group: ground.consumer.clone(),
            topics,
            reader: Replaceable::default(),
        }
    }

    /// Returns `true` if there is no topic to check.
    pub(crate) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Returns the current ends of the topics.
    ///
    /// # Errors
    ///
    /// Returns an error if the cluster does not respond.
    pub(crate) async fn ends(&self) -> Result<Vec<PartitionExtent>, ConsumerError> {
        let topics = self.topics.clone();
        self.ask(move |reader, beat| reader.ends(&topics, beat))
            .await
    }

    /// Returns the first event before these ends that the group has not handled, for each partition
    /// that has one.
    ///
    /// # Errors
    ///
    /// Returns an error if the cluster does not respond.
    pub(crate) async fn behind(
        &self,
        ends: &[PartitionExtent],
    ) -> Result<Vec<Unhandled>, ConsumerError> {
        let ends = ends.to_vec();
        self.ask(move |reader, beat| reader.unhandled(&ends, &is_finished, beat))
            .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&TopicReader, &Beat) -> Result<T, ConsumerError> + Send + 'static,
    ) -> Result<T, ConsumerError> {
        let open = || TopicReader::of_first_records(&self.settings, &self.group);
        let reader = self.reader.get(open)?;
        let asks = reader.clone();
        let asked = watched("fetch_group_progress", ASK_LIMIT, move |beat| {
            question(&asks, beat)
        });
        let answer = asked.await.map_err(ConsumerError::from).flatten();
        answer.inspect_err(|_| self.reader.discard(&reader))
    }
}

/// Returns `true` if a record beyond a commit is finished. Foreign metadata is ignored, as the next
/// owner of the partition ignores it.
fn is_finished(committed: &Committed, offset: i64) -> bool {
    OffsetMetadata::decode(&committed.metadata, committed.offset)
        .is_ok_and(|finished| finished.contains(offset))
}
