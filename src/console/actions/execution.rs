//! Execution of operations by `operator` and `saga`, and the count of what they affect.

use uuid::Uuid;

use super::operation::Operation;
use crate::console::error::ConsoleError;
use crate::console::view::View;
use crate::inspect::scheduled::scheduled_event;
use crate::inspect::{Database, InspectError};
use crate::operator::parked::mark;
use crate::operator::{
    LetterOutcome, LetterProgress, cancel_scheduled, count_letters, decide_letters,
};
use crate::saga::{self, Sagas};

/// Letters whose reason to be kept is shown and logged.
const KEPT_SHOWN_MAX: usize = 20;

/// Events that an operation affects.
#[derive(Clone, Debug, Default)]
pub(in crate::console) struct Affected {
    pub(in crate::console) events: i64,
    /// Number of letters that are kept.
    pub(in crate::console) kept: i64,
    /// The first letters that are kept, each with the reason.
    pub(in crate::console) kept_first: Vec<(String, String)>,
    /// Selected letters that were not reached.
    pub(in crate::console) left: i64,
}

impl Operation {
    /// Counts the events that the operation affects. Changes nothing.
    pub(super) async fn count(&self, view: &View) -> Result<Affected, ConsoleError> {
        match self {
            Self::Parked {
                relay,
                what,
                decision,
            } => {
                let read = async |database: &Database| {
                    let count = mark(database, relay, what, *decision, true).await;
                    count.map_err(|error| database.error(error))
                };
                Ok(Affected::of(view.read(read).await?))
            }
            Self::Letters {
                topic,
                filter,
                decision,
            } => {
                let count = view
                    .read_kafka(async |kafka| {
                        count_letters(kafka, topic, filter.clone(), *decision).await
                    })
                    .await;
                Ok(count.unwrap_or_else(|| Err(no_brokers()))?.into())
            }
            Self::Saga { id, is_retry } => {
                let read = async |database: &Database| {
                    let applies = sagas(database)?.applies(*id, decision(*is_retry)).await;
                    applies.map_err(|error| database.error(error))
                };
                Ok(Affected::of(view.read(read).await?.into()))
            }
            Self::Cancel { id } => {
                let found = view
                    .read(async |database| scheduled_event(database, *id).await)
                    .await?;
                Ok(Affected::of(found.is_some().into()))
            }
            Self::Subscriber(operation) => operation.count(view).await.map(Affected::of),
        }
    }

    /// Carries the operation out.
    pub(super) async fn carry_out(
        &self,
        view: &View,
        progress: &LetterProgress,
    ) -> Result<Affected, ConsoleError> {
        match self {
            Self::Parked {
                relay,
                what,
                decision,
            } => {
                let marked = view
                    .change(async |database| mark(database, relay, what, *decision, false).await)
                    .await?;
                Ok(Affected::of(marked))
            }
            Self::Letters {
                topic,
                filter,
                decision,
            } => {
                let kafka = view.shared.kafka.as_ref().ok_or_else(no_brokers)?;
                let _turn = tokio::select! {
                    turn = view.shared.runs.letters.acquire() => turn,
                    () = progress.stop.cancelled() => return Err(ConsoleError::new(
                        "it was stopped while it waited for an earlier action; no letter has \
                         changed",
                    )),
                };
                let decided =
                    decide_letters(kafka, topic, filter.clone(), *decision, progress).await;
                decided
                    .map(Affected::from)
                    .map_err(|error| ConsoleError::of(&error))
            }
            Self::Saga { id, is_retry } => decide_saga(view, *id, *is_retry).await,
            Self::Cancel { id } => {
                let cancelled = view
                    .change(async |database| cancel_scheduled(database, *id).await)
                    .await?;
                Ok(Affected::of(cancelled.into()))
            }
            Self::Subscriber(operation) => operation.carry_out(view).await.map(Affected::of),
        }
    }
}

async fn decide_saga(view: &View, id: Uuid, is_retry: bool) -> Result<Affected, ConsoleError> {
    let change = async |database: &Database| {
        let decided = sagas(database)?.decide(id, decision(is_retry)).await;
        decided.map_err(|error| ConsoleError::of(&error))
    };
    Ok(Affected::of(view.change(change).await?.into()))
}

fn decision(is_retry: bool) -> saga::Decision {
    match is_retry {
        true => saga::Decision::Retry,
        false => saga::Decision::Abort,
    }
}

/// Returns the sagas of a database.
pub(in crate::console) fn sagas(database: &Database) -> Result<Sagas, InspectError> {
    Sagas::new(database.pool.clone())
        .schema(&database.schema)
        .map_err(|_| InspectError::Missing {
            schema: database.schema.clone(),
        })
}

fn no_brokers() -> ConsoleError {
    ConsoleError::new("no brokers are configured: set --brokers or KAFKA_BROKERS")
}

impl Affected {
    fn of(events: i64) -> Self {
        Self {
            events,
            ..Self::default()
        }
    }
}

// === impl From ===

impl From<LetterOutcome> for Affected {
    fn from(mut outcome: LetterOutcome) -> Self {
        let kept = i64::try_from(outcome.kept.len()).unwrap_or(i64::MAX);
        outcome.kept.truncate(KEPT_SHOWN_MAX);
        Self {
            events: outcome.done,
            kept,
            kept_first: outcome.kept,
            left: outcome.left,
        }
    }
}
