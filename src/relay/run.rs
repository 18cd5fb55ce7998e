//! The relay: options in, events out. Supervises one session after the other.
//!
//! ```text
//!          ┌──────────────── again, after a while ◀───────────── what passes by itself ──┐
//!          ▼                                                                              │
//!   lease (stand by) ─▶ take over the row ─▶ slot ─▶ Kafka answers ─▶ backlog ─▶ stream ──┼─▶ a person is needed: end
//!                                                                                          └─▶ shutdown: drain, confirm, end
//! ```

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Observer, RelayError, RelayOptions,
    checkpoint::Checkpointer,
    error::{Interruption, Meaning},
    forward::Forwarder,
    lease::Lease,
    ledger::Ledger,
    observe::Part,
    options::is_relay_name,
    position::Position,
    route::TopicTemplate,
    slot,
    source::{table, wal},
    watermark::Watermark,
};
use crate::postgres::{Lsn, replication::Connection};

/// First and longest wait between two sessions.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A session this long was a good one: the next wait is the first again.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// How long an interrupted session waits for what it has sent. If Kafka answers within it, the next session repeats nothing.
const SETTLE: Duration = Duration::from_secs(10);

/// A relay that is ready to run.
pub struct Relay {
    options: RelayOptions,
    observer: Observer,
}

/// How far the last session got, when all it had sent was acknowledged: the next one repeats nothing.
#[derive(Clone, Copy)]
struct Reached {
    safe: Position,
    confirmed: Lsn,
}

/// What one session leaves to the next.
#[derive(Default)]
struct Carried {
    forwarder: Option<Forwarder>,
    reached: Option<Reached>,
    /// The epoch under which this process led last.
    epoch: i64,
}

impl Relay {
    /// A relay with these options; nothing is connected yet.
    ///
    /// # Errors
    /// [`RelayError::Options`] names an option that cannot be used.
    pub fn new(options: RelayOptions) -> Result<Self, RelayError> {
        let name = &options.name;
        if !is_relay_name(name) {
            return Err(RelayError::Options(format!("`{name}` is no name for a relay: lower case letters, digits and `_`, 40 at most")));
        }
        TopicTemplate::parse(&options.topic)
            .map_err(|error| RelayError::Options(format!("topic template `{}`: {error}", options.topic)))?;
        Ok(Self { options, observer: Observer::new() })
    }

    /// What it shows of itself.
    pub fn observer(&self) -> Observer {
        self.observer.clone()
    }

