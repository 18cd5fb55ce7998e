//! Stage of a saga under test: records what the saga sends, and replaces its local steps.

use std::collections::HashMap;
use std::time::Duration;

use crate::event::{DomainEvent, Envelope};
use crate::saga::{CallFailed, Effects, Local, SagaEnded, SagaInstance, SagaState, Unpublishable};
use crate::subscriber::HandlerError;

type Stand<S> = Box<dyn Fn(S) -> Result<S, HandlerError> + Send>;

/// Events that the saga has sent, and the functions that replace its local steps.
pub(super) struct Stage<S> {
    pub(super) sent: Vec<Envelope>,
    pub(super) ended: Vec<SagaEnded>,
    pub(super) locals: HashMap<(String, bool), Stand<S>>,
}

impl<S> Stage<S> {
    /// Replaces a local step, or its compensation if `back` is set.
    pub(super) fn replace(
        &mut self,
        step: &str,
        back: bool,
        stand_in: impl Fn(S) -> Result<S, HandlerError> + Send + 'static,
    ) {
        self.locals
            .insert((step.to_owned(), back), Box::new(stand_in));
    }
}

impl<S: SagaState> Effects<S> for Stage<S> {
    async fn send(
        &mut self,
        envelope: Envelope,
    ) -> Result<Result<(), Unpublishable>, HandlerError> {
        if envelope.aggregate_type == SagaEnded::AGGREGATE {
            self.ended.push(envelope.decode()?);
        } else {
            self.sent.push(envelope);
        }
        Ok(Ok(()))
    }

    async fn call(
        &mut self,
        run: &SagaInstance<S>,
        step: &str,
        back: bool,
        _: &Local<S>,
    ) -> Result<Result<S, CallFailed>, HandlerError> {
        let (stand_in, state) = (self.locals.get(&(step.to_owned(), back)), run.state.clone());
        let done = stand_in.map_or_else(|| Ok(state.clone()), |stand_in| stand_in(state.clone()));
        match done {
            Ok(state) => Ok(Ok(state)),
            Err(error) => CallFailed::of(error).map(Err),
        }
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}
