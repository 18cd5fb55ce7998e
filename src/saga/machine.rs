//! State machine of a saga. Pure: it performs no I/O and reads no clock. The caller passes the
//! input and the time.
//!
//! ```text
//!                       ┌── reply, or nothing to wait for ──┐
//!                       ▼                                   │
//!  start ─▶ next step ─▶ send or call ─▶ wait ──────────────┘
//!              │                          │ refused; no reply, and no attempt left
//!              │ none left                ▼
//!              ▼              before the pivot: undo the last step ─▶ … ─▶ compensated or failed
//!          completed          after the pivot: retry ─▶ … ─▶ failed
//! ```
//!
//! A refused step had no effect. A step that did not reply may have had an effect, or may have it
//! later, so it is compensated too. The same applies to a step that was refused after its command
//! had been sent more than once, since another command may have had an effect.

mod operator;
mod shape;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

pub(crate) use shape::{ActionShape, Shape, StepShape, Unknown};

use super::progress::{Command, Current, Happened, Progress, SagaStatus, StepFailure};
use crate::postgres::encodable::storable;
use crate::subscriber::Retry;

/// Time that a compensation waits for its reply unless its step has a timeout. The command is then
/// sent again, so a slower reply does no harm.
const COMPENSATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause before a saga whose current step this code lacks is checked again.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(60);

/// Input of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The saga begins.
    Start,
    /// The command requested by [`Next::Send`] is in the outbox, with this event id.
    Sent(Uuid),
    /// The function requested by [`Next::Call`] has returned.
    Called(Result<(), CallFailed>),
    /// An awaited reply. `Some` with the reason if it refuses.
    Reply(Option<String>),
    /// A due time may have passed.
    Due,
    /// An operator retries the saga.
    Retry,
    /// An operator aborts the saga, which compensates it.
    Abort,
    /// An operator ends the saga at its current step.
    End,
}

/// Failure of a local step. Its changes are rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallFailed {
    pub(crate) error: String,
    /// A retry would fail too.
    pub(crate) last: bool,
    /// The step exceeded its time limit.
    pub(crate) late: bool,
}

/// Next action of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for an event or for [`Progress::due`].
    Wait,
    /// Send the command of this step, then pass [`Input::Sent`].
    Send { step: String, back: bool },
    /// Call the function of this step, then pass [`Input::Called`].
    Call { step: String, back: bool },
    /// The saga has ended: publish its end.
    Ended,
}

impl Shape {
    /// Applies an input and returns the next action.
    pub(crate) fn next(&self, progress: &mut Progress, input: Input, now: DateTime<Utc>) -> Next {
        match input {
            Input::Start if progress.status == SagaStatus::Waiting => {
                progress.happened.push(Happened::Begun);
                progress.status = SagaStatus::Running;
                progress.deadline = self.within.map(|time| now + time);
                self.forward(progress, now)
            }
            Input::Sent(id) => self.sent(progress, id, now),
            Input::Called(Ok(())) | Input::Reply(None) => self.succeeded(progress, now),
            Input::Called(Err(failed)) => self.call_failed(progress, failed, now),
            Input::Reply(Some(reason)) if self.must_go_on(progress) => {
                self.again_or_give_up(progress, reason, now)
            }
            Input::Reply(Some(reason)) => self.give_up(progress, reason, 1, now),
            Input::Due => self.due(progress, now),
            Input::Retry => self.retry(progress, now),
            Input::Abort => self.abort(progress, now),
            Input::End if !progress.status.is_end() => {
                let step = progress
                    .current
                    .as_ref()
                    .map(|current| current.step.clone())
                    .unwrap_or_default();
                progress.failure.get_or_insert(StepFailure {
                    step,
                    error: "ended by an operator at this step".into(),
                });
                Self::end(progress, SagaStatus::Failed)
            }
            Input::Start | Input::End => Next::Wait,
        }
    }

