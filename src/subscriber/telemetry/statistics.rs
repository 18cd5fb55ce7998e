//! Statistics and state of a subscriber.

mod updates;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Semaphore;

pub(crate) use super::counters::{Count, Counters};
use crate::{kafka::Partition, subscriber::ByType};

/// Maximum number of types without a handler that are counted by name, because the producers of a
/// topic can use any number of types.
const UNKNOWN_TYPES_MAX: usize = 100;

/// Maximum number of bytes of an event type in a metric or a log line, for types without a handler.
/// Their publishers choose the length.
const TYPE_BYTES_MAX: usize = 200;

/// Returns a type without a handler as metrics and logs show it.
pub(crate) fn shown_type(event_type: &str) -> &str {
    &event_type[..event_type.floor_char_boundary(TYPE_BYTES_MAX)]
}

/// Statistics and state of a subscriber; see
/// [`Subscriber::statistics`](crate::Subscriber::statistics). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    name: String,
    /// Counters of each type that has a handler.
    by_type: OnceLock<ByType<Counters>>,
    /// Counters of records that are not events, and of types without a handler.
    others: Counters,
    unknown: Mutex<BTreeMap<String, u64>>,
    /// Numbers of events by type that have no handler here but in another member.
    held: Mutex<BTreeMap<String, u64>>,
    state: AtomicU8,
    /// Reason why the subscriber starts or pauses.
    reason: Mutex<String>,
    /// Pause by an operator. It hides every state except `Starting` and `Stopped`.
    operator_pause: Mutex<Option<String>>,
    /// Records that were removed from each topic before they were read.
    removed: Mutex<BTreeMap<String, u64>>,
    handlers: OnceLock<(Arc<Semaphore>, usize)>,
    partitions: Mutex<Vec<PartitionStatistics>>,
    /// Problems that need an operator's attention while the subscriber runs, by the part that
    /// reports them.
    concerns: Mutex<BTreeMap<String, String>>,
}

/// State of a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriberState {
    /// The subscriber has not joined its group yet.
    Starting,
    /// The subscriber handles events.
    Running,
    /// Too many events fail: the [kill switch](crate::subscriber::KillSwitch) has tripped, and one
    /// event at a time is tried.
    PausedByKillSwitch,
    /// A dependency of all events is down, for example the database. No event starts until it is
    /// available again.
    PausedByOutage,
    /// An operator has paused the subscriber with `tidings subscribers pause`. No event starts
    /// until an operator resumes it; a restart does not end the pause.
    PausedByOperator,
    /// The subscriber was shut down, or could not continue.
    Stopped,
}

/// A partition of this member. The values are at most one second old.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStatistics {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
    /// Number of unfinished records, including those that have not been read from Kafka yet. It is
    /// computed from offsets, so offsets without a record (after compaction or transactions) count
    /// until they are read. `None` until Kafka has reported the end of the partition, which takes
    /// some seconds.
    pub lag: Option<u64>,
    /// Number of records that are read and not finished.
    pub unfinished: u64,
    /// Number of aggregates that are parked in the table `subscriber_parked`.
    #[doc(alias = "parked")]
    pub parked_aggregates: u64,
}

impl Statistics {
    pub(crate) fn new(name: &str) -> Self {
        Self(Arc::new(Inner {
            name: name.to_owned(),
            ..Inner::default()
        }))
    }

    /// Returns the subscriber's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the subscriber's state.
    pub fn state(&self) -> SubscriberState {
        let state = SubscriberState::ALL[usize::from(self.0.state.load(Ordering::Relaxed))];
        match state {
            SubscriberState::Starting | SubscriberState::Stopped => state,
            _ if self.operator_pause_locked().is_some() => SubscriberState::PausedByOperator,
            _ => state,
        }
    }

