//! One session of a relay: start, run, drain.
//!
//! ```text
//! lease ─▶ take over the row ─▶ Kafka answers ─▶ recovery ─▶ source selector ─▶ drain ─▶ what the next session can use
//! ```

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Relay, handover::Carried, part};
use crate::relay::{
    Delivery, RelayError,
    error::Interruption,
    leadership::{
        lease::Lease,
        relay_store::{Ledger, Saved, within},
    },
    maintenance::{retention, scheduler},
    monitor::metrics::Part,
    parked::store,
    pipeline::{
        Pipeline, Stop,
        publisher::{EventPublisher, until_reported},
    },
    position::Position,
    row::table_layout::{self, Shape},
    source::selector::SourceSelector,
    startup::{
        names::{self, KafkaNames, LogNames},
        pooler, preflight,
        recovery::{self, Start},
        server,
    },
};

/// The time for which an interrupted session waits for the records that it has sent. If Kafka responds within it, the next
/// session repeats nothing.
const DRAIN_AFTER_INTERRUPTION: Duration = Duration::from_secs(10);

/// The time within which the last position is stored if the grace is over by then.
const STORE_LAST: Duration = Duration::from_millis(500);

/// A session that is ready to read.
struct Ready {
    server: server::Server,
    names: LogNames,
    shape: Shape,
    pipeline: Pipeline,
    moved: bool,
}

