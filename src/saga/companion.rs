//! Companion that runs one saga within a subscriber: its admission at the start, the events kept
//! for it, and its timer.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::definition::SagaState;
use super::notices::listen;
use super::registration::Registration;
use super::timer::Timer;
use super::transition::{Elsewhere, Engine};
use crate::subscriber::{Companion, Ground, Interest, Meta, NotAdmitted, Task};

/// The companion that runs one saga.
pub(super) struct Driver<S>(pub(super) Arc<Engine<S>>);

impl<S> Driver<S> {
    fn registration(&self, ground: &Ground) -> Registration {
        let saga = &self.0.saga;
        Registration::new(
            &ground.schema,
            &saga.name,
            &ground.consumer,
            saga.signature(),
        )
    }
}

impl<S: SagaState> Companion for Driver<S> {
    fn name(&self) -> &str {
        &self.0.saga.name
    }

    fn admit<'t>(&'t self, ground: &'t Ground) -> Task<'t, Result<(), NotAdmitted>> {
        Box::pin(async move {
            self.registration(ground).register(&ground.pool).await?;
            self.0.run_here(&ground.consumer, &ground.names);
            Ok(())
        })
    }

    fn interest<'t>(
        &'t self,
        ground: &'t Ground,
        event: &'t Meta,
    ) -> Task<'t, Result<Interest, sqlx::Error>> {
        Box::pin(async move {
            let Some(id) = event
                .correlation_id()
                .and_then(|id| id.parse::<Uuid>().ok())
            else {
                return Ok(Interest::Impossible);
            };
            let mut conn = ground.pool.acquire().await?;
            let store = super::store::Store::new(ground.schema.clone());
            Ok(
                match self
                    .0
                    .awaited_elsewhere(&store, &mut conn, id, event)
                    .await?
                {
                    Elsewhere::NoSaga => Interest::Impossible,
                    Elsewhere::NotAwaited => Interest::Not,
                    Elsewhere::Awaited(_) => Interest::Waits,
                },
            )
        })
    }

    fn run(self: Arc<Self>, ground: Arc<Ground>, stop: CancellationToken) -> Task<'static, ()> {
        let registration = self.registration(&ground);
        // One listener serves all sagas of the subscriber, so only the first saga starts it.
        let listens = ground
            .names
            .first()
            .is_some_and(|first| *first == self.0.saga.name);
        let timer = Timer::new(self.0.clone(), ground.clone(), registration);
        Box::pin(async move {
            match listens {
                true => drop(tokio::join!(timer.run(stop.clone()), listen(ground, stop))),
                false => timer.run(stop).await,
            }
        })
    }
}
