//! Execution of the machine's decisions, in a transaction or in a test.

use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use super::definition::{Action, Local, Saga, SagaState};
use super::ended::SagaEnded;
use super::machine::{CallFailed, Input, Next, Shape};
use super::progress::Progress;
use crate::event::{Envelope, Headers, headers};
use crate::subscriber::{HandlerError, Meta, Verdict};
use crate::trace;

/// One run of a saga.
#[derive(Clone, Debug)]
pub(crate) struct SagaInstance<S> {
    pub(crate) id: Uuid,
    pub(crate) key: String,
    pub(crate) state: S,
    pub(crate) progress: Progress,
    /// Correlation id of the event that started the saga, or its event id. `None` if code started
    /// it.
    pub(crate) correlation_id: Option<String>,
}

/// An event of a saga that can never be published, with all causes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unpublishable(pub(crate) String);

/// Effects of a saga: the transaction of a delivery or of the timer, or a test.
pub(crate) trait Effects<S>: Send {
    /// Publishes an event when the transition commits. The inner error reports an event that can
    /// never be published. The outer error reports a database failure, and the caller must then
    /// discard the whole transition.
    fn send(
        &mut self,
        envelope: Envelope,
    ) -> impl Future<Output = Result<Result<(), Unpublishable>, HandlerError>> + Send;

    /// Calls a local step. The outer error reports a failure that the step did not cause, and the
    /// caller must then discard the whole transition.
    fn call(
        &mut self,
        run: &SagaInstance<S>,
        step: &str,
        back: bool,
        local: &Local<S>,
    ) -> impl Future<Output = Result<Result<S, CallFailed>, HandlerError>> + Send;

    /// Returns the time since the transition began, because local steps take time.
    fn elapsed(&self) -> Duration;
}

impl CallFailed {
    /// Returns the failure of a local step that returned this error.
    ///
    /// # Errors
    ///
    /// Returns the error itself if a dependency is unavailable, because the step did not cause it.
    pub(crate) fn of(error: HandlerError) -> Result<Self, HandlerError> {
        match error.verdict() {
            Verdict::Unavailable => Err(error),
            verdict => Ok(Self {
                error: error.chain(),
                last: verdict == Verdict::DeadLetter,
                late: false,
            }),
        }
    }
}

impl<S> SagaInstance<S> {
    /// Returns the headers of the events that this saga sends: its own id as the correlation id,
    /// and its latest cause.
    pub(super) fn headers(&self) -> Headers {
        self.progress.cause.headers(self.id.to_string())
    }
}

impl<S: SagaState> Saga<S> {
    /// Applies an input and executes all actions that follow from it.
    pub(crate) async fn drive<W: Effects<S>>(
        &self,
        shape: &Shape,
        instance: &mut SagaInstance<S>,
        input: Input,
        now: DateTime<Utc>,
        effects: &mut W,
    ) -> Result<(), HandlerError> {
        let mut next = shape.next(&mut instance.progress, input, now);
        loop {
            let happened = match next {
                Next::Wait => return Ok(()),
                Next::Ended => {
                    return effects
                        .send(self.ended_of(instance)?)
                        .await?
                        .map_err(HandlerError::dead_letter);
                }
                Next::Send { step, back } => {
                    let span = self.span(instance, &step, back, "producer");
                    self.send(instance, &step, back, effects)
                        .instrument(span)
                        .await?
                }
                Next::Call { step, back } => {
                    let span = self.span(instance, &step, back, "internal");
                    self.call(instance, &step, back, effects)
                        .instrument(span)
                        .await?
                }
            };
            next = shape.next(&mut instance.progress, happened, now + effects.elapsed());
        }
    }

    /// Returns the span of a step. It belongs to the trace of the event that moved the saga, also
    /// when a timer continues it.
    fn span(&self, instance: &SagaInstance<S>, step: &str, back: bool, kind: &str) -> Span {
        let span = tracing::info_span!(
            "saga step",
            otel.name = format!("{} {step}", self.name),
            otel.kind = kind,
            saga = self.name,
            saga.id = %instance.id,
            step,
            compensation = back,
        );
        instance.progress.cause.continue_trace(&span);
        span
    }

    /// Applies an awaited reply to the saga's state.
    pub(crate) fn take(
        &self,
        instance: &mut SagaInstance<S>,
        meta: &Meta,
    ) -> Result<Input, HandlerError> {
        let current = instance
            .progress
            .current
            .as_ref()
            .expect("a saga that awaits a reply has a current step");
        let Some(Action::Remote { replies, .. }) = self.action(&current.step, current.back) else {
            return Err(HandlerError::dead_letter("the step has no replies"));
        };
        let reply = replies
            .iter()
            .find(|reply| reply.kind.types.contains(&meta.event_type()));
        let reply = reply
            .ok_or_else(|| HandlerError::dead_letter("the step does not wait for this reply"))?;
        Ok(Input::Reply((reply.take)(&mut instance.state, meta)?))
    }

    async fn send<W: Effects<S>>(
        &self,
        instance: &SagaInstance<S>,
        step: &str,
        back: bool,
        effects: &mut W,
    ) -> Result<Input, HandlerError> {
        let Some(Action::Remote { make, .. }) = self.action(step, back) else {
            unreachable!("the shape is derived from the definition")
        };
        let error = match make(&instance.state) {
            Ok(mut envelope) => {
                envelope.headers.extend(caused(instance.headers()).iter());
                let id = envelope.id.as_uuid();
                match effects.send(envelope).await? {
                    Ok(()) => return Ok(Input::Sent(id)),
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        // A second attempt would fail in the same way.
        Ok(Input::Called(Err(CallFailed {
            error: format!("the command cannot be sent: {error}"),
            last: true,
            late: false,
        })))
    }

    async fn call<W: Effects<S>>(
        &self,
        instance: &mut SagaInstance<S>,
        step: &str,
        back: bool,
        effects: &mut W,
    ) -> Result<Input, HandlerError> {
        let Some(Action::Local(local)) = self.action(step, back) else {
            unreachable!("the shape is derived from the definition")
        };
        Ok(Input::Called(
            effects
                .call(instance, step, back, local)
                .await?
                .map(|state| instance.state = state),
        ))
    }

    fn ended_of(&self, instance: &SagaInstance<S>) -> Result<Envelope, HandlerError> {
        let correlation = instance
            .correlation_id
            .clone()
            .unwrap_or_else(|| instance.id.to_string());
        self.ended(instance.id, &instance.key, correlation, &instance.progress)
    }

    /// Returns the event that reports the end of the saga.
    pub(super) fn ended(
        &self,
        id: Uuid,
        key: &str,
        correlation: String,
        progress: &Progress,
    ) -> Result<Envelope, HandlerError> {
        let mut envelope = Envelope::of(&SagaEnded::of(&self.name, id, key, progress))?;
        envelope
            .headers
            .extend(caused(progress.cause.headers(correlation)).iter());
        Ok(envelope)
    }
}

/// Replaces the trace of the cause by the current span, if there is one.
fn caused(mut cause: Headers) -> Headers {
    let mut current = Headers::new();
    trace::inject(&mut current);
    if current.traceparent().is_some() {
        cause.remove(headers::TRACESTATE);
        cause.extend(current.iter());
    }
    cause
}
