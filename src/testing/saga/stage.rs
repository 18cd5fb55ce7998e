//! Stage of a saga under test: records what the saga sends, and replaces its local steps.

use std::collections::HashMap;
use std::time::Duration;

use crate::event::{DomainEvent, Envelope};
use crate::saga::{CallFailed, Effects, Local, SagaEnded, SagaInstance, SagaState};
use crate::subscriber::HandlerError;

type Stand<S> = Box<dyn Fn(S) -> Result<S, String> + Send>;

/// Events that the saga has sent, and the functions that replace its local steps.
pub(super) struct Stage<S> {
    pub(super) sent: Vec<Envelope>,
    pub(super) ended: Vec<SagaEnded>,
    pub(super) locals: HashMap<(String, bool), Stand<S>>,
}

impl<S: SagaState> Effects<S> for Stage<S> {
    async fn send(&mut self, envelope: Envelope) -> Result<Result<(), String>, HandlerError> {
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
        Ok(done.map_err(|error| CallFailed {
            error,
            last: false,
            late: false,
        }))
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}
