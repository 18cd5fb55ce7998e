//! Committed offsets of a consumer group, and the records after them, without joining the group.
//!
//! The numbers come from offsets, so they are cheap and approximate: transaction markers, aborted
//! and compacted records occupy offsets too.

use std::sync::Arc;

use rdkafka::{Offset, consumer::Consumer as _};

use super::topic_reader::{Isolation, SILENCE_MAX, TopicReader};
use crate::kafka::{
    ASK_LIMIT, ASK_TIMEOUT, Beat, ConsumerError, Partition, Settings, TopicError, watched,
};

/// A partition, and the position of a group in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionBacklog {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// Offset of the oldest record that the topic keeps.
    pub(crate) first: i64,
    /// Offset after the newest record.
    pub(crate) end: i64,
    /// `None` if the group has not committed an offset.
    pub(crate) committed: Option<i64>,
    /// Metadata of the commit.
    pub(crate) metadata: String,
}

impl PartitionBacklog {
    /// Returns the number of offsets that the group has not passed.
    pub(crate) fn left(&self) -> i64 {
        let from = self.committed.unwrap_or(self.first).max(self.first);
        (self.end - from).max(0)
    }
}

/// Returns every partition of the topics for which `is_wanted` returns `true`.
///
/// # Errors
///
/// Returns [`TopicError`] if the cluster does not respond or denies the request, or the client
/// hangs.
///
/// # Cancel safety
///
/// If the future is dropped, its thread ends after its current request.
pub(crate) async fn backlog(
    settings: &Settings,
    group: &str,
    is_wanted: impl Fn(&str) -> bool + Send + 'static,
) -> Result<Vec<PartitionBacklog>, TopicError> {
    let (config, group) = (settings.client_config(), group.to_owned());
    let asked = watched("fetch_backlog", ASK_LIMIT, move |beat| {
        let reader = TopicReader::open(config, &group, Isolation::Committed, SILENCE_MAX)?;
        let partitions = reader.partitions_where(is_wanted, beat)?;
        reader.backlog(partitions, beat)
    });
    let failed = |error| TopicError::Unreachable(format!("reading offsets: {error}"));
    asked.await?.map_err(failed)
}

impl TopicReader {
    /// Returns the partitions of all topics with such a name, in their order.
    fn partitions_where(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        beat: &Beat,
    ) -> Result<Vec<Partition>, ConsumerError> {
        beat.touch();
        // Requests all topics, because a request for one name could create that topic.
        let metadata = self.consumer().fetch_metadata(None, ASK_TIMEOUT)?;
        let mut partitions = Vec::new();
        let topics = metadata.topics().iter();
        for topic in topics.filter(|topic| is_wanted(topic.name())) {
            let name: Arc<str> = topic.name().into();
            partitions.extend(topic.partitions().iter().map(|partition| Partition {
                topic: name.clone(),
                number: partition.id(),
            }));
        }
        partitions.sort();
        Ok(partitions)
    }

    fn backlog(
        &self,
        partitions: Vec<Partition>,
        beat: &Beat,
    ) -> Result<Vec<PartitionBacklog>, ConsumerError> {
        let commits = self.committed(&partitions, beat)?;
        let ends = self.offsets_at(&partitions, Offset::End, beat)?;
        let firsts = self.offsets_at(&partitions, Offset::Beginning, beat)?;
        let mut found = Vec::with_capacity(partitions.len());
        for (at, (partition, commit)) in partitions.into_iter().zip(commits).enumerate() {
            let (Some(first), Some(end)) = (firsts[at], ends[at]) else {
                continue;
            };
            let (committed, metadata) = match commit.ok().flatten() {
                Some(commit) => (Some(commit.offset), commit.metadata),
                None => (None, String::new()),
            };
            found.push(PartitionBacklog {
                topic: partition.topic.to_string(),
                partition: partition.number,
                first,
                end,
                committed,
                metadata,
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_before_the_first_kept_offset_do_not_count() {
        let partition = |committed| PartitionBacklog {
            topic: "a".into(),
            partition: 0,
            first: 10,
            end: 15,
            committed,
            metadata: String::new(),
        };
        assert_eq!(partition(None).left(), 5);
        assert_eq!(partition(Some(3)).left(), 5);
        assert_eq!(partition(Some(12)).left(), 3);
        assert_eq!(partition(Some(99)).left(), 0);
    }
}
