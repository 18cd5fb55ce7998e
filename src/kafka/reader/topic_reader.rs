//! Client of a reader: its properties, its offset queries, and the start of a read.

use std::time::Duration;

#[cfg(feature = "cli")]
use rdkafka::Offset;
use rdkafka::{ClientConfig, consumer::BaseConsumer};

use super::bounded::{BoundedRead, Part};
use crate::kafka::{
    Beat, ConsumerError, Partition, PartitionExtent,
    drop_on_thread::Dropped,
    offsets::{self, Commit},
    silent_context::Quiet,
};

/// Maximum time to wait for the next record before the topic is treated as unreadable. Longer than
/// a leader election.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Partitions of one request to the cluster. The answer has about 50 bytes per partition.
const PARTITIONS_PER_REQUEST: usize = 2_000;

/// Partitions of one request for the offsets of a time, which the brokers look up in their files.
/// One request for many partitions may exceed the time limit.
#[cfg(feature = "cli")]
const TIMES_PER_REQUEST: usize = 64;

/// The end of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Before the first record of an open transaction.
    Committed,
    /// After the last record.
    Uncommitted,
}

/// A client that reads topics to their ends and never joins its group. All functions block; call
/// them through [`watched`](crate::kafka::watched) with [`ASK_LIMIT`](crate::kafka::ASK_LIMIT).
pub(crate) struct TopicReader {
    consumer: Dropped<BaseConsumer<Quiet>>,
    pub(super) group: String,
    silence_max: Duration,
}

impl TopicReader {
    /// Creates a client that reads the commits of `group`, and waits for a record for up to
    /// `silence_max`.
    ///
    /// # Errors
    ///
    /// Returns librdkafka's message if it refuses a property.
    pub(super) fn open(
        mut config: ClientConfig,
        group: &str,
        end: Isolation,
        silence_max: Duration,
    ) -> Result<Self, ConsumerError> {
        let isolation = match end {
            Isolation::Committed => "read_committed",
            Isolation::Uncommitted => "read_uncommitted",
        };
        config
            // rdkafka requires a group id, also of a client that reads no commits.
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .set("allow.auto.create.topics", "false")
            .set("auto.offset.reset", "earliest");
        Ok(Self {
            consumer: Dropped::new(config.create_with_context(Quiet)?),
            group: group.to_owned(),
            silence_max,
        })
    }

    pub(super) fn consumer(&self) -> &BaseConsumer<Quiet> {
        self.consumer.get()
    }

    /// Returns the partitions of a topic, or an empty list if the topic does not exist.
    ///
    /// # Errors
    ///
    /// Returns an error if no broker responds.
    pub(crate) fn partitions_of(
        &self,
        topic: &str,
        beat: &Beat,
    ) -> Result<Vec<Partition>, ConsumerError> {
        beat.touch();
        offsets::partitions_of(self.consumer(), topic)
    }

    /// Returns the first offset and the current end of a partition.
    ///
    /// # Errors
    ///
    /// Returns an error if the partition's leader does not respond.
    pub(super) fn extent(
        &self,
        partition: &Partition,
        beat: &Beat,
    ) -> Result<PartitionExtent, ConsumerError> {
        beat.touch();
        offsets::extent(self.consumer(), partition)
    }

    /// Returns the offsets of every partition of the topics that exist.
    ///
    /// # Errors
    ///
    /// Returns an error if a broker does not respond.
    pub(super) fn extents(
        &self,
        topics: &[String],
        beat: &Beat,
    ) -> Result<Vec<PartitionExtent>, ConsumerError> {
        let mut extents = Vec::new();
        for topic in topics {
            for partition in self.partitions_of(topic, beat)? {
                extents.push(self.extent(&partition, beat)?);
            }
        }
        Ok(extents)
    }

    /// Returns the commit of each partition, in the same order: `None` if the group has never
    /// committed an offset, or the coordinator's error.
    ///
    /// # Errors
    ///
    /// Returns an error if the coordinator does not respond.
    pub(super) fn committed(
        &self,
        partitions: &[Partition],
        beat: &Beat,
    ) -> Result<Vec<Commit>, ConsumerError> {
        let mut commits = Vec::with_capacity(partitions.len());
        for some in partitions.chunks(PARTITIONS_PER_REQUEST) {
            beat.touch();
            commits.extend(offsets::committed(self.consumer(), some)?);
        }
        Ok(commits)
    }

    /// Returns for each partition, in the same order, the offset of the first record with this
    /// timestamp or a later one. `Offset::Beginning` and `Offset::End` are timestamps too.
    ///
    /// # Errors
    ///
    /// Returns an error if a broker does not respond.
    #[cfg(feature = "cli")]
    pub(super) fn offsets_at(
        &self,
        partitions: &[Partition],
        at: Offset,
        beat: &Beat,
    ) -> Result<Vec<Option<i64>>, ConsumerError> {
        let partitions_max = match at {
            Offset::Offset(_) => TIMES_PER_REQUEST,
            _ => PARTITIONS_PER_REQUEST,
        };
        let mut found = Vec::with_capacity(partitions.len());
        for some in partitions.chunks(partitions_max) {
            beat.touch();
            found.extend(offsets::offsets_at(self.consumer(), some, at)?);
        }
        Ok(found)
    }

    /// Reads the parts to their ends. Replaces an earlier read.
    pub(super) fn read(&self, parts: impl IntoIterator<Item = Part>) -> BoundedRead<'_> {
        BoundedRead::new(self.consumer(), parts, self.silence_max)
    }
}
