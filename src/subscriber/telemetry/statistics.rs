//! What a subscriber has done so far, and how it stands.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Semaphore;

pub(crate) use super::counters::{Count, Counters};
use crate::{kafka::Partition, subscriber::ByType};

/// How many types without a handler are counted by name: who writes into a topic decides how many there are.
const UNKNOWN_TYPES_MAX: usize = 100;

/// What a subscriber has done so far and how it stands; see [`Subscriber::statistics`](super::Subscriber::statistics). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    name: String,
    /// Of each type that has a handler.
    by_type: OnceLock<ByType<Counters>>,
    /// Of what is no event, or of a type without a handler.
    others: Counters,
    unknown: Mutex<BTreeMap<String, u64>>,
    /// Of types without a handler that another member handles.
    held: Mutex<BTreeMap<String, u64>>,
    state: AtomicU8,
    /// Why it does not run.
    reason: Mutex<String>,
    /// Records that were removed from each topic before they were read.
    removed: Mutex<BTreeMap<String, u64>>,
    handlers: OnceLock<(Arc<Semaphore>, usize)>,
    partitions: Mutex<Vec<PartitionStatistics>>,
    /// What an operator should look at while it runs, by the part that reports it.
    concerns: Mutex<BTreeMap<String, String>>,
}

/// How a subscriber stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriberState {
    /// It does not run yet, or has not joined its group yet.
    Starting,
    /// It handles what comes.
    Running,
    /// Too many events fail: the [kill switch](super::KillSwitch) has tripped, and one at a time is tried.
    PausedByKillSwitch,
    /// What every event needs is down, the database say: nothing starts until it is back.
    PausedByOutage,
    /// It was shut down, or could not go on.
    Stopped,
}

/// One partition that this member has, as it was within the last second.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStatistics {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
    /// How many records are not finished, those that Kafka holds included: as Kafka's offsets say, so that gaps of compaction and transactions count while they are ahead.
    /// Unknown until Kafka has told its end, which takes some seconds.
    pub lag: Option<u64>,
    /// How many records are read and not finished.
    pub unfinished: u64,
    /// How many aggregates wait in the table `detour`.
    #[doc(alias = "parked")]
    pub detoured_aggregates: u64,
}

impl Statistics {
    pub(crate) fn new(name: &str) -> Self {
        Self(Arc::new(Inner {
            name: name.to_owned(),
            ..Inner::default()
        }))
    }

    /// The subscriber's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How it stands.
    pub fn state(&self) -> SubscriberState {
        SubscriberState::ALL[usize::from(self.0.state.load(Ordering::Relaxed))]
    }

    /// Why it starts or pauses, for operators: the outage, or what it waits for. `None` while it runs, and once it has stopped.
    pub fn reason(&self) -> Option<String> {
        if matches!(
            self.state(),
            SubscriberState::Running | SubscriberState::Stopped
        ) {
            return None;
        }
        Some(self.reason_locked().clone()).filter(|reason| !reason.is_empty())
    }

    /// Records that retention, or an operator, removed from the topics before this member read them: offsets, so that gaps of
    /// compaction and transactions count. They are not handled.
    pub fn removed_unread(&self) -> u64 {
        self.removed_by_topic().values().sum()
    }

