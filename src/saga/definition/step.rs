//! Steps of a saga, as the builder configures them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::action::{Action, Reply, done, remote, reply};
use super::{Saga, SagaState};
use crate::event::DomainEvent;
use crate::subscriber::{HandlerError, Retry, Tx};

/// A step as the builder has configured it so far.
#[derive(Clone)]
pub(super) struct Step<S> {
    pub(super) name: String,
    pub(super) forward: Action<S>,
    pub(super) compensation: Action<S>,
    pub(super) timeout: Option<Duration>,
    pub(super) retry: Option<Retry>,
    pub(super) pivot: bool,
    pub(super) retired: bool,
}

impl<S: SagaState> Saga<S> {
    /// Adds the next step. The name is stored with each run, so a renamed step is a different step.
    pub fn step(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        if self.steps.iter().any(|step| step.name == name) {
            self.faults
                .push(format!("two steps have the name `{name}`"));
        }
        let (forward, compensation) = (Action::Nothing, Action::Nothing);
        self.steps.push(Step {
            name,
            forward,
            compensation,
            timeout: None,
            retry: None,
            pivot: false,
            retired: false,
        });
        self
    }

    /// Makes the step send this event. Unless [`on`](Self::on) names a reply, the step is done as
    /// soon as the event is in the outbox.
    pub fn command<C: DomainEvent>(
        self,
        command: impl Fn(&S) -> C + Send + Sync + 'static,
    ) -> Self {
        self.with("command", |step, _| step.forward = remote(command))
    }

    /// Makes the step call this function, in the transaction that also records the step as done. If
    /// the function fails, its changes are rolled back and it is retried. After
    /// [`HandlerError::dead_letter`] the step fails at once.
    pub fn local<F, Fut>(self, function: F) -> Self
    where
        F: Fn(S, Tx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        self.with("local", |step, _| {
            step.forward = Action::Local(Arc::new(move |state, tx| Box::pin(function(state, tx))))
        })
    }

    /// Completes the step on this reply.
    pub fn on<E: DomainEvent>(self, take: impl Fn(&mut S, E) + Send + Sync + 'static) -> Self {
        self.reply(false, done(take))
    }

    /// Fails the step on this reply, which states that the step had no effect. The completed steps
    /// before it are compensated. The function returns the reason.
    pub fn fails_on<E: DomainEvent>(
        self,
        reason: impl Fn(&mut S, E) -> String + Send + Sync + 'static,
    ) -> Self {
        self.reply(
            false,
            reply::<S, E>(move |state, event| Some(reason(state, event))),
        )
    }

    /// Undoes the step with this event if a later step fails. The event is also sent if the step
    /// itself received no reply, so its receiver must tolerate a request to undo a step that never
    /// took effect. Unless [`compensated_on`](Self::compensated_on) names a reply, the step is
    /// undone as soon as the event is in the outbox.
    pub fn compensate<C: DomainEvent>(
        self,
        command: impl Fn(&S) -> C + Send + Sync + 'static,
    ) -> Self {
        self.with("compensate", |step, _| step.compensation = remote(command))
    }

    /// Undoes the step with this function.
    pub fn compensate_local<F, Fut>(self, function: F) -> Self
    where
        F: Fn(S, Tx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        self.with("compensate_local", |step, _| {
            step.compensation =
                Action::Local(Arc::new(move |state, tx| Box::pin(function(state, tx))))
        })
    }

    /// Completes the compensation on this reply.
    pub fn compensated_on<E: DomainEvent>(
        self,
        take: impl Fn(&mut S, E) + Send + Sync + 'static,
    ) -> Self {
        self.reply(true, done(take))
    }

    /// Fails the compensation on this reply. The compensation is retried, then recorded as failed,
    /// and the remaining compensations still run.
    pub fn compensation_fails_on<E: DomainEvent>(
        self,
        reason: impl Fn(&mut S, E) -> String + Send + Sync + 'static,
    ) -> Self {
        self.reply(
            true,
            reply::<S, E>(move |state, event| Some(reason(state, event))),
        )
    }

    /// Sets the time limit of the wait for a reply, or of a local step. By default, a step waits
    /// until the saga's own time limit (see [`within`](Self::within)), and compensations and local
    /// steps have 60 s.
    pub fn timeout(self, time: Duration) -> Self {
        self.with("timeout", |step, _| step.timeout = Some(time))
    }

    /// Sets the retries of the step and of its compensation.
    ///
    /// A command is sent again if no reply arrived in time, but not if it was refused. After the
    /// pivot, and for compensations, a refusal is retried too. By default, a command is sent once,
    /// a local step has five attempts, and compensations and steps after the pivot have ten
    /// attempts within half an hour.
    pub fn retry(self, retry: Retry) -> Self {
        self.with("retry", |step, _| step.retry = Some(retry))
    }

    /// Makes this step the pivot: once it is done, the saga only moves forward. Later steps are
    /// retried where they would otherwise fail, and nothing is compensated.
    pub fn pivot(self) -> Self {
        self.with("pivot", |step, _| step.pivot = true)
    }

    /// Keeps the step only for runs that started under an older version. New runs skip it. Remove
    /// the step when no such run is left.
    pub fn retired(self) -> Self {
        self.with("retired", |step, _| step.retired = true)
    }

    fn with(mut self, what: &str, change: impl FnOnce(&mut Step<S>, &mut Vec<String>)) -> Self {
        match self.steps.last_mut() {
            Some(step) => change(step, &mut self.faults),
            None => self
                .faults
                .push(format!("`.{what}(…)` comes before the first `.step(…)`")),
        }
        self
    }

    fn reply(self, back: bool, reply: Reply<S>) -> Self {
        let what = if back { "compensated_on" } else { "on" };
        self.with(what, |step, faults| {
            match if back {
                &mut step.compensation
            } else {
                &mut step.forward
            } {
                Action::Remote { replies, .. } => {
                    let known: Vec<_> = replies.iter().flat_map(|reply| reply.kind.types).collect();
                    faults.extend(
                        reply
                            .kind
                            .types
                            .iter()
                            .filter(|name| known.contains(name))
                            .map(|name| {
                                format!("step `{}` names the reply `{name}` twice", step.name)
                            }),
                    );
                    replies.push(reply);
                }
                _ => faults.push(format!(
                    "step `{}` has a reply without a command before it",
                    step.name
                )),
            }
        })
    }
}
