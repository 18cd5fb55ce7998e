//! Event that reports the outcome of a saga.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::progress::{Progress, SagaStatus, StepFailure};
use crate::event::{DomainEvent, Json};

/// Outcome of a saga, published in the transaction that ends it. The event types are
/// `SagaCompleted`, `SagaCompensated` and `SagaFailed`, and the aggregate is `saga`.
///
/// A failed saga that an operator retries publishes another `SagaEnded` when it ends again. The
/// event carries the correlation id of the event that started the saga, or the id of that event if
/// it had no correlation id. A saga can therefore be a step of another saga.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SagaEnded {
    /// Id of the saga.
    pub saga_id: Uuid,
    /// Name of the saga.
    pub saga: String,
    /// Key of the saga; see [`Saga::key`](super::Saga::key).
    pub key: String,
    /// Outcome of the saga.
    pub outcome: SagaStatus,
    /// The step that failed. Empty if no step failed or the saga could not begin.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub step: String,
    /// The error of the failed step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The compensations that failed. These steps remain done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_compensations: Vec<StepFailure>,
}

impl SagaEnded {
    pub(super) fn of(saga: &str, saga_id: Uuid, key: &str, progress: &Progress) -> Self {
        let failure = progress
            .failure
            .clone()
            .filter(|_| progress.status != SagaStatus::Completed);
        let (step, error) = failure.map_or((String::new(), None), |failure| {
            (failure.step, Some(failure.error))
        });
        Self {
            saga_id,
            saga: saga.to_owned(),
            key: key.to_owned(),
            outcome: progress.status,
            step,
            error,
            failed_compensations: progress.failed_compensations.clone(),
        }
    }
}

impl DomainEvent for SagaEnded {
    type Codec = Json;
    const AGGREGATE: &'static str = "saga";
    const TYPES: &'static [&'static str] = &["SagaCompleted", "SagaCompensated", "SagaFailed"];

    fn event_type(&self) -> &'static str {
        match self.outcome {
            SagaStatus::Completed => Self::TYPES[0],
            SagaStatus::Compensated => Self::TYPES[1],
            _ => Self::TYPES[2],
        }
    }

    fn aggregate_id(&self) -> Cow<'_, str> {
        self.saga_id.to_string().into()
    }
}
