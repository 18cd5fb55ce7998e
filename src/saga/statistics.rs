//! What a saga's runs have come to in this process, and how they stand in the database.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use super::progress::{Happened, SagaStatus};
use crate::subscriber::Times;

/// What a saga's runs have come to in this process, and how they stand in the database; from [`Saga::statistics`](super::Saga::statistics). Cheap to clone.
///
/// Counted once a transition is committed: what was rolled back, and done again, counts once.
#[derive(Clone, Debug, Default)]
pub struct SagaStatistics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    name: String,
    begun: AtomicU64,
    completed: AtomicU64,
    compensated: AtomicU64,
    failed: AtomicU64,
    /// Of each step: done, and undone.
    steps: OnceLock<HashMap<String, [StepCounters; 2]>>,
    standing: Mutex<SagaStanding>,
}

/// What was counted of a step, in one direction.
#[derive(Debug, Default)]
pub(super) struct StepCounters {
    /// From 10 ms to 22 min: a service that answers at once, and one that was away.
    pub(super) times: Times<10_000>,
    pub(super) retries: AtomicU64,
    pub(super) timeouts: AtomicU64,
}

/// How the sagas of one name stand in the database, whoever runs them. Those that ended well are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SagaStanding {
    /// Those that wait for what they lock, or have just been started.
    pub waiting: u64,
    /// Those under way.
    pub running: u64,
    /// Those that are being undone.
    pub compensating: u64,
    /// Those that a person has to look at.
    pub failed: u64,
    /// Those that the code that runs cannot continue: it lacks their step, or cannot read their state.
    pub blocked: u64,
    /// For how long the one that has stood still for the longest has not gone on, but for those that have failed.
    #[doc(alias = "stuck")]
    pub idle_seconds_max: f64,
    /// For how long the one that has been due for the longest is due: nobody runs it, or whoever does cannot keep up.
    pub overdue_seconds_max: f64,
}

impl SagaStatistics {
    pub(super) fn new(name: &str) -> Self {
        Self(Arc::new(Inner {
            name: name.to_owned(),
            ..Inner::default()
        }))
    }

    /// The saga's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Sagas that began: had what they lock.
    pub fn begun(&self) -> u64 {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// How many ended in this way. One that failed, was retried by a person and ended again counts again.
    pub fn ended(&self, outcome: SagaStatus) -> u64 {
        self.of(outcome)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How they stood at most a quarter of a minute ago. All zero before a subscriber runs the saga.
    pub fn standing(&self) -> SagaStanding {
        *self
            .0
            .standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, outcome: SagaStatus) -> Option<&AtomicU64> {
        match outcome {
            SagaStatus::Completed => Some(&self.0.completed),
            SagaStatus::Compensated => Some(&self.0.compensated),
            SagaStatus::Failed => Some(&self.0.failed),
            _ => None,
        }
    }

    // === what the saga tells ===

    pub(super) fn know_steps<'n>(&self, names: impl Iterator<Item = &'n str>) {
        let _ = self.0.steps.set(
            names
                .map(|name| (name.to_owned(), Default::default()))
                .collect(),
        );
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

    /// Of a step that the code does not have any more nothing is counted.
    fn of_step(&self, name: &str, back: bool, count: impl FnOnce(&StepCounters)) {
        if let Some(both) = self.0.steps.get().and_then(|steps| steps.get(name)) {
            count(&both[usize::from(back)]);
        }
    }

    // === what metrics ask ===

    /// Each step with what was counted of it, forth and back, in the order of their names.
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
