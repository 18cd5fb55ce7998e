//! Reading of assigned partitions, each through its own feed.

use std::sync::Arc;

use rdkafka::{
    Offset,
    consumer::{BaseConsumer, Consumer as _, RebalanceProtocol},
};

use super::{ConsumerError, Known, Member};
use crate::kafka::{
    feed::Feed,
    gap::{Restarted, restarted},
    member_context::MemberContext,
    offsets::{Partition, PartitionExtent, list},
    topic_ids::TopicWatch,
};

impl Member {
    /// Creates the feeds of newly assigned partitions. Nothing is read before
    /// [`take`](Self::take).
    ///
    /// # Errors
    ///
    /// Returns an error if librdkafka has no queue for a partition.
    pub(crate) fn feeds(&self, partitions: &[Partition]) -> Result<Vec<Feed>, ConsumerError> {
        partitions
            .iter()
            .map(|partition| self.feed(partition))
            .collect()
    }

    /// Starts reading newly assigned partitions into their [`feeds`](Self::feeds). Reading starts
    /// at the committed offset, or at the beginning if the group has never committed one. If
    /// neither is known, the client determines the offset.
    ///
    /// # Errors
    ///
    /// Returns an error if librdkafka refuses the assignment.
    pub(crate) fn take(
        &self,
        partitions: &[Partition],
        known: &Known,
    ) -> Result<(), ConsumerError> {
        let offset_of = |partition: &Partition| match known
            .committed
            .iter()
            .find(|committed| committed.partition == *partition)
        {
            Some(committed) => Offset::Offset(committed.offset),
            None if known.never.contains(partition) => Offset::Beginning,
            None => Offset::Invalid,
        };
        let list = list(
            partitions
                .iter()
                .map(|partition| (partition, offset_of(partition))),
        );
        let done = if is_cooperative(&self.inner) {
            self.inner.incremental_assign(&list)
        } else {
            self.inner.assign(&list)
        };
        Ok(done?)
    }

    /// Stops reading revoked partitions. Their feeds should be dropped before.
    ///
    /// # Errors
    ///
    /// Returns an error if librdkafka refuses.
    pub(crate) fn give_up(&self, partitions: &[Partition]) -> Result<(), ConsumerError> {
        let list = list(
            partitions
                .iter()
                .map(|partition| (partition, Offset::Invalid)),
        );
        let done = if is_cooperative(&self.inner) {
            self.inner.incremental_unassign(&list)
        } else {
            self.inner.unassign()
        };
        Ok(done?)
    }

    /// Restarts reading of a partition that has no record at `next`. Starts at the first record if
    /// `next` no longer exists or is unknown. The feed stays valid. Blocks for up to ten seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the partition's leader does not respond or the client refuses.
    pub(crate) fn restart(
        &self,
        partition: &Partition,
        next: Option<i64>,
    ) -> Result<Restarted, ConsumerError> {
        let PartitionExtent { low, high, .. } = self.extent(partition)?;
        let restarted = restarted(next, low, high);
        let one = |offset| list(std::iter::once((partition, offset)));
        // The client has stopped fetching the partition and refuses a seek.
        self.inner.incremental_unassign(&one(Offset::Invalid))?;
        self.inner
            .incremental_assign(&one(Offset::Offset(restarted.from)))?;
        Ok(restarted)
    }

    /// Returns the current id of a topic, with the means to detect its change.
    pub(crate) fn topic_watch(&self, topic: &str) -> TopicWatch {
        self.inner.context().topic_ids.watch(topic)
    }

    fn feed(&self, partition: &Partition) -> Result<Feed, ConsumerError> {
        let queue = self
            .inner
            .split_partition_queue(&partition.topic, partition.number);
        let queue = queue.ok_or_else(|| ConsumerError::NoQueue(partition.clone()))?;
        // Each feed has its own copy of the topic name. Its records share that copy, so threads of
        // different partitions do not contend for one reference count.
        let partition = Partition {
            topic: Arc::from(&*partition.topic),
            number: partition.number,
        };
        let watch = self.topic_watch(&partition.topic);
        Ok(Feed::new(
            partition,
            queue,
            self.inner.context().changes.clone(),
            watch,
        ))
    }
}

/// Returns `true` if rebalances leave the partitions assigned that a member keeps.
pub(in crate::kafka) fn is_cooperative(consumer: &BaseConsumer<MemberContext>) -> bool {
    matches!(
        consumer.rebalance_protocol(),
        RebalanceProtocol::Cooperative
    )
}
