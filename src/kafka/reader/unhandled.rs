//! The first records that a group has not handled, read by a client that never joins the group.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{Message as _, consumer::Consumer as _, error::KafkaError};

use super::{
    bounded::Part,
    topic_reader::{Isolation, TopicReader},
};
use crate::kafka::{Beat, Committed, ConsumerError, Partition, PartitionExtent, Settings};

/// Maximum time to wait for the next record of a partition. The callers ask again.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The first unhandled record of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unhandled {
    pub(crate) partition: Partition,
    /// The committed offset, or the beginning of the partition.
    pub(crate) committed: i64,
    pub(crate) offset: i64,
}

/// The commit of a group in a partition, and the offsets of the partition.
pub(super) struct Progress {
    pub(super) commit: Committed,
    low: i64,
    end: i64,
}

impl Progress {
    /// Without a commit, the group starts at the first record.
    pub(super) fn new(extent: &PartitionExtent, commit: Option<Committed>) -> Self {
        let begin = || Committed {
            partition: extent.partition.clone(),
            offset: extent.low,
            metadata: String::new(),
        };
        Self {
            commit: commit.unwrap_or_else(begin),
            low: extent.low,
            end: extent.high,
        }
    }

    /// Returns the number of offsets before the end that the group has not passed.
    pub(super) fn left(&self) -> i64 {
        self.end - self.commit.offset.max(self.low)
    }
}

impl TopicReader {
    /// Creates a reader of the first records of partitions.
    ///
    /// # Errors
    ///
    /// Returns librdkafka's message if it refuses a property.
    pub(crate) fn of_first_records(
        settings: &Settings,
        group: &str,
    ) -> Result<Self, ConsumerError> {
        let mut config = settings.client_config();
        config
            .set("fetch.wait.max.ms", "10")
            .set("queued.min.messages", "1")
            .set("queued.max.messages.kbytes", "1024");
        Self::open(config, group, Isolation::Committed, SILENCE_MAX)
    }

    /// Returns the current offsets of the topics' partitions. A topic that does not exist has none.
    ///
    /// # Errors
    ///
    /// Returns an error if a broker does not respond.
    pub(crate) fn ends(
        &self,
        topics: &[String],
        beat: &Beat,
    ) -> Result<Vec<PartitionExtent>, ConsumerError> {
        let extents = self.extents(topics, beat);
        extents.map_err(|error| self.failed(error))
    }

    /// Returns the first unhandled record before the given end, for each partition that has one.
    /// Transaction markers occupy offsets too. Therefore a partition whose commit is below its end
    /// is read. `is_finished` reads the metadata of a commit.
    ///
    /// # Errors
    ///
    /// Returns an error if a broker does not respond.
    pub(crate) fn unhandled(
        &self,
        ends: &[PartitionExtent],
        is_finished: &dyn Fn(&Committed, i64) -> bool,
        beat: &Beat,
    ) -> Result<Vec<Unhandled>, ConsumerError> {
        let failed = |error| self.failed(error);
        let partitions: Vec<Partition> = ends.iter().map(|end| end.partition.clone()).collect();
        let mut behind = Vec::new();
        let commits = self.committed(&partitions, beat).map_err(failed)?;
        for (end, commit) in ends.iter().zip(commits) {
            let progress = Progress::new(end, commit.map_err(|error| failed(error.into()))?);
            if progress.commit.offset < progress.end {
                behind.push(progress);
            }
        }
        let unhandled = self.first_unhandled(behind, is_finished, beat);
        unhandled.map_err(failed)
    }

    /// Same as [`unhandled`](Self::unhandled), for a group with these commits.
    pub(super) fn first_unhandled(
        &self,
        progress: impl IntoIterator<Item = Progress>,
        is_finished: &dyn Fn(&Committed, i64) -> bool,
        beat: &Beat,
    ) -> Result<Vec<Unhandled>, ConsumerError> {
        let mut commits = BTreeMap::new();
        let parts = progress.into_iter().map(|Progress { commit, end, .. }| {
            let part = Part {
                partition: commit.partition.clone(),
                from: commit.offset,
                to: end,
            };
            commits.insert(commit.partition.clone(), commit);
            part
        });
        let mut records = self.read(parts);
        let mut found = Vec::new();
        while let Some(record) = records.next(beat)? {
            let partition = records.partition(&record);
            let Some(commit) = commits.get(&partition) else {
                continue;
            };
            if !is_finished(commit, record.offset()) {
                found.push(Unhandled {
                    partition,
                    committed: commit.offset,
                    offset: record.offset(),
                });
                records.finish(record.partition());
            }
        }
        // The client is kept, and would fetch more records.
        self.consumer().unassign()?;
        Ok(found)
    }

    /// Returns the error with the group.
    fn failed(&self, error: ConsumerError) -> ConsumerError {
        let group = self.group.clone();
        match error {
            ConsumerError::Reading {
                error: KafkaError::NoMessageReceived,
                ..
            } => ConsumerError::NoRecord {
                group,
                limit: SILENCE_MAX,
            },
            ConsumerError::Reading { error, .. } | ConsumerError::Refused(error) => {
                ConsumerError::Progress { group, error }
            }
            other => other,
        }
    }
}
