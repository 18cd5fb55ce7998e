//! The event that says how a saga ended.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::progress::{Progress, SagaStatus, StepFailure};
use crate::event::{DomainEvent, Json};

/// How a saga ended, published by the transaction in which it did: `SagaCompleted`, `SagaCompensated` or `SagaFailed`, of the aggregate `saga`.
///
/// One that failed and is retried by a person ends once more. Its correlation is that of the event which started the saga, or the id of that event if it bore none, so that a saga may be a step of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SagaEnded {
    /// Which saga.
    pub saga_id: Uuid,
    /// The saga's name.
    pub saga: String,
    /// Its key, see [`Saga::key`](super::Saga::key).
    pub key: String,
    /// How it ended.
    pub outcome: SagaStatus,
    /// The step that failed; empty if none did, or the saga could not begin.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub step: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The compensations that failed: these steps are done and not undone.
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
