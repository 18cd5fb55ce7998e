//! What a subscriber has done so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a subscriber has done so far; see [`Subscriber::statistics`](super::Subscriber::statistics). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    counts: [AtomicU64; Count::ALL],
    paused: AtomicBool,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    Handled,
    Duplicates,
    UnknownTypes,
    Skipped,
    FailedAttempts,
    Detoured,
    Retried,
    DeadLettered,
    Discarded,
}

impl Count {
    const ALL: usize = Count::Discarded as usize + 1;
}

impl Statistics {
    /// Events that were handled.
    pub fn handled(&self) -> u64 {
        self.get(Count::Handled)
    }

    /// Events that the inbox knew already.
    pub fn duplicates(&self) -> u64 {
        self.get(Count::Duplicates)
    }

    /// Events that nobody handles.
    pub fn unknown_types(&self) -> u64 {
        self.get(Count::UnknownTypes)
    }

    /// Events that a handler skipped.
    pub fn skipped(&self) -> u64 {
        self.get(Count::Skipped)
    }

    /// Attempts that failed and were counted against the event.
    pub fn failed_attempts(&self) -> u64 {
        self.get(Count::FailedAttempts)
    }

    /// Events that were set aside to wait, because they or an earlier one of their aggregate failed too often.
    pub fn detoured(&self) -> u64 {
        self.get(Count::Detoured)
    }

    /// Events that were sent to a retry topic.
    pub fn retried(&self) -> u64 {
        self.get(Count::Retried)
    }

    /// Events that were sent to the dead letter topic.
    pub fn dead_lettered(&self) -> u64 {
        self.get(Count::DeadLettered)
    }

    /// Events that were given up and thrown away, by choice.
    pub fn discarded(&self) -> u64 {
        self.get(Count::Discarded)
    }

    /// True while the subscriber starts nothing: the database is down, or the kill switch has tripped.
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, count: Count, n: usize) {
        self.0.counts[count as usize].fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.0.paused.store(paused, Ordering::Relaxed);
    }

    fn get(&self, count: Count) -> u64 {
        self.0.counts[count as usize].load(Ordering::Relaxed)
    }
}
