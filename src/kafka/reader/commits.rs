//! Reader of a whole topic. The commits of a group without members record which of its records are
//! finished.

use std::ops::ControlFlow;

use rdkafka::consumer::{CommitMode, Consumer as _};

use super::{
    bounded::Part,
    topic_reader::{Isolation, SILENCE_MAX, TopicReader},
};
use crate::kafka::{
    Beat, Committed, ConsumerError, Incoming, Partition, Settings, incoming::Buffers, offsets,
};

impl TopicReader {
    /// Creates a reader of whole topics.
    ///
    /// # Errors
    ///
    /// Returns librdkafka's message if it refuses a property.
    pub(crate) fn of_topics(settings: &Settings, group: &str) -> Result<Self, ConsumerError> {
        let config = settings.client_config_over(&[("fetch.wait.max.ms", "50")]);
        Self::open(config, group, Isolation::Committed, SILENCE_MAX)
    }

    /// Returns the committed offsets of the group.
    ///
    /// # Errors
    ///
    /// Returns an error if the coordinator does not respond.
    pub(crate) fn commits(
        &self,
        partitions: &[Partition],
        beat: &Beat,
    ) -> Result<Vec<Committed>, ConsumerError> {
        let commits = self.committed(partitions, beat)?;
        Ok(commits.into_iter().filter_map(|one| one.ok()?).collect())
    }

    /// Returns the partitions of a topic.
    ///
    /// # Errors
    ///
    /// Returns [`ConsumerError::MissingTopic`] if the topic does not exist, or an error if no
    /// broker responds.
    pub(crate) fn partitions_of_existing(
        &self,
        topic: &str,
        beat: &Beat,
    ) -> Result<Vec<Partition>, ConsumerError> {
        let partitions = self.partitions_of(topic, beat)?;
        match partitions.is_empty() {
            true => Err(ConsumerError::MissingTopic(topic.to_owned())),
            false => Ok(partitions),
        }
    }

    /// Reads the records from the committed offsets to the ends of the partitions, one partition
    /// after another, until `each` breaks. Each partition ends at the offset at which it ends when
    /// it is reached.
    ///
    /// # Errors
    ///
    /// Returns the cluster's error, or an error if no record arrives within [`SILENCE_MAX`].
    pub(crate) fn read_after(
        &self,
        partitions: &[Partition],
        committed: &[Committed],
        beat: &Beat,
        mut each: impl FnMut(Incoming) -> ControlFlow<()>,
    ) -> Result<(), ConsumerError> {
        for partition in partitions {
            let extent = self.extent(partition, beat)?;
            let commit = committed
                .iter()
                .find(|commit| commit.partition == *partition);
            let part = Part {
                partition: partition.clone(),
                from: commit.map_or(extent.low, |commit| commit.offset),
                to: extent.high,
            };
            let mut records = self.read([part]);
            while let Some(record) = records.next(beat)? {
                if each(records.incoming(Buffers::default(), &record)).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Commits offsets and waits for the coordinator's response.
    ///
    /// # Errors
    ///
    /// Returns the coordinator's error.
    pub(crate) fn commit(&self, commits: &[Committed]) -> Result<(), ConsumerError> {
        if commits.is_empty() {
            return Ok(());
        }
        let list = offsets::commit_list(commits);
        Ok(self.consumer().commit(&list, CommitMode::Sync)?)
    }
}