    /// Returns the reason why the subscriber starts or pauses, for operators: the outage, the
    /// condition for which it waits, or the time, the operator and the reason of a pause by an
    /// operator. Returns `None` while it runs and after it has stopped.
    pub fn reason(&self) -> Option<String> {
        match self.state() {
            SubscriberState::Running | SubscriberState::Stopped => None,
            SubscriberState::PausedByOperator => self.operator_pause_locked().clone(),
            _ => Some(self.reason_locked().clone()).filter(|reason| !reason.is_empty()),
        }
    }

    /// Returns the number of records that retention or an operator removed from the topics before
    /// this member read them. They are not handled. The number is computed from offsets, so offsets
    /// without a record (after compaction or transactions) are included.
    pub fn removed_unread(&self) -> u64 {
        self.removed_by_topic().values().sum()
    }

    /// Returns the value of [`removed_unread`](Self::removed_unread) for each topic.
    pub(crate) fn removed_by_topic(&self) -> BTreeMap<String, u64> {
        self.0
            .removed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns `true` while the subscriber starts no events, because the database is down, the kill
    /// switch has tripped, or an operator has paused it.
    pub fn is_paused(&self) -> bool {
        matches!(
            self.state(),
            SubscriberState::PausedByKillSwitch
                | SubscriberState::PausedByOutage
                | SubscriberState::PausedByOperator
        )
    }

    /// Returns the problems that need an operator's attention although the subscriber runs, as one
    /// sentence each: sagas that its code cannot continue, and timers of sagas that wait for
    /// replies.
    pub fn concerns(&self) -> Vec<String> {
        self.0
            .concerns
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Returns the number of handlers that are running now.
    #[doc(alias = "in flight")]
    pub fn running(&self) -> usize {
        self.0.handlers.get().map_or(0, |(permits, all)| {
            all.saturating_sub(permits.available_permits())
        })
    }

    /// Returns the partitions of this member.
    pub fn partitions(&self) -> Vec<PartitionStatistics> {
        self.partitions_locked().clone()
    }

    /// Returns the number of events that were handled.
    pub fn handled(&self) -> u64 {
        self.total(Count::Handled)
    }

    /// Returns the number of events that the inbox had recorded already.
    pub fn duplicates(&self) -> u64 {
        self.total(Count::Duplicates)
    }

    /// Returns the number of events that have no handler.
    pub fn unknown_types(&self) -> u64 {
        self.total(Count::UnknownTypes)
    }

    /// Returns the number of events that a handler skipped.
    pub fn skipped(&self) -> u64 {
        self.total(Count::Skipped)
    }

    /// Returns the number of attempts that failed and were counted against the event.
    pub fn failed_attempts(&self) -> u64 {
        self.total(Count::FailedAttempts)
    }

    /// Returns the number of events that were parked, for example because they or an earlier event
    /// of their aggregate failed too often.
    pub fn parked(&self) -> u64 {
        self.total(Count::Parked)
    }

    /// Returns the number of events that were sent to a retry topic.
    pub fn retried(&self) -> u64 {
        self.total(Count::Retried)
    }

    /// Returns the number of events that were sent to a dead letter topic.
    pub fn dead_lettered(&self) -> u64 {
        self.total(Count::DeadLettered)
    }

    /// Returns the number of events that were discarded because dead letters are disabled, and of
    /// parked events that an operator discarded.
    pub fn discarded(&self) -> u64 {
        self.total(Count::Discarded)
    }

    /// Returns the number of events that were parked because only another version of the code, in
    /// another instance of the group, handles their type.
    pub fn waiting_for_another_version(&self) -> u64 {
        self.0
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .sum()
    }

    /// Returns the number of events that share their id with an earlier, handled event but have
    /// another key, type or data. They become dead letters and are counted there too.
    pub fn conflicting(&self) -> u64 {
        self.total(Count::Conflicting)
    }

    /// Returns the number of dead letters that the broker rejected. The events are kept: parked in
    /// the inbox's database, or waiting at the head of their aggregates.
    pub fn refused_letters(&self) -> u64 {
        self.total(Count::RefusedLetters)
    }

    // === queries by the metrics ===

    /// Returns the counters of each type, ordered by name. Those of the records that are not
    /// events, and of types without a handler, come last with an empty name.
    #[cfg(feature = "metrics")]
    pub(crate) fn by_type(&self) -> Vec<(&str, &Counters)> {
        let mut all: Vec<(&str, &Counters)> = self
            .0
            .by_type
            .get()
            .into_iter()
            .flatten()
            .map(|(name, counters)| (&**name, counters))
            .collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all.push(("", &self.0.others));
        all
    }

    /// Returns the number of events for each type that has no handler.
    #[cfg(feature = "metrics")]
    pub(crate) fn by_unknown_type(&self) -> BTreeMap<String, u64> {
        self.0
            .unknown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns the number of events that were parked for another member, for each type.
    #[cfg(feature = "metrics")]
    pub(crate) fn by_held_type(&self) -> BTreeMap<String, u64> {
        self.0
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn total(&self, count: Count) -> u64 {
        let known = self.0.by_type.get().into_iter().flat_map(ByType::values);
        known
            .chain([&self.0.others])
            .map(|counters| counters.get(count))
            .sum()
    }

    fn reason_locked(&self) -> MutexGuard<'_, String> {
        self.0.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operator_pause_locked(&self) -> MutexGuard<'_, Option<String>> {
        self.0
            .operator_pause
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn partitions_locked(&self) -> MutexGuard<'_, Vec<PartitionStatistics>> {
        self.0
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl SubscriberState {
    /// All states, indexed by their number.
    pub(crate) const ALL: [Self; 6] = [
        Self::Starting,
        Self::Running,
        Self::PausedByKillSwitch,
        Self::PausedByOutage,
        Self::PausedByOperator,
        Self::Stopped,
    ];
}

impl PartitionStatistics {
    pub(crate) fn new(
        partition: &Partition,
        lag: Option<u64>,
        unfinished: u64,
        parked_aggregates: u64,
    ) -> Self {
        Self {
            topic: partition.topic.clone(),
            partition: partition.number,
            lag,
            unfinished,
            parked_aggregates,
        }
    }
}

// === impl Display ===

impl fmt::Display for SubscriberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::PausedByKillSwitch => "paused by kill switch",
            Self::PausedByOutage => "paused by outage",
            Self::PausedByOperator => "paused by operator",
            Self::Stopped => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_found_by_its_number() {
        let statistics = Statistics::new("stock");
        assert_eq!(statistics.state(), SubscriberState::Starting);
        for state in SubscriberState::ALL {
            statistics.set_state(state);
            assert_eq!(statistics.state(), state);
        }
    }

    #[test]
    fn types_that_nobody_handles_are_counted_by_name_up_to_a_bound() {
        let statistics = Statistics::new("stock");
        (0..UNKNOWN_TYPES_MAX + 50).for_each(|n| statistics.unknown(&format!("T{n}")));
        statistics.unknown("T3");
        assert_eq!(statistics.unknown_types(), UNKNOWN_TYPES_MAX as u64 + 51);
        let unknown = statistics.0.unknown.lock().expect("no thread panicked");
        assert_eq!(
            (unknown["T3"], unknown["(others)"], unknown.len()),
            (2, 50, UNKNOWN_TYPES_MAX + 1)
        );
    }

    #[test]
    fn a_long_type_without_a_handler_is_counted_by_its_first_bytes() {
        let statistics = Statistics::new("stock");
        for last in ["a", "b"] {
            statistics.unknown(&format!("{}{last}", "é".repeat(100_000)));
        }
        let unknown = statistics.0.unknown.lock().expect("no panic");
        assert_eq!(
            unknown.iter().collect::<Vec<_>>(),
            [(&"é".repeat(TYPE_BYTES_MAX / 2), &2)]
        );
    }
}
