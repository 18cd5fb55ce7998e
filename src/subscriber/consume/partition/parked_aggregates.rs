//! Parked aggregates of a partition: loaded at its start, and put on their lanes when they are due.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::PartitionTask;
use crate::{
    kafka::Partition,
    postgres::errors::with_causes,
    subscriber::{consume::work_item::LaneEntry, startup::database_check::silent},
};

/// The partitions with parked events about which an operator has decided.
pub(super) type Marked = watch::Receiver<Arc<HashSet<Partition>>>;

/// Time limit of reading the decisions of operators. The partition reads no record meanwhile.
const READ_WITHIN: Duration = Duration::from_secs(5);

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
                .push(self.parked_lane(&key), LaneEntry::Parked(key, None));
        }
    }

    /// Puts the parked aggregates about which an operator has decided on their lanes.
    pub(super) async fn heed_decisions(&mut self) {
        let Some(marked) = self.marked.as_mut() else {
            return;
        };
        let is_marked = matches!(marked.has_changed(), Ok(true))
            && marked.borrow_and_update().contains(&self.feed.partition);
        let Some(parked_events) = self.context.parked_events.clone().filter(|_| is_marked) else {
            return;
        };
        let read = timeout(READ_WITHIN, parked_events.marked_keys(&self.feed.partition));
        let read = tokio::select! {
            () = self.context.drain.cancelled() => return,
            read = read => read.unwrap_or_else(|_| Err(silent())),
        };
        let keys = match read {
            Ok(keys) => keys,
            // The marks are read again after a second.
            Err(error) => {
                self.context.runner.close_sessions_after(&error);
                tracing::warn!(
                    subscriber = self.context.runner.name,
                    topic = &*self.feed.partition.topic,
                    error = with_causes(&error),
                    "decisions of operators about parked events cannot be read yet"
                );
                return;
            }
        };
        for key in keys {
            let key = Box::<[u8]>::from(key);
            // An aggregate that is on its lane already is not due at another time.
            let due = match self.parked_aggregates.insert(key.clone(), None) {
                Some(None) => continue,
                Some(due) => due,
                None => None,
            };
            self.lanes
                .push(self.parked_lane(&key), LaneEntry::Parked(key, due));
        }
    }

    /// Returns `true` if the aggregate of this key is parked.
    pub(super) fn is_parked(&self, key: Option<&[u8]>) -> bool {
        is_parked(&self.parked_aggregates, key)
    }
}

/// Waits until an operator has decided about parked events of the subscriber.
pub(super) async fn next_decision(marked: Option<&mut Marked>) {
    if let Some(marked) = marked
        && marked.changed().await.is_ok()
    {
        return marked.mark_changed();
    }
    std::future::pending().await
}

/// Returns `true` if the aggregate of this key is parked.
pub(super) fn is_parked(
    parked_aggregates: &HashMap<Box<[u8]>, Option<Instant>>,
    key: Option<&[u8]>,
) -> bool {
    !parked_aggregates.is_empty() && key.is_some_and(|key| parked_aggregates.contains_key(key))
}
