//! Decisions of an operator about a saga: to retry it or to abort it.

use chrono::{DateTime, Utc};

use super::Next;
use super::shape::Shape;
use crate::saga::progress::{Progress, SagaStatus, StepFailure};

impl Shape {
    /// Retries the saga from its current position, with a new set of attempts.
    pub(super) fn retry(&self, progress: &mut Progress, now: DateTime<Utc>) -> Next {
        if let Some(current) = progress
            .current
            .as_mut()
            .filter(|_| !matches!(progress.status, SagaStatus::Completed))
        {
            current.attempts = 0;
            progress.status = if current.back {
                SagaStatus::Compensating
            } else {
                SagaStatus::Running
            };
            if !current.back {
                progress.failure = None;
                progress.deadline = self.within.map(|time| now + time);
            }
            return self.attempt(progress, now);
        }
        if progress.status == SagaStatus::Failed && !progress.failed_compensations.is_empty() {
            progress.done = progress
                .failed_compensations
                .drain(..)
                .rev()
                .map(|failed| failed.step)
                .collect();
            progress.status = SagaStatus::Compensating;
            return self.backward(progress, now);
        }
        Next::Wait
    }

    pub(super) fn abort(&self, progress: &mut Progress, now: DateTime<Utc>) -> Next {
        const ABORTED: &str = "aborted by an operator";
        match progress.status {
            SagaStatus::Running if !progress.pivoted => {
                self.give_up(progress, ABORTED.into(), 0, now)
            }
            SagaStatus::Waiting => {
                progress.failure.get_or_insert(StepFailure {
                    step: String::new(),
                    error: ABORTED.into(),
                });
                Self::end(progress, SagaStatus::Compensated)
            }
            _ => Next::Wait,
        }
    }
}