    /// As [`removed_unread`](Self::removed_unread), by topic.
    pub(crate) fn removed_by_topic(&self) -> BTreeMap<String, u64> {
        self.0
            .removed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// True while the subscriber starts nothing: the database is down, or the kill switch has tripped.
    pub fn is_paused(&self) -> bool {
        matches!(
            self.state(),
            SubscriberState::PausedByKillSwitch | SubscriberState::PausedByOutage
        )
    }

    /// What an operator should look at although the subscriber runs, as one sentence each: sagas that its code cannot continue.
    pub fn concerns(&self) -> Vec<String> {
        self.0
            .concerns
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// How many handlers run at this moment.
    #[doc(alias = "in flight")]
    pub fn running(&self) -> usize {
        self.0.handlers.get().map_or(0, |(permits, all)| {
            all.saturating_sub(permits.available_permits())
        })
    }

    /// The partitions that this member has.
    pub fn partitions(&self) -> Vec<PartitionStatistics> {
        self.partitions_locked().clone()
    }

    /// Events that were handled.
    pub fn handled(&self) -> u64 {
        self.total(Count::Handled)
    }

    /// Events that the inbox knew already.
    pub fn duplicates(&self) -> u64 {
        self.total(Count::Duplicates)
    }

    /// Events that nobody handles.
    pub fn unknown_types(&self) -> u64 {
        self.total(Count::UnknownTypes)
    }

    /// Events that a handler skipped.
    pub fn skipped(&self) -> u64 {
        self.total(Count::Skipped)
    }

    /// Attempts that failed and were counted against the event.
    pub fn failed_attempts(&self) -> u64 {
        self.total(Count::FailedAttempts)
    }

    /// Events that were set aside to wait, because they or an earlier one of their aggregate failed too often.
    pub fn detoured(&self) -> u64 {
        self.total(Count::Detoured)
    }

    /// Events that were sent to a retry topic.
    pub fn retried(&self) -> u64 {
        self.total(Count::Retried)
    }

    /// Events that were sent to the dead letter topic.
    pub fn dead_lettered(&self) -> u64 {
        self.total(Count::DeadLettered)
    }

    /// Events that were given up and thrown away, by choice.
    pub fn discarded(&self) -> u64 {
        self.total(Count::Discarded)
    }

    /// Events of types that this version does not handle and another instance of the group does: they were set aside for it.
    pub fn waiting_for_another_version(&self) -> u64 {
        self.0
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .sum()
    }

    /// Events that share their id with another one that was handled before, with another key, type or data. They are dead letters, and counted there too.
    pub fn conflicting(&self) -> u64 {
        self.total(Count::Conflicting)
    }

    /// Refusals of dead letters by the broker. The events stay: parked in the inbox, or in front of their aggregates.
    pub fn refused_letters(&self) -> u64 {
        self.total(Count::RefusedLetters)
    }

    // === what the subscriber tells ===

    /// A part of the subscriber has a concern, or has none any more.
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

    /// These types have handlers.
    pub(crate) fn know_types(&self, types: impl Iterator<Item = Cow<'static, str>>) {
        let _ = self.0.by_type.set(
            types
                .map(|event_type| (event_type, Counters::default()))
                .collect(),
        );
    }

    /// Handlers hold these permits, of which there are so many.
    pub(crate) fn know_handlers(&self, permits: &Arc<Semaphore>, all: usize) {
        let _ = self.0.handlers.set((permits.clone(), all));
    }

    /// What is counted of a type; an empty one stands for what is no event.
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

    /// An event came that nobody handles.
    pub(crate) fn unknown(&self, event_type: &str) {
        self.add(Count::UnknownTypes, event_type, 1);
        count_by_name(&self.0.unknown, event_type);
    }

    /// An event was set aside for another member.
    pub(crate) fn held(&self, event_type: &str) {
        count_by_name(&self.0.held, event_type);
    }

    /// It waits for this before it runs, or runs again.
    pub(crate) fn starting(&self, reason: String) {
        *self.reason_locked() = reason;
        self.set_state(SubscriberState::Starting);
    }

    /// It waits for this, if it has not joined its group yet.
    pub(crate) fn starts_without(&self, reason: &str) {
        if self.state() == SubscriberState::Starting {
            *self.reason_locked() = reason.to_owned();
        }
    }

    /// It has joined its group.
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

    /// It pauses for this reason.
    pub(crate) fn paused(&self, state: SubscriberState, reason: &str) {
        *self.reason_locked() = reason.to_owned();
        self.set_state(state);
    }

    /// So many records of a topic were removed before they were read.
    pub(crate) fn add_removed(&self, topic: &str, records: u64) {
        *self
            .0
            .removed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(topic.to_owned())
            .or_default() += records;
    }

    fn reason_locked(&self) -> MutexGuard<'_, String> {
        self.0.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_state(&self, state: SubscriberState) {
        // What is aborted at the end may end later.
        let goes_on = |now| (now != SubscriberState::Stopped as u8).then_some(state as u8);
        let _ = self
            .0
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, goes_on);
    }

    pub(crate) fn set_partitions(&self, partitions: Vec<PartitionStatistics>) {
        *self.partitions_locked() = partitions;
    }

    // === what metrics ask ===

    /// Each type with what was counted of it, in the order of their names; what is no event last, without a name.
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

    /// Each type that nobody handles, and how many came of it.
    #[cfg(feature = "metrics")]
    pub(crate) fn by_unknown_type(&self) -> BTreeMap<String, u64> {
        self.0
            .unknown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Each type without a handler whose events were set aside for another member, and how many.
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

    fn partitions_locked(&self) -> MutexGuard<'_, Vec<PartitionStatistics>> {
        self.0
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts an event of a type without a handler; beyond a bound, all types together.
fn count_by_name(counts: &Mutex<BTreeMap<String, u64>>, event_type: &str) {
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

impl SubscriberState {
    /// By their numbers.
    pub(crate) const ALL: [Self; 5] = [
        Self::Starting,
        Self::Running,
        Self::PausedByKillSwitch,
        Self::PausedByOutage,
        Self::Stopped,
    ];
}

impl PartitionStatistics {
    pub(crate) fn new(
        partition: &Partition,
        lag: Option<u64>,
        unfinished: u64,
        detoured_aggregates: u64,
    ) -> Self {
        Self {
            topic: partition.topic.clone(),
            partition: partition.number,
            lag,
            unfinished,
            detoured_aggregates,
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
        let unknown = statistics.0.unknown.lock().expect("nobody panicked");
        assert_eq!(
            (unknown["T3"], unknown["(others)"], unknown.len()),
            (2, 50, UNKNOWN_TYPES_MAX + 1)
        );
    }
}