    /// Runs until `shutdown` is cancelled (then drains and returns `Ok`) or until a person is needed.
    ///
    /// # Errors
    /// [`RelayError::Refused`] says what happened and what to do; [`RelayError::GraceExceeded`] if draining took too long.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RelayError> {
        let mut carried = Carried::default();
        let backoff = ExponentialBuilder::default()
            .with_min_delay(RETRY.0)
            .with_max_delay(RETRY.1)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        let mut waits = backoff.build();
        loop {
            let began = Instant::now();
            let interruption = match self.lead(&mut carried, &shutdown).await {
                Ok(None) => return Ok(()),
                Ok(Some(exceeded)) => return Err(exceeded),
                Err(interruption) => interruption,
            };
            let text = interruption.full();
            match interruption.meaning() {
                Meaning::NeedsPerson(remedy) => return Err(RelayError::Refused(remedy)),
                Meaning::ProducerBroken => {
                    carried = Carried { epoch: carried.epoch, ..Carried::default() };
                    self.observer.failing(Part::Kafka, text.clone());
                    self.observer.reconnected("kafka");
                }
                Meaning::Transient => {
                    self.observer.failing(Part::Stream, text.clone());
                    self.observer.reconnected("postgres");
                }
            }
            self.observer.leader(false);
            if began.elapsed() > GOOD_SESSION {
                waits = backoff.build();
            }
            let wait = waits.next().unwrap_or(RETRY.1);
            tracing::warn!("{text}; tries again in {} ms", wait.as_millis());
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Waits for the lease and works under it.
    async fn lead(&self, carried: &mut Carried, shutdown: &CancellationToken) -> Result<Option<RelayError>, Interruption> {
        let lease = tokio::select! {
            lease = Lease::acquire(&self.options, &self.observer) => lease.inspect_err(|error| self.observer.failing(Part::Database, error.full()))?,
            () = shutdown.cancelled() => return Ok(None),
        };
        let lost = lease.lost().clone();
        let outcome = tokio::select! {
            outcome = self.session(carried, &lost, shutdown) => outcome,
            // The session ends by itself when the lease is lost, unless it hangs on a connection that is as dead as the lease.
            () = async { lost.cancelled().await; tokio::time::sleep(SETTLE * 2).await } => Err(Interruption::LeaseLost),
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
        let (mut ledger, saved) = Ledger::take_over(options).await?;
        observer.ok(Part::Database, "connected");
        if ledger.epoch() <= carried.epoch {
            return Err(Interruption::Refused(format!(
                "the database has gone back in time: this relay led under epoch {} and finds epoch {} (a restore, or a fail-over that lost commits); events that were published may not exist any more. Started again, the relay goes on from the position that the database has",
                carried.epoch,
                ledger.epoch() - 1
            )));
        }
        carried.epoch = ledger.epoch();
        observer.ok(Part::Lease, format!("leads, epoch {}", ledger.epoch()));
        let mut forwarder = match carried.forwarder.take() {
            Some(forwarder) => forwarder,
            None => Forwarder::open(options, observer)?,
        };
        forwarder.pin(ledger.pinned().await?);
        let saved = tokio::select! {
            ensured = slot::ensure(options, &mut ledger, saved) => ensured?,
            () = shutdown.cancelled() => return Ok(None),
        };
        tokio::select! {
            id = forwarder.reach_cluster() => tracing::info!(relay = options.name, epoch = ledger.epoch(), cluster = id, "leads"),
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
            () = shutdown.cancelled() => return Ok(None),
        }
        if let Some(backlog) = &saved.backlog
            && !table::publish(options, backlog, &mut forwarder, &mut ledger, lost, shutdown).await?
        {
            return Ok(None);
        }
        // The next session must not start before what this one has confirmed, nor repeat what it knows to be acknowledged.
        let done = saved.position.unwrap_or_default().max(carried.reached.map_or(Position::default(), |reached| reached.safe));
        let confirmed = carried.reached.take().map(|reached| reached.confirmed);
        let application = options.database.application_name("relay stream");
        let connection =
            Connection::open(&options.database, &application).await.map_err(Interruption::replication("connecting for replication"))?;
        let name = slot::slot_name(&options.name);
        // The server starts where the slot stands if that is further.
        let from = confirmed.unwrap_or_default();
        let (reader, status) = connection.stream(&name, &name, from).await.map_err(Interruption::replication("starting the stream"))?;
        tracing::info!(slot = name, after = %done.commit_lsn, "streams the log");
        let mut source = wal::WalSource::new(reader, options, done);
        let watermark = Watermark::new(done, from);
        let mut books = Checkpointer::new(&options.name, watermark, ledger, status, observer, lost.clone());
        let outcome = source.run(&mut forwarder, &mut books, observer, lost, shutdown).await;
        self.settle(outcome, forwarder, books, carried).await
    }

    /// After a stream: waits for what was sent, stores it if that is still possible, and keeps what the next session can use.
    async fn settle(
        &self,
        outcome: Result<(), Interruption>,
        mut forwarder: Forwarder,
        mut books: Checkpointer,
        carried: &mut Carried,
    ) -> Result<Option<RelayError>, Interruption> {
        let grace = if outcome.is_ok() { self.options.shutdown_grace } else { SETTLE };
        if outcome.is_ok() {
            tracing::info!(under_way = forwarder.sink().acks().under_way().0, "stops reading and waits for what is under way");
        }
        let drained = timeout(grace, forwarder.sink().drained()).await.is_ok() && forwarder.sink().failure().is_none();
        match outcome {
            Ok(()) => {
                books.store(&mut forwarder).await?;
                books.finish().await;
                let under_way = forwarder.sink().acks().under_way().0;
                Ok((!drained).then_some(RelayError::GraceExceeded { under_way, grace }))
            }
            Err(interruption) => {
                if drained && matches!(interruption, Interruption::Refused(_)) {
                    // So that a person who moves the position past an event moves it past nothing else.
                    books.store(&mut forwarder).await?;
                }
                if drained {
                    books.watermark.acknowledged(forwarder.sink().durable());
                    carried.reached = Some(Reached { safe: books.watermark.safe(), confirmed: books.watermark.confirmed() });
                    carried.forwarder = Some(forwarder);
                }
                Err(interruption)
            }
        }
    }
}
