//! Definition of a saga as the machine sees it, and its queries about a saga in progress.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::UNKNOWN_PAUSE;
use crate::saga::progress::{Cause, Progress, SagaStatus};
use crate::subscriber::Retry;

/// Part of a saga's definition that the machine needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) steps: Vec<StepShape>,
    pub(crate) within: Option<Duration>,
}

/// Part of a step's definition that the machine needs.
#[derive(Clone, Debug)]
pub(crate) struct StepShape {
    pub(crate) name: String,
    pub(crate) forward: ActionShape,
    pub(crate) compensation: ActionShape,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Option<Retry>,
    pub(crate) pivot: bool,
    pub(crate) retired: bool,
}

/// Kind of an action, and the event types that reply to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ActionShape {
    #[default]
    Nothing,
    /// A command. If the list is empty, the action is done as soon as the command is in the outbox.
    Remote(Vec<&'static str>),
    Local,
}

/// Steps that prevent the code from continuing a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// The current step does not exist in the code.
    Step(String),
    /// None of the saga's steps, listed here, exists in the code.
    Plan(Vec<String>),
}

impl Shape {
    /// Returns the progress of a saga that has not begun.
    pub(crate) fn plan(&self) -> Progress {
        Progress {
            status: SagaStatus::Waiting,
            ahead: self
                .steps
                .iter()
                .filter(|step| !step.retired)
                .map(|step| step.name.clone())
                .collect(),
            current: None,
            done: Vec::new(),
            undone: Vec::new(),
            pivoted: false,
            failure: None,
            failed_compensations: Vec::new(),
            commands: Vec::new(),
            deadline: None,
            cause: Cause::default(),
            happened: Vec::new(),
        }
    }

    /// Returns the time of the next check if no event arrives before.
    pub(crate) fn due_at(&self, progress: &Progress, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if progress.status.is_end() {
            return None;
        }
        let step = progress.current.as_ref().and_then(|current| current.due);
        let deadline = progress
            .deadline
            .filter(|_| progress.status == SagaStatus::Running && !progress.pivoted);
        // A deadline that has passed is postponed while this code lacks the current step, because
        // this code cannot compensate it either. Code that has the step then finds the deadline
        // passed.
        let deadline = deadline.map(|deadline| {
            if self.knows(progress) {
                deadline
            } else {
                deadline.max(now + UNKNOWN_PAUSE)
            }
        });
        step.into_iter().chain(deadline).min()
    }

    /// Returns `true` if the saga waits for this event: its type replies to the current step, and
    /// the command of another step did not cause it.
    pub(crate) fn awaits(
        &self,
        progress: &Progress,
        event_type: &str,
        cause: Option<Uuid>,
    ) -> bool {
        let Some(current) = progress
            .current
            .as_ref()
            .filter(|_| !progress.status.is_end())
        else {
            return false;
        };
        let Some(ActionShape::Remote(types)) = self.action(&current.step, current.back) else {
            return false;
        };
        types.contains(&event_type) && !progress.is_of_another_step(cause)
    }

    /// Returns `true` if this code has the steps that it needs to continue the saga.
    pub(crate) fn knows(&self, progress: &Progress) -> bool {
        self.unknown(progress).is_none()
    }

    /// Returns the steps that prevent this code from continuing the saga. A step that has not begun
    /// is no obstacle, unless this code has no step of the saga at all. In that case another
    /// definition started the saga.
    pub(crate) fn unknown(&self, progress: &Progress) -> Option<Unknown> {
        if progress.status.is_end() {
            return None;
        }
        if let Some(current) = &progress.current {
            return self
                .step(&current.step)
                .is_none()
                .then(|| Unknown::Step(current.step.clone()));
        }
        let planned: Vec<&String> = progress
            .ahead
            .iter()
            .chain(&progress.done)
            .chain(&progress.undone)
            .collect();
        let foreign = !planned.is_empty() && planned.iter().all(|step| self.step(step).is_none());
        foreign.then(|| Unknown::Plan(planned.into_iter().cloned().collect()))
    }

    pub(super) fn step(&self, name: &str) -> Option<&StepShape> {
        self.steps.iter().find(|step| step.name == name)
    }

    pub(super) fn action(&self, step: &str, back: bool) -> Option<&ActionShape> {
        self.step(step).map(|step| {
            if back {
                &step.compensation
            } else {
                &step.forward
            }
        })
    }
}
