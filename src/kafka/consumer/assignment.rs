//! Reading of assigned partitions, each through its own feed.

use std::sync::Arc;

use rdkafka::{
    Offset,
    consumer::{BaseConsumer, Consumer as _, RebalanceProtocol},
};

use super::{Known, Member, Partition, list};
use crate::kafka::{
    feed::Feed,
    gap::{Restarted, restarted},
    member_context::MemberContext,
};

impl Member {
    /// Starts reading newly assigned partitions, each through its own feed. Reading starts at the
    /// committed offset, or at the beginning if the group has never committed one. If neither is
    /// known, the client determines the offset.
    ///
    /// # Errors
    ///
    /// Returns an error if librdkafka refuses the assignment.
    pub(crate) fn take(
        &self,
        partitions: &[Partition],
        known: &Known,
    ) -> Result<Vec<Feed>, String> {
        let offset_of = |partition: &Partition| match known
            .committed
            .iter()
            .find(|committed| committed.partition == *partition)
        {
            Some(committed) => Offset::Offset(committed.offset),
            None if known.never.contains(partition) => Offset::Beginning,
            None => Offset::Invalid,
        };
        let feeds = partitions
            .iter()
            .map(|partition| self.feed(partition))
            .collect::<Result<Vec<_>, _>>()?;
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
        done.map(|()| feeds).map_err(|error| error.to_string())
    }

    /// Stops reading revoked partitions. Their feeds should be dropped before.
    ///
    /// # Errors
    ///
    /// Returns an error if librdkafka refuses.
    pub(crate) fn give_up(&self, partitions: &[Partition]) -> Result<(), String> {
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
        done.map_err(|error| error.to_string())
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
    ) -> Result<Restarted, String> {
        let (low, high) = self.watermarks(partition)?;
        let restarted = restarted(next, low, high);
        let one = |offset| list(std::iter::once((partition, offset)));
        // The client has stopped fetching the partition and refuses a seek.
        self.inner
            .incremental_unassign(&one(Offset::Invalid))
            .map_err(|error| error.to_string())?;
        self.inner
            .incremental_assign(&one(Offset::Offset(restarted.from)))
            .map_err(|error| error.to_string())?;
        Ok(restarted)
    }

    fn feed(&self, partition: &Partition) -> Result<Feed, String> {
        let queue = self
            .inner
            .split_partition_queue(&partition.topic, partition.number);
        let queue = queue.ok_or_else(|| {
            format!(
                "partition {} of topic {} has no queue",
                partition.number, partition.topic
            )
        })?;
        // Each feed has its own copy of the topic name. Its records share that copy, so threads of
        // different partitions do not contend for one reference count.
        let partition = Partition {
            topic: Arc::from(&*partition.topic),
            number: partition.number,
        };
        Ok(Feed::new(
            partition,
            queue,
            self.inner.context().changes.clone(),
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
