//! Lag of a subscriber per topic and partition, from the offsets of its consumer group.

use serde::Serialize;

use super::InspectError;
use crate::kafka::{Settings, backlog};

/// Lag of a subscriber on a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TopicLag {
    pub(crate) topic: String,
    pub(crate) partitions: Vec<PartitionLag>,
}

/// Lag of a subscriber on a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PartitionLag {
    pub(crate) partition: i32,
    /// `None` if the group has not committed an offset.
    pub(crate) committed: Option<i64>,
    pub(crate) end: i64,
    /// Offsets between both. Transaction markers count too.
    pub(crate) left: i64,
}

impl TopicLag {
    /// Returns the sum over the partitions.
    pub(crate) fn left(&self) -> i64 {
        self.partitions.iter().map(|partition| partition.left).sum()
    }
}

/// Returns the lag of a subscriber on each of its topics that exists.
///
/// # Errors
///
/// Returns the cluster's error.
pub(crate) async fn subscriber_lag(
    settings: &Settings,
    subscriber: &str,
    topics: Vec<String>,
) -> Result<Vec<TopicLag>, InspectError> {
    let is_wanted = move |topic: &str| topics.iter().any(|wanted| wanted == topic);
    let mut lags: Vec<TopicLag> = Vec::new();
    let backlog = backlog(settings, subscriber, is_wanted).await;
    for one in backlog.map_err(InspectError::kafka)? {
        let partition = PartitionLag {
            partition: one.partition,
            committed: one.committed,
            end: one.end,
            left: one.left(),
        };
        match lags.last_mut().filter(|lag| lag.topic == one.topic) {
            Some(lag) => lag.partitions.push(partition),
            None => lags.push(TopicLag {
                topic: one.topic,
                partitions: vec![partition],
            }),
        }
    }
    Ok(lags)
}
