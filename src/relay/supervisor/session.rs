//! One session of a relay: start, run, drain.
//!
//! ```text
//! lease ─▶ take over the row ─▶ Kafka answers ─▶ recovery ─▶ source selector ─▶ drain ─▶ handover
//! ```

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Relay, handover::Carried, part, prepare::Ready, undrained::Undrained};
use crate::relay::{
    RelayError,
    error::{Interruption, Meaning},
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

/// End of a session.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The relay has shut down. The error names the events that are not durable.
    ShutDown(Result<(), RelayError>),
    /// The supervisor decides how the relay continues.
    Interrupted(Interruption),
}

impl From<Stop> for SessionEnd {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Shutdown => Self::ShutDown(Ok(())),
            Stop::Interrupted(interruption) => Self::Interrupted(interruption),
        }
    }
}

/// Time limit of a drain: [`DRAIN_AFTER_INTERRUPTION`], or the shutdown grace from the moment at
/// which the relay is shut down.
struct DrainLimit<'s> {
    shutdown: &'s CancellationToken,
    grace: Duration,
    ends: Instant,
}

impl<'s> DrainLimit<'s> {
    fn new(shutdown: &'s CancellationToken, grace: Duration) -> Self {
        Self {
            shutdown,
            grace,
            ends: Instant::now() + DRAIN_AFTER_INTERRUPTION,
        }
    }

    /// Waits until the limit is reached.
    async fn reached(&mut self) {
        if timeout_at(self.ends, self.shutdown.cancelled())
            .await
            .is_ok()
        {
            self.ends = Instant::now() + self.grace;
            sleep_until(self.ends).await;
        }
    }

    /// Returns the end of the grace, for the work after the drain of a relay that shuts down.
    fn end_of_grace(&self) -> Instant {
        self.ends.min(Instant::now() + self.grace)
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
    ) -> (Carried, SessionEnd) {
        let led = AssertUnwindSafe(self.lead(&mut carried, &dropped, &shutdown))
            .catch_unwind()
            .await;
        let end = led.unwrap_or_else(|panic| {
            carried = carried.without_session();
            Err(Interruption::panicked(&*panic).into())
        });
        (carried, end.unwrap_or_else(SessionEnd::from))
    }