/// How the work of a session ended.
enum Ended {
    Shutdown,
    /// The relay is shut down, and the work did not stop: a call does not return.
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
    /// One session as a task of its own: takes what the last one left, and returns what it leaves.
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
            // What the session had taken out to work on is not whole any more.
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
            // The session ends by itself when the lease is lost, unless it hangs on a connection that is as dead as the lease.
            () = async { lost.cancelled().await; tokio::time::sleep(DRAIN_AFTER_INTERRUPTION * 2).await } => Err(Interruption::LeaseLost),
        };
        lease.release().await;
        outcome
    }

    /// One session: from the relay's row to the end of a stream.
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
            shape,
            mut pipeline,
            moved,
        } = ready;
        let (log_unusable, log_silent) = (carried.log_unusable, carried.log_silent);
        let (server, names, shape) = (&server, &names, &shape);
        let source = SourceSelector {
            options,
            server,
            names,
            shape,
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
            () = retention::run(options, &server.identity, carried.epoch, observer) => Ended::Interrupted(Interruption::LeaseLost),
            error = scheduler::run(options, observer) => Ended::Interrupted(error),
            // Whatever the work waits for: a relay that does not lead any more stops.
            () = lost.cancelled() => Ended::Interrupted(Interruption::LeaseLost),
            // Every loop of the pipeline ends at once. A statement that the server does not answer does not.
            () = async { shutdown.cancelled().await; tokio::time::sleep(options.shutdown_grace / 2).await } => Ended::ShutdownWithoutAnswer,
        };
        self.drain(ended, pipeline, carried).await
    }

    /// Everything that a session needs before it reads.
    async fn prepare(
        &self,
        carried: &mut Carried,
        lost: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<Ready, Interruption> {
        let (options, observer) = (&self.options, &self.observer);
        observer.pulse().step("looking whether a relay may start");
        preflight::require(options).await?;
        observer.pulse().step("taking over the relay's row");
        let (mut ledger, saved) = Ledger::take_over(options).await?;
        observer.note(Part::Database, "connected");
        carried.compare_clocks(ledger.clock());
        require_forward(carried.epoch, ledger.epoch())?;
        let alone = ledger.epoch() == carried.epoch + 1;
        carried.epoch = ledger.epoch();
        observer.note(Part::Lease, format!("leads, epoch {}", ledger.epoch()));
        observer.pulse().step("looking at the database");
        let shape = table_layout::examine(options, ledger.session()).await?;
        let server = server::examine(ledger.session()).await?;
        let names = names::log_names(
            options.subject(),
            ledger.session(),
            &server.identity,
            &saved.names,
        );
        let names = within("looking for the relay's slot and publication", names).await?;
        ledger.keep_names(options, &names).await?;
        carried.learn(&options.kafka).await?;
        let settled = carried
            .settled
            .take()
            .filter(|_| alone && saved.moved_to.is_none() && saved.given_up.is_empty());
        let settled = settled.filter(|_| {
            ledger.topic_changes() == carried.topic_changes && !carried.isolation.wants_trial()
        });
        carried.topic_changes = ledger.topic_changes();
        observer
            .pulse()
            .step("starting the producers and reading the position");
        let (mut publisher, mut start) = self
            .start(&server, saved, &mut ledger, settled, carried, lost)
            .await?;
        observer.pulse().step("reading what is parked");
        let shape = shape
            .judge(options, ledger.session(), &start.position)
            .await?;
        // Released before the last session ended, and still on the table.
        let released = std::mem::take(&mut start.position.released);
        if !released.is_empty() {
            store::delete(&mut ledger, &released).await?;
        }
        if let Some(faults) = carried.topic_faults.take() {
            publisher.take_up_faults(faults);
        }
        // Of a Debezium table nothing is parked.
        if options.debezium.is_none() {
            publisher.load_parked(store::load(&mut ledger).await?);
        }
        // In this order: a growth that ends in between is then seen by its partitions, and not by its hold.
        publisher.hold_back(ledger.take_up_holds().await?);
        publisher.pin(ledger.pinned().await?);
        let moved = start.moved;
        let tokens = (lost.clone(), shutdown.clone());
        let mut pipeline =
            Pipeline::new(options, &names, start, ledger, publisher, observer, tokens);
        if moved {
            pipeline.end_batch().await?;
        }
        pipeline.report_parked();
        // Last: from here on the end of the session gives it back.
        pipeline
            .publisher_mut()
            .isolate(std::mem::take(&mut carried.isolation));
        Ok(Ready {
            server,
            names,
            shape,
            pipeline,
            moved,
        })
    }

    /// A producer, and where the relay goes on.
    async fn start(
        &self,
        server: &server::Server,
        saved: Saved,
        ledger: &mut Ledger,
        settled: Option<(EventPublisher, Position, u64)>,
        carried: &mut Carried,
        lost: &CancellationToken,
    ) -> Result<(EventPublisher, Start), Interruption> {
        let (options, observer) = (&self.options, &self.observer);
        let names = KafkaNames::new(&options.name, &server.identity, &options.schema);
        if let Some((mut publisher, position, number)) = settled {
            publisher.go_on(&names, server, ledger, number);
            return Ok((
                publisher,
                Start {
                    position,
                    number,
                    moved: false,
                },
            ));
        }
        let (batch_bytes_max, transaction_timeout) = carried.limits();
        let transactional = match options.delivery {
            Delivery::ExactlyOnce => names.transactional(transaction_timeout),
            Delivery::AtLeastOnce => Vec::new(),
        };
        let stamps = (ledger.clock(), carried.stamping);
        let mut publisher = EventPublisher::open(
            options,
            &saved.event_source,
            observer,
            batch_bytes_max,
            &transactional,
            stamps,
        )?;
        let cluster = publisher.reach_cluster().await?;
        let session = recovery::Session {
            options,
            server,
            names: &names,
            cluster: &cluster,
            observer,
            lost,
        };
        let start = recovery::resume(session, saved, ledger, &mut publisher).await?;
        tracing::info!(
            relay = options.name,
            epoch = ledger.epoch(),
            cluster,
            delivery = options.delivery.word(),
            "leads"
        );
        Ok((publisher, start))
    }

    /// Ends a session: waits for what was sent, stores it if that is still possible, and keeps what the next session can use.
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
                "stops reading and waits for what is under way"
            );
        }
        self.observer.pulse().step("waiting for what is under way");
        let grace = match &ended {
            Ended::Shutdown => self.options.shutdown_grace,
            Ended::ShutdownWithoutAnswer => self.options.shutdown_grace / 4,
            Ended::Interrupted(_) => DRAIN_AFTER_INTERRUPTION,
        };
        let deadline = Instant::now() + grace;
        let may_commit = match &ended {
            Ended::Shutdown => true,
            // The work that was dropped may have sent an event without recording it: the next session sends the batch again.
            Ended::ShutdownWithoutAnswer => false,
            // The producer of the next leader fences this one off.
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

    /// Stores the last position and leaves the slot in order. Returns an error if events may be published again.
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
                "the database does not answer: the position is not stored, and is read from Kafka again"
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

    /// Keeps what the next session can use.
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
        // An operator who moves the position past an event must not move it past events that are published. The database may
        // be what interrupted the session; the position in Kafka is durable all the same.
        if let Err(error) = pipeline.tick().await {
            tracing::debug!("{}", error.full());
        }
        let (position, number) = pipeline.durable();
        let (position, number) = (position.clone(), number);
        carried.settled = Some((pipeline.into_publisher(), position, number));
    }
}

/// An epoch only counts up.
fn require_forward(before: i64, now: i64) -> Result<(), Interruption> {
    if now > before {
        return Ok(());
    }
    Err(Interruption::Refused(format!(
        "the database has gone back in time: this relay led under epoch {before} and finds epoch {} (a restore, or a fail-over that lost commits); events that were published may not exist any more. Started again, the relay compares its position with what the database has",
        now - 1
    )))
}
