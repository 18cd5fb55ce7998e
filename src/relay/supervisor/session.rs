//! One session of a relay: start, run, drain.
//!
//! ```text
//! lease ─▶ take over the row ─▶ Kafka answers ─▶ recovery ─▶ source selector ─▶ drain ─▶ handover
//! ```

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Relay, handover::Carried, part, prepare::Ready};
use crate::relay::{
    RelayError,
    error::Interruption,
    leadership::lease::Lease,
    maintenance::{retention, scheduler},
    pipeline::{Pipeline, Stop, publisher::until_reported},
    source::selector::SourceSelector,
    startup::pooler,
};

/// Time for which an interrupted session waits for its records in flight. If Kafka acknowledges
/// them in time, the next session repeats no event.
const DRAIN_AFTER_INTERRUPTION: Duration = Duration::from_secs(10);

/// Minimum time for storing the last position, even if the grace has ended.
const STORE_LAST: Duration = Duration::from_millis(500);

/// Outcome of the work of a session.
enum Ended {
    Shutdown,
    /// The relay shuts down, but the work did not stop: a call does not return.
    ShutdownWithoutAnswer,
    Interrupted(Interruption),
}

impl From<Stop> for Ended {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Shutdown => Self::Shutdown,
            Stop::Interrupted(interruption) => Self::Interrupted(interruption),
        }
    }
}

impl Relay {
    /// Runs one session as a task. Takes the state of the last session, and returns the state for
    /// the next.
    pub(super) async fn run_session(
        self: Arc<Self>,
        mut carried: Carried,
        dropped: CancellationToken,
        shutdown: CancellationToken,
    ) -> (Carried, Result<Option<RelayError>, Interruption>) {
        let led = AssertUnwindSafe(self.lead(&mut carried, &dropped, &shutdown))
            .catch_unwind()
            .await;
        let outcome = led.unwrap_or_else(|panic| {
            // State that the session had taken out may be incomplete.
            carried = Carried {
                epoch: carried.epoch,
                direct: carried.direct,
                ..Carried::default()
            };
            Err(Interruption::panicked(&*panic))
        });
        (carried, outcome)
    }