    /// Waits for the lease and works under it.
    async fn lead(
        &self,
        carried: &mut Carried,
        dropped: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<SessionEnd, Stop> {
        self.observer.pulse().step("looking for a pooler");
        if !carried.direct {
            tokio::select! {
                direct = pooler::require_direct(&self.options) => direct?,
                () = shutdown.cancelled() => return Err(Stop::Shutdown),
            }
            carried.direct = true;
        }
        let lease = tokio::select! {
            lease = Lease::acquire(&self.options, &self.observer, dropped) => lease?,
            () = shutdown.cancelled() => return Err(Stop::Shutdown),
        };
        if !carried.has_connections {
            tokio::select! {
                enough = pooler::require_connections(&self.options) => enough?,
                () = lease.lost().cancelled() => return Err(Interruption::LeaseLost.into()),
                () = shutdown.cancelled() => return Err(Stop::Shutdown),
            }
            carried.has_connections = true;
        }
        let lost = lease.lost().clone();
        let end = tokio::select! {
            end = self.session(carried, &lost, shutdown) => end,
            // A session ends by itself when the lease is lost, unless it hangs on a connection that
            // is as dead as the lease.
            () = async {
                lost.cancelled().await;
                sleep(DRAIN_AFTER_INTERRUPTION * 2).await
            } => Err(Interruption::LeaseLost.into()),
        };
        lease.release().await;
        end
    }

    /// Runs one session, from its preparation to the drain.
    async fn session(
        &self,
        carried: &mut Carried,
        lost: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<SessionEnd, Stop> {
        let (options, observer) = (&self.options, &self.observer);
        observer.pulse().held(None);
        let ready = tokio::select! {
            ready = self.prepare(carried, lost, shutdown) => ready?,
            () = lost.cancelled() => return Err(Interruption::LeaseLost.into()),
            () = shutdown.cancelled() => return Err(Stop::Shutdown),
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
        let stop = tokio::select! {
            stop = source.run(&mut pipeline) => match stop {
                Ok(never) => match never {},
                Err(stop) => stop,
            },
            () = retention::run(options, &server.identity, carried.epoch, observer) => {
                Interruption::LeaseLost.into()
            }
            error = scheduler::run(options, observer) => error.into(),
            // A relay without the lease stops, whatever its work waits for.
            () = lost.cancelled() => Interruption::LeaseLost.into(),
            // Every loop of the pipeline ends at once, but not a statement that the server does not
            // answer.
            () = async {
                shutdown.cancelled().await;
                sleep(options.shutdown_grace / 2).await
            } => return self.abandon(pipeline).await,
        };
        self.drain(stop, pipeline, carried, shutdown).await
    }

    /// Ends a session whose work does not respond to a shutdown. The dropped work may have sent an
    /// event without recording it. The next session sends the batch again.
    async fn abandon(&self, pipeline: Pipeline) -> Result<SessionEnd, Stop> {
        let step = self.observer.pulse().current_step();
        self.stops_reading(&pipeline);
        let late = Undrained::Late(format!("the session still was {step}"));
        let deadline = Instant::now() + self.options.shutdown_grace / 4;
        self.finish(Err(late), deadline, pipeline).await
    }

    fn stops_reading(&self, pipeline: &Pipeline) {
        tracing::info!(
            under_way = pipeline.publisher().sink().outstanding().records(),
            "stops reading and waits for the records in flight"
        );
        self.observer
            .pulse()
            .step("waiting for the records in flight");
    }

    /// Ends a session: waits for the records in flight, stores the position if possible, and keeps
    /// the state that the next session can use.
    async fn drain(
        &self,
        stop: Stop,
        mut pipeline: Pipeline,
        carried: &mut Carried,
        shutdown: &CancellationToken,
    ) -> Result<SessionEnd, Stop> {
        if let Stop::Interrupted(interruption) = &stop {
            self.observer
                .interrupted(part(interruption), interruption.explained());
        }
        self.stops_reading(&pipeline);
        let mut limit = DrainLimit::new(shutdown, self.options.shutdown_grace);
        let drained = match &stop {
            // The producer of the next leader fences off this one.
            Stop::Interrupted(Interruption::LeaseLost) => {
                Err(Undrained::Failed(Interruption::LeaseLost))
            }
            Stop::Shutdown | Stop::Interrupted(_) => in_time(&mut limit, &mut pipeline).await,
        };
        match stop {
            Stop::Interrupted(interruption) if !self.ends_with(&interruption, shutdown) => {
                self.hand_over(&interruption, drained.is_ok(), pipeline, carried)
                    .await;
                Err(interruption.into())
            }
            Stop::Interrupted(_) | Stop::Shutdown => {
                self.finish(drained, limit.end_of_grace(), pipeline).await
            }
        }
    }

    /// Returns `true` if no session follows this one, because the relay shuts down. A relay that
    /// needs an operator reports that instead. If the lease is lost, the relay that leads now
    /// publishes the events.
    fn ends_with(&self, interruption: &Interruption, shutdown: &CancellationToken) -> bool {
        shutdown.is_cancelled()
            && !matches!(interruption, Interruption::LeaseLost)
            && !matches!(interruption.meaning(), Meaning::NeedsPerson(_))
    }

    /// Stores the last position and leaves the slot in an orderly state. Returns an error if events
    /// may be published again.
    async fn finish(
        &self,
        drained: Result<(), Undrained>,
        deadline: Instant,
        mut pipeline: Pipeline,
    ) -> Result<SessionEnd, Stop> {
        // The end of a trial would interrupt the session before the position is stored.
        let _ = pipeline.publisher_mut().take_isolation(drained.is_ok());
        let until = deadline.max(Instant::now() + STORE_LAST);
        let problem = match timeout_at(until, pipeline.tick()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) if matches!(error.meaning(), Meaning::NeedsPerson(_)) => {
                return Err(error.into());
            }
            Ok(Err(error)) => Some(error.explained()),
            Err(_) => Some("the database does not answer".to_owned()),
        };
        if let Some(problem) = problem {
            tracing::warn!(
                "the last position is not stored in the database: {problem}; the next start reads \
                 it from Kafka (exactly once) or repeats events (at least once)"
            );
        }
        pipeline.end_stream().await;
        let outcome = match drained {
            Ok(()) => {
                let time = deadline.saturating_duration_since(Instant::now());
                pipeline.confirm_rest(&self.options, time).await;
                Ok(())
            }
            Err(undrained) => {
                let outstanding = pipeline.publisher().sink().outstanding();
                undrained.outcome(outstanding, self.options.shutdown_grace)
            }
        };
        Ok(SessionEnd::ShutDown(outcome))
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

/// Drains the pipeline within the limit.
async fn in_time(limit: &mut DrainLimit<'_>, pipeline: &mut Pipeline) -> Result<(), Undrained> {
    let waiting = tokio::select! {
        biased;
        drained = pipeline.drain() => return drained.map_err(Undrained::Failed),
        () = limit.reached() => match pipeline.parked().is_stored() {
            true => "it waited for Kafka to acknowledge or commit them",
            false => "it was storing parked events",
        },
    };
    Err(Undrained::Late(waiting.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the seconds after which the limit of a drain is reached.
    async fn reached_after(shutdown_after: Option<u64>, grace: u64) -> (u64, u64) {
        let (shutdown, began) = (CancellationToken::new(), Instant::now());
        let mut limit = DrainLimit::new(&shutdown, Duration::from_secs(grace));
        let shutting_down = async {
            if let Some(seconds) = shutdown_after {
                sleep(Duration::from_secs(seconds)).await;
                shutdown.cancel();
            }
        };
        tokio::join!(limit.reached(), shutting_down);
        let rest = limit.end_of_grace().saturating_duration_since(began);
        (began.elapsed().as_secs(), rest.as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_has_the_grace_from_the_shutdown_on_and_ten_seconds_without_one() {
        assert_eq!(reached_after(None, 30).await, (10, 10));
        assert_eq!(reached_after(Some(0), 30).await, (30, 30));
        assert_eq!(reached_after(Some(4), 30).await, (34, 34));
        assert_eq!(reached_after(Some(4), 3).await, (7, 7));
    }
}
