//! Statistics of a saga: counts of this process, and totals from the database.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use tokio::time::Instant;

use super::progress::{Happened, SagaStatus};
use crate::subscriber::Times;

/// Statistics of a saga: counts of this process, and totals from the database. Returned by
/// [`Saga::statistics`](super::Saga::statistics). Cheap to clone.
///
/// A transition is counted when it commits, so a transition that was rolled back and repeated
/// counts once.
#[derive(Clone, Debug, Default)]
pub struct SagaStatistics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    name: String,
    begun: AtomicU64,
    completed: AtomicU64,
    compensated: AtomicU64,
    failed: AtomicU64,
    /// Per step: forward, and compensation.
    steps: OnceLock<HashMap<String, [StepCounters; 2]>>,
    standing: Mutex<SagaStanding>,
    /// Start of the current wait of this process's timers for replies.
    timers_wait: Mutex<Option<Instant>>,
}

/// Counters of a step in one direction.
#[derive(Debug, Default)]
pub(super) struct StepCounters {
    /// Buckets from 10 ms to 22 min: from a service that replies at once to one that was down.
    pub(super) times: Times<10_000>,
    pub(super) retries: AtomicU64,
    pub(super) timeouts: AtomicU64,
}

/// Open and failed sagas of one name in the database, independent of the process that runs them.
/// Completed and compensated sagas are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SagaStanding {
    /// Sagas that wait for a lock, or have just been started.
    pub waiting: u64,
    /// Sagas whose steps are being executed.
    pub running: u64,
    /// Sagas that are being compensated.
    pub compensating: u64,
    /// Sagas that an operator must resolve.
    pub failed: u64,
    /// Sagas that the running code cannot continue: it lacks their step, or cannot read their
    /// state.
    pub blocked: u64,
    /// Longest time since the last transition of a saga, in seconds. Failed sagas are excluded.
    #[doc(alias = "stuck")]
    pub idle_seconds_max: f64,
    /// Longest time since a saga became due, in seconds. It grows if no subscriber runs the saga,
    /// or if the subscriber cannot keep up.
    pub overdue_seconds_max: f64,
}

impl SagaStatistics {
    pub(super) fn new(name: &str) -> Self {
        Self(Arc::new(Inner {
            name: name.to_owned(),
            ..Inner::default()
        }))
    }

    /// Returns the saga's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the number of sagas that began, after they got their locks.
    pub fn begun(&self) -> u64 {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// Returns the number of sagas that ended with this outcome. A failed saga that an operator
    /// retried counts again when it ends again.
    pub fn ended(&self, outcome: SagaStatus) -> u64 {
        self.of(outcome)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Returns the totals from the database, at most 15 s old. All totals are zero until a
    /// subscriber runs the saga.
    pub fn standing(&self) -> SagaStanding {
        *self
            .0
            .standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time for which the due timers of this process have waited for replies that may
    /// be in Kafka. Returns zero if they do not wait. See
    /// [`Saga::wait_for_replies`](super::Saga::wait_for_replies).
    pub fn timers_waiting(&self) -> Duration {
        let since = self
            .0
            .timers_wait
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn of(&self, outcome: SagaStatus) -> Option<&AtomicU64> {
        match outcome {
            SagaStatus::Completed => Some(&self.0.completed),
            SagaStatus::Compensated => Some(&self.0.compensated),
            SagaStatus::Failed => Some(&self.0.failed),
            _ => None,
        }
    }

    // === updates by the saga ===

    pub(super) fn know_steps<'n>(&self, names: impl Iterator<Item = &'n str>) {
        let _ = self.0.steps.set(
            names
                .map(|name| (name.to_owned(), Default::default()))
                .collect(),
        );
    }

    /// Sets the start of the timers' wait, or its end.
    pub(super) fn timers_wait(&self, since: Option<Instant>) {
        *self
            .0
            .timers_wait
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = since;
    }

    pub(super) fn stand(&self, standing: SagaStanding) {
        *self
            .0
            .standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = standing;
    }

    pub(super) fn count(&self, happened: &[Happened]) {
        for one in happened {
            match one {
                Happened::Begun => add(&self.0.begun),
                Happened::Done { step, back, took } => {
                    self.of_step(step, *back, |counters| {
                        counters.times.observe(took.to_std().unwrap_or_default())
                    });
                }
                Happened::Retried { step, back } => {
                    self.of_step(step, *back, |counters| add(&counters.retries))
                }
                Happened::TimedOut { step, back } => {
                    self.of_step(step, *back, |counters| add(&counters.timeouts))
                }
                Happened::Ended(outcome) => self.of(*outcome).map_or((), add),
            }
        }
    }

    /// Updates the counters of a step. A step that the code no longer has is not counted.
    fn of_step(&self, name: &str, back: bool, count: impl FnOnce(&StepCounters)) {
        if let Some(both) = self.0.steps.get().and_then(|steps| steps.get(name)) {
            count(&both[usize::from(back)]);
        }
    }

    // === reads by the metrics ===

    /// Returns the counters of each step (forward, compensation), ordered by step name.
    #[cfg(feature = "metrics")]
    pub(super) fn steps(&self) -> Vec<(&str, &[StepCounters; 2])> {
        let mut all: Vec<_> = self
            .0
            .steps
            .get()
            .into_iter()
            .flatten()
            .map(|(name, both)| (name.as_str(), both))
            .collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for SagaStanding {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let count = |name| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
        Ok(Self {
            waiting: count("waiting")?,
            running: count("running")?,
            compensating: count("compensating")?,
            failed: count("failed")?,
            blocked: count("blocked")?,
            idle_seconds_max: row.try_get("idle")?,
            overdue_seconds_max: row.try_get("overdue")?,
        })
    }
}