    /// Waits for the lease and works under it.
    async fn lead(
        &self,
        carried: &mut Carried,
        dropped: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<Option<RelayError>, Interruption> {
        self.observer.pulse().step("looking for a pooler");
        if !carried.direct {
            tokio::select! {
                direct = pooler::require_direct(&self.options) => direct?,
                () = shutdown.cancelled() => return Ok(None),
            }
            carried.direct = true;
        }
        let lease = tokio::select! {
            lease = Lease::acquire(&self.options, &self.observer, dropped) => lease?,
            () = shutdown.cancelled() => return Ok(None),
        };
        if !carried.has_connections {
            tokio::select! {
                enough = pooler::require_connections(&self.options) => enough?,
                () = lease.lost().cancelled() => return Err(Interruption::LeaseLost),
                () = shutdown.cancelled() => return Ok(None),
            }
            carried.has_connections = true;
        }
        let lost = lease.lost().clone();
        let outcome = tokio::select! {
            outcome = self.session(carried, &lost, shutdown) => outcome,
            // A session ends by itself when the lease is lost, unless it hangs on a connection that
            // is as dead as the lease.
            () = async {
                lost.cancelled().await;
                tokio::time::sleep(DRAIN_AFTER_INTERRUPTION * 2).await
            } => Err(Interruption::LeaseLost),
        };
        lease.release().await;
        outcome
    }

    /// Runs one session, from its preparation to the drain.
    async fn session(
        &self,
        carried: &mut Carried,
        lost: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<Option<RelayError>, Interruption> {
        let (options, observer) = (&self.options, &self.observer);
        observer.pulse().held(None);
        let ready = tokio::select! {
            ready = self.prepare(carried, lost, shutdown) => ready?,
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
            () = shutdown.cancelled() => return Ok(None),
        };
        let Ready {
            server,
            names,
            table_layout,
            mut pipeline,
            moved,
        } = ready;
        let (log_unusable, log_silent) = (carried.log_unusable, carried.log_silent);
        let (server, names, table_layout) = (&server, &names, &table_layout);
        let source = SourceSelector {
            options,
            server,
            names,
            table_layout,
            moved,
            observer,
            log_unusable,
            log_silent,
        };
        observer.pulse().step("reading the outbox");
        let ended = tokio::select! {
            stop = source.run(&mut pipeline) => match stop {
                Ok(never) => match never {},
                Err(stop) => Ended::from(stop),
            },
            () = retention::run(options, &server.identity, carried.epoch, observer) => {
                Ended::Interrupted(Interruption::LeaseLost)
            }
            error = scheduler::run(options, observer) => Ended::Interrupted(error),
            // A relay without the lease stops, whatever its work waits for.
            () = lost.cancelled() => Ended::Interrupted(Interruption::LeaseLost),
            // Every loop of the pipeline ends at once, but not a statement that the server does not
            // answer.
            () = async {
                shutdown.cancelled().await;
                tokio::time::sleep(options.shutdown_grace / 2).await
            } => Ended::ShutdownWithoutAnswer,
        };
        self.drain(ended, pipeline, carried).await
    }

    /// Ends a session: waits for the records in flight, stores the position if possible, and keeps
    /// the state that the next session can use.
    async fn drain(
        &self,
        ended: Ended,
        mut pipeline: Pipeline,
        carried: &mut Carried,
    ) -> Result<Option<RelayError>, Interruption> {
        if let Ended::Interrupted(interruption) = &ended {
            self.observer
                .interrupted(part(interruption), interruption.explained());
        } else {
            tracing::info!(
                under_way = pipeline.publisher().sink().acks().under_way().0,
                "stops reading and waits for the records in flight"
            );
        }
        self.observer
            .pulse()
            .step("waiting for the records in flight");
        let grace = match &ended {
            Ended::Shutdown => self.options.shutdown_grace,
            Ended::ShutdownWithoutAnswer => self.options.shutdown_grace / 4,
            Ended::Interrupted(_) => DRAIN_AFTER_INTERRUPTION,
        };
        let deadline = Instant::now() + grace;
        let may_commit = match &ended {
            Ended::Shutdown => true,
            // The dropped work may have sent an event without recording it. The next session sends
            // the batch again.
            Ended::ShutdownWithoutAnswer => false,
            // The producer of the next leader fences off this one.
            Ended::Interrupted(interruption) => !matches!(interruption, Interruption::LeaseLost),
        };
        let drained = may_commit && matches!(timeout(grace, pipeline.drain()).await, Ok(true));
        match ended {
            Ended::Interrupted(interruption) => {
                self.hand_over(&interruption, drained, pipeline, carried)
                    .await;
                Err(interruption)
            }
            Ended::Shutdown | Ended::ShutdownWithoutAnswer => {
                self.finish(drained, deadline, pipeline).await
            }
        }
    }

    /// Stores the last position and leaves the slot in an orderly state. Returns an error if events
    /// may be published again.
    async fn finish(
        &self,
        drained: bool,
        deadline: Instant,
        mut pipeline: Pipeline,
    ) -> Result<Option<RelayError>, Interruption> {
        let until = deadline.max(Instant::now() + STORE_LAST);
        match timeout_at(until, pipeline.tick()).await {
            Ok(stored) => stored?,
            Err(_) => tracing::warn!(
                "the database does not answer: the last position is not stored there; the next \
                 start reads it from Kafka (exactly once) or repeats events (at least once)"
            ),
        }
        pipeline.end_stream().await;
        let sink = pipeline.publisher().sink();
        let under_way = sink.acks().under_way().0;
        let is_safe = drained || (under_way == 0 && sink.is_settled());
        if drained {
            let time = deadline.saturating_duration_since(Instant::now());
            pipeline.confirm_rest(&self.options, time).await;
        }
        Ok((!is_safe).then_some(RelayError::GraceExceeded {
            under_way,
            grace: self.options.shutdown_grace,
        }))
    }

    /// Keeps the state that the next session can use.
    async fn hand_over(
        &self,
        interruption: &Interruption,
        drained: bool,
        mut pipeline: Pipeline,
        carried: &mut Carried,
    ) {
        if matches!(interruption, Interruption::BatchRefused(_)) {
            until_reported(pipeline.publisher().sink().acks()).await;
        }
        carried.isolation = pipeline.publisher_mut().take_isolation(drained);
        carried.topic_faults = Some(pipeline.publisher_mut().take_faults());
        if !drained {
            carried.failed = Some(pipeline.publisher().sink().acks().clone());
            return;
        }
        // An operator who moves the position past an event must not move it past published events.
        // The database may be the cause of the interruption; the position in Kafka is durable
        // nevertheless.
        if let Err(error) = pipeline.tick().await {
            tracing::debug!("{}", error.full());
        }
        let (position, number) = pipeline.durable();
        let (position, number) = (position.clone(), number);
        carried.settled = Some((pipeline.into_publisher(), position, number));
    }
}
