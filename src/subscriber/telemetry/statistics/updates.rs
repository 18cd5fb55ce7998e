//! Updates of the statistics by the running subscriber.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::{PartitionStatistics, Statistics, SubscriberState, UNKNOWN_TYPES_MAX, shown_type};
use crate::subscriber::telemetry::counters::{Count, Counters};

impl Statistics {
    /// Sets or clears the problem that a part of the subscriber reports.
    pub(crate) fn set_concern(&self, part: &str, concern: Option<String>) {
        let mut concerns = self
            .0
            .concerns
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match concern {
            Some(concern) => drop(concerns.insert(part.to_owned(), concern)),
            None => drop(concerns.remove(part)),
        }
    }

    /// Sets the types that have handlers.
    pub(crate) fn know_types(&self, types: impl Iterator<Item = Cow<'static, str>>) {
        let _ = self.0.by_type.set(
            types
                .map(|event_type| (event_type, Counters::default()))
                .collect(),
        );
    }

    /// Sets the semaphore that limits the handlers, and its number of permits.
    pub(crate) fn know_handlers(&self, permits: &Arc<Semaphore>, all: usize) {
        let _ = self.0.handlers.set((permits.clone(), all));
    }

    /// Returns the counters of a type. Types without a handler, and records that are not events (an
    /// empty type), share the same counters.
    pub(crate) fn of(&self, event_type: &str) -> &Counters {
        self.0
            .by_type
            .get()
            .and_then(|by_type| by_type.get(event_type))
            .unwrap_or(&self.0.others)
    }

    pub(crate) fn add(&self, count: Count, event_type: &str, n: usize) {
        self.of(event_type).add(count, n);
    }

    /// Counts an event that has no handler.
    pub(crate) fn unknown(&self, event_type: &str) {
        self.add(Count::UnknownTypes, event_type, 1);
        count_by_name(&self.0.unknown, event_type);
    }

    /// Counts an event that was parked for another member.
    pub(crate) fn held(&self, event_type: &str) {
        count_by_name(&self.0.held, event_type);
    }

    /// Sets the state to starting, with the condition for which the subscriber waits.
    pub(crate) fn starting(&self, reason: String) {
        *self.reason_locked() = reason;
        self.set_state(SubscriberState::Starting);
    }

    /// Sets the condition for which the subscriber waits, if it has not joined its group yet.
    pub(crate) fn starts_without(&self, reason: &str) {
        if self.state() == SubscriberState::Starting {
            *self.reason_locked() = reason.to_owned();
        }
    }

    /// Sets the state to running, if the subscriber was starting.
    pub(crate) fn joined(&self) {
        let (starting, running) = (
            SubscriberState::Starting as u8,
            SubscriberState::Running as u8,
        );
        let _ =
            self.0
                .state
                .compare_exchange(starting, running, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Sets the state to paused, with the reason.
    pub(crate) fn paused(&self, state: SubscriberState, reason: &str) {
        *self.reason_locked() = reason.to_owned();
        self.set_state(state);
    }

    /// Sets or clears the pause by an operator.
    pub(crate) fn set_operator_pause(&self, pause: Option<String>) {
        *self.operator_pause_locked() = pause;
    }

    /// Counts records of a topic that were removed before they were read.
    pub(crate) fn add_removed(&self, topic: &str, records: u64) {
        *self
            .0
            .removed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(topic.to_owned())
            .or_default() += records;
    }

    pub(crate) fn set_state(&self, state: SubscriberState) {
        // A task that was aborted at the end may still set a state after the subscriber has
        // stopped.
        let goes_on = |now| (now != SubscriberState::Stopped as u8).then_some(state as u8);
        let _ = self
            .0
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, goes_on);
    }

    pub(crate) fn set_partitions(&self, partitions: Vec<PartitionStatistics>) {
        *self.partitions_locked() = partitions;
    }
}

/// Counts an event by the name of its type. Beyond the maximum number of names, all other types
/// share one counter.
fn count_by_name(counts: &Mutex<BTreeMap<String, u64>>, event_type: &str) {
    let event_type = shown_type(event_type);
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(count) = counts.get_mut(event_type) {
        *count += 1;
    } else {
        let name = if counts.len() < UNKNOWN_TYPES_MAX {
            event_type
        } else {
            "(others)"
        };
        *counts.entry(name.to_owned()).or_default() += 1;
    }
}