    fn forward(&self, progress: &mut Progress, now: DateTime<Utc>) -> Next {
        while let Some(step) = progress.ahead.pop_front() {
            // Skip a planned step that the code no longer has.
            if self.step(&step).is_some() {
                return self.begin(progress, step, false, now);
            }
        }
        Self::end(progress, SagaStatus::Completed)
    }

    fn backward(&self, progress: &mut Progress, now: DateTime<Utc>) -> Next {
        while let Some(step) = progress.done.pop() {
            if self.action(&step, true) != Some(&ActionShape::Nothing) {
                return self.begin(progress, step, true, now);
            }
        }
        let failed = !progress.failed_compensations.is_empty();
        Self::end(
            progress,
            if failed {
                SagaStatus::Failed
            } else {
                SagaStatus::Compensated
            },
        )
    }

    fn begin(&self, progress: &mut Progress, step: String, back: bool, now: DateTime<Utc>) -> Next {
        let began = Some(now);
        progress.current = Some(Current {
            step,
            back,
            attempts: 0,
            sent: 0,
            paused: false,
            due: None,
            began,
            error: None,
        });
        self.attempt(progress, now)
    }

    /// Starts an attempt of the current step.
    fn attempt(&self, progress: &mut Progress, now: DateTime<Utc>) -> Next {
        let Some(current) = &mut progress.current else {
            return Next::Wait;
        };
        let (step, back) = (current.step.clone(), current.back);
        let Some(action) = self.action(&step, back) else {
            current.paused = true;
            current.due = Some(now + UNKNOWN_PAUSE);
            current.error = Some(
                "this code does not have the step; deploy code with the step, marked `retired` if \
                 new sagas must not run it"
                    .into(),
            );
            return Next::Wait;
        };
        current.attempts += 1;
        if current.attempts > 1 {
            progress.happened.push(Happened::Retried {
                step: step.clone(),
                back,
            });
        }
        current.paused = false;
        current.due = None;
        match action {
            ActionShape::Nothing => self.succeeded(progress, now),
            ActionShape::Remote(_) => Next::Send { step, back },
            ActionShape::Local => Next::Call { step, back },
        }
    }

    fn sent(&self, progress: &mut Progress, id: Uuid, now: DateTime<Utc>) -> Next {
        let Some(current) = &mut progress.current else {
            return Next::Wait;
        };
        current.sent += 1;
        progress.commands.push(Command {
            id,
            step: current.step.clone(),
            back: current.back,
        });
        if self.action(&current.step, current.back) == Some(&ActionShape::Remote(Vec::new())) {
            return self.succeeded(progress, now);
        }
        let timeout = self.step(&current.step).and_then(|step| step.timeout);
        current.due = timeout
            .or(current.back.then_some(COMPENSATION_TIMEOUT))
            .map(|time| now + time);
        Next::Wait
    }

    fn succeeded(&self, progress: &mut Progress, now: DateTime<Utc>) -> Next {
        let Some(Current {
            step, back, began, ..
        }) = progress.current.take()
        else {
            return Next::Wait;
        };
        if self
            .action(&step, back)
            .is_some_and(|action| *action != ActionShape::Nothing)
        {
            let took = began.map_or_else(TimeDelta::zero, |began| now - began);
            progress.happened.push(Happened::Done {
                step: step.clone(),
                back,
                took,
            });
        }
        if back {
            progress.undone.push(step);
            return self.backward(progress, now);
        }
        progress.pivoted |= self.step(&step).is_some_and(|step| step.pivot);
        progress.done.push(step);
        self.forward(progress, now)
    }

    fn call_failed(
        &self,
        progress: &mut Progress,
        CallFailed { error, last, late }: CallFailed,
        now: DateTime<Utc>,
    ) -> Next {
        if late {
            Self::timed_out(progress);
        }
        match last && !self.must_go_on(progress) {
            true => self.give_up(progress, error, 0, now),
            false => self.again_or_give_up(progress, error, now),
        }
    }

