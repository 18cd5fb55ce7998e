//! Carries out what the machine says, in a transaction or in a test.

use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::definition::{Action, Local, Saga, SagaState};
use super::ended::SagaEnded;
use super::machine::{CallFailed, Input, Next, Shape};
use super::progress::Progress;
use crate::event::{Envelope, Headers};
use crate::subscriber::{HandlerError, Meta};

/// One run of a saga.
#[derive(Clone, Debug)]
pub(crate) struct Instance<S> {
    pub(crate) id: Uuid,
    pub(crate) key: String,
    pub(crate) state: S,
    pub(crate) progress: Progress,
    /// The conversation that the saga was started in.
    pub(crate) correlation_id: Option<String>,
}

/// Where a saga acts: the transaction of a delivery or of the timer, or a test.
pub(crate) trait World<S>: Send {
    /// Publishes an event, if the transition is kept. The inner error is for an event that can never be published; the outer one is for
    /// the database, and the whole transition is then given up.
    fn send(
        &mut self,
        envelope: Envelope,
    ) -> impl Future<Output = Result<Result<(), String>, HandlerError>> + Send;

    /// Calls a local step. The outer error is for what is not the step's: the whole transition is then given up.
    fn call(
        &mut self,
        run: &Instance<S>,
        step: &str,
        back: bool,
        local: &Local<S>,
    ) -> impl Future<Output = Result<Result<S, CallFailed>, HandlerError>> + Send;

    /// How long ago the transition began: local steps take their time.
    fn elapsed(&self) -> Duration;
}

impl<S> Instance<S> {
    /// What is sent on its behalf bears these: its own conversation, and what has moved it.
    pub(super) fn headers(&self) -> Headers {
        self.progress.cause.headers(self.id.to_string())
    }
}

impl<S: SagaState> Saga<S> {
    /// Lets something happen, and does all that follows.
    pub(crate) async fn drive<W: World<S>>(
        &self,
        shape: &Shape,
        instance: &mut Instance<S>,
        input: Input,
        now: DateTime<Utc>,
        world: &mut W,
    ) -> Result<(), HandlerError> {
        let mut next = shape.next(&mut instance.progress, input, now);
        loop {
            let happened = match next {
                Next::Wait => return Ok(()),
                Next::Ended => {
                    return world
                        .send(self.ended_of(instance)?)
                        .await?
                        .map_err(HandlerError::dead_letter);
                }
                Next::Send { step, back } => self.send(instance, &step, back, world).await?,
                Next::Call { step, back } => self.call(instance, &step, back, world).await?,
            };
            next = shape.next(&mut instance.progress, happened, now + world.elapsed());
        }
    }

    /// Takes a reply that the saga waits for into its state.
    pub(crate) fn take(
        &self,
        instance: &mut Instance<S>,
        meta: &Meta,
    ) -> Result<Input, HandlerError> {
        let current = instance
            .progress
            .current
            .as_ref()
            .expect("what waits for a reply stands at a step");
        let Some(Action::Remote { replies, .. }) = self.action(&current.step, current.back) else {
            return Err(HandlerError::dead_letter("the step has no replies"));
        };
        let reply = replies
            .iter()
            .find(|reply| reply.kind.types.contains(&meta.event_type()));
        let reply = reply.ok_or_else(|| HandlerError::dead_letter("the step has no such reply"))?;
        Ok(Input::Reply((reply.take)(&mut instance.state, meta)?))
    }

    async fn send<W: World<S>>(
        &self,
        instance: &Instance<S>,
        step: &str,
        back: bool,
        world: &mut W,
    ) -> Result<Input, HandlerError> {
        let Some(Action::Remote { make, .. }) = self.action(step, back) else {
            unreachable!("the shape is made from the definition")
        };
        let error = match make(&instance.state) {
            Ok(mut envelope) => {
                envelope.headers.extend(instance.headers().iter());
                let id = envelope.id.as_uuid();
                match world.send(envelope).await? {
                    Ok(()) => return Ok(Input::Sent(id)),
                    Err(error) => error,
                }
            }
            Err(error) => error.to_string(),
        };
        // It would be the same the next time.
        Ok(Input::Called(Err(CallFailed {
            error: format!("the command cannot be sent: {error}"),
            last: true,
            late: false,
        })))
    }

    async fn call<W: World<S>>(
        &self,
        instance: &mut Instance<S>,
        step: &str,
        back: bool,
        world: &mut W,
    ) -> Result<Input, HandlerError> {
        let Some(Action::Local(local)) = self.action(step, back) else {
            unreachable!("the shape is made from the definition")
        };
        Ok(Input::Called(
            world
                .call(instance, step, back, local)
                .await?
                .map(|state| instance.state = state),
        ))
    }

    fn ended_of(&self, instance: &Instance<S>) -> Result<Envelope, HandlerError> {
        let correlation = instance
            .correlation_id
            .clone()
            .unwrap_or_else(|| instance.id.to_string());
        self.ended(instance.id, &instance.key, correlation, &instance.progress)
    }

    /// The event of a saga's end.
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
            .extend(progress.cause.headers(correlation).iter());
        Ok(envelope)
    }
}
