//! Parked aggregates of a partition: loaded at its start, and put on their lanes when they are due.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::PartitionTask;
use crate::{postgres::errors::with_causes, subscriber::consume::work_item::LaneEntry};

impl PartitionTask {
    /// Loads the aggregates that are parked already. Returns `false` if the partition is revoked in
    /// the meantime.
    pub(super) async fn recall_parked(&mut self) -> bool {
        let Some(parked_events) = self.context.parked_events.clone() else {
            return true;
        };
        loop {
            let error = match parked_events.keys(&self.feed.partition).await {
                Ok(keys) => {
                    let now = Instant::now();
                    self.parked_aggregates = keys
                        .into_iter()
                        .map(|(key, after)| (key.into(), Some(now + after)))
                        .collect();
                    self.progress
                        .parked
                        .store(self.parked_aggregates.len(), Ordering::Relaxed);
                    return true;
                }
                Err(error) => error,
            };
            self.context.runner.close_sessions_after(&error);
            tracing::warn!(
                subscriber = self.context.runner.name,
                topic = &*self.feed.partition.topic,
                error = with_causes(&error),
                "the parked aggregates of a partition cannot be read yet"
            );
            tokio::select! {
                () = self.context.drain.cancelled() => return false,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Puts the parked aggregates that are due on their lanes.
    pub(super) fn wake_parked(&mut self) {
        if self.parked_aggregates.is_empty() {
            return;
        }
        let now = Instant::now();
        let due = self
            .parked_aggregates
            .iter_mut()
            .filter(|(_, due)| due.is_some_and(|due| due <= now));
        let due: Vec<Box<[u8]>> = due.map(|(key, due)| (*due = None, key.clone()).1).collect();
        for key in due {
            self.lanes
                .push(self.parked_lane(&key), LaneEntry::Parked(key));
        }
    }

    /// Returns `true` if the aggregate of this key is parked.
    pub(super) fn is_parked(&self, key: Option<&[u8]>) -> bool {
        is_parked(&self.parked_aggregates, key)
    }
}

/// Returns `true` if the aggregate of this key is parked.
pub(super) fn is_parked(
    parked_aggregates: &HashMap<Box<[u8]>, Option<Instant>>,
    key: Option<&[u8]>,
) -> bool {
    !parked_aggregates.is_empty() && key.is_some_and(|key| parked_aggregates.contains_key(key))
}