    fn timed_out(progress: &mut Progress) {
        if let Some(Current { step, back, .. }) = &progress.current {
            progress.happened.push(Happened::TimedOut {
                step: step.clone(),
                back: *back,
            });
        }
    }

    /// Pauses before the next attempt, or gives up if the retry policy of the step allows no more.
    fn again_or_give_up(&self, progress: &mut Progress, error: String, now: DateTime<Utc>) -> Next {
        let must_go_on = self.must_go_on(progress);
        let Some(current) = &mut progress.current else {
            return Next::Wait;
        };
        let retry = self.retry_of(&current.step, must_go_on);
        if current.attempts >= retry.attempts() {
            return self.give_up(progress, error, 0, now);
        }
        current.paused = true;
        current.due = Some(now + retry.pause(current.attempts, 0.0));
        current.error = Some(storable(&error));
        Next::Wait
    }

    /// Fails the current step. `refused` is the number of its commands that are known to have had
    /// no effect.
    fn give_up(
        &self,
        progress: &mut Progress,
        error: String,
        refused: u32,
        now: DateTime<Utc>,
    ) -> Next {
        let Some(current) = &progress.current else {
            return Next::Wait;
        };
        let failure = StepFailure {
            step: current.step.clone(),
            error: storable(&error),
        };
        if current.back {
            progress.failed_compensations.push(failure);
            progress.current = None;
            return self.backward(progress, now);
        }
        if progress.pivoted {
            progress.failure = Some(failure);
            return Self::end(progress, SagaStatus::Failed);
        }
        if current.sent > refused {
            progress.done.push(failure.step.clone());
        }
        progress.failure = Some(failure);
        progress.current = None;
        progress.status = SagaStatus::Compensating;
        self.backward(progress, now)
    }

    fn due(&self, progress: &mut Progress, now: DateTime<Utc>) -> Next {
        let late = progress.status == SagaStatus::Running
            && !progress.pivoted
            && progress.deadline.is_some_and(|deadline| deadline <= now);
        if late && self.knows(progress) {
            Self::timed_out(progress);
            let time = self.within.unwrap_or_default();
            return self.give_up(
                progress,
                format!("the saga exceeded its time limit of {time:?}"),
                0,
                now,
            );
        }
        let due = |current: &&Current| current.due.is_some_and(|due| due <= now);
        let Some(current) = progress
            .current
            .as_ref()
            .filter(due)
            .filter(|_| !progress.status.is_end())
        else {
            return Next::Wait;
        };
        if current.paused || !self.knows(progress) {
            return self.attempt(progress, now);
        }
        let timeout = self
            .step(&current.step)
            .and_then(|step| step.timeout)
            .unwrap_or(COMPENSATION_TIMEOUT);
        Self::timed_out(progress);
        self.again_or_give_up(progress, format!("no reply within {timeout:?}"), now)
    }

    fn end(progress: &mut Progress, status: SagaStatus) -> Next {
        progress.happened.push(Happened::Ended(status));
        progress.status = status;
        Next::Ended
    }

    /// Returns `true` if a refusal must be retried: the saga is past its pivot, or the current
    /// action is a compensation.
    fn must_go_on(&self, progress: &Progress) -> bool {
        progress.pivoted
            || progress
                .current
                .as_ref()
                .is_some_and(|current| current.back)
    }

    fn retry_of(&self, step: &str, must_go_on: bool) -> Retry {
        let step = self.step(step);
        let own = step.and_then(|step| step.retry.clone());
        let local = step.is_some_and(|step| step.forward == ActionShape::Local);
        own.unwrap_or_else(|| match (must_go_on, local) {
            // Ten attempts span half an hour, which is longer than a deployment or a restart.
            (true, _) => Retry::exponential(10, Duration::from_secs(1)..Duration::from_secs(300)),
            (false, true) => Retry::exponential(5, Duration::from_secs(1)..Duration::from_secs(60)),
            // The relay delivers every command, so one is enough.
            (false, false) => Retry::never(),
        })
    }
}

#[cfg(test)]
mod tests;
