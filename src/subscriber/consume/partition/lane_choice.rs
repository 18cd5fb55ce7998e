//! Lane of a record, according to the order that the subscriber keeps.

use std::hash::BuildHasher;

use super::PartitionTask;
use crate::{kafka::Incoming, subscriber::options::Order};

impl PartitionTask {
    pub(super) fn lane_of(&self, record: &Incoming) -> u64 {
        match (self.context.runner.options.order, record.key()) {
            (Order::Partition, _) => 0,
            (Order::Aggregate, Some(key)) => self.hasher.hash_one(key),
            // Events of a parked aggregate are parked behind it, one after the other.
            (_, Some(key)) if self.is_parked(Some(key)) => self.hasher.hash_one(key),
            // An offset is unique within the partition. It is hashed because the map uses the lane
            // as its hash.
            (Order::Aggregate, None) | (Order::None, _) => self.hasher.hash_one(record.offset),
        }
    }

    /// Returns the lane of a parked aggregate, which is also the lane of its events.
    pub(super) fn parked_lane(&self, key: &[u8]) -> u64 {
        match self.context.runner.options.order {
            Order::Partition => 0,
            Order::Aggregate | Order::None => self.hasher.hash_one(key),
        }
    }
}
