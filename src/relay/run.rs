//! The relay: options in, events out. Supervises one session after the other.
//!
//! ```text
//!          ┌──────────────── again, after a while ◀───────────── what passes by itself ──┐
//!          ▼                                                                              │
//!   lease (stand by) ─▶ take over the row ─▶ Kafka answers ─▶ resume ─▶ drive: table, log ─┼─▶ a person is needed: end
//!                                                                                          └─▶ shutdown: drain, confirm, end
//! ```

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Delivery, Observer, OnUndeliverable, RelayError, RelayOptions,
    books::Books,
    debezium,
    drive::Drive,
    error::{Interruption, Meaning},
    forward::{BatchIsolation, Forwarder},
    lease::Lease,
    ledger::{Ledger, Saved},
    observe::Part,
    options::{is_dead_letter_topic, is_relay_name},
    parked, pooler,
    position::Position,
    resume::{self, Names, Start},
    retention,
    route::TopicTemplate,
    scheduled, server, transaction_timeout,
};
use crate::kafka::{Acks, Failure};

/// First and longest wait between two sessions.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A session this long was a good one: the next wait is the first again.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// How long an interrupted session waits for what it has sent. If Kafka answers within it, the next session repeats nothing.
const SETTLE: Duration = Duration::from_secs(10);

/// The label of a record that holds a position; events have theirs from one on.
const POSITION: i64 = 0;

/// A relay that is ready to run.
pub struct Relay {
    options: RelayOptions,
    observer: Observer,
}

/// What one session leaves to the next.
#[derive(Default)]
struct Carried {
    /// A producer whose records are all safe, and where that leaves the relay.
    settled: Option<(Forwarder, Position, u64)>,
    /// The epoch under which this process led last.
    epoch: i64,
    /// No pooler stands between.
    direct: bool,
    /// What the producer knows of topics belongs to this count of their changes.
    topic_changes: i64,
    /// The slot's log could not be decoded.
    log_unusable: bool,
    /// Whom refused batches have put under suspicion, and what the last producer, if it failed, knows of one.
    isolation: BatchIsolation,
    failed: Option<Arc<Acks>>,
    /// Batches larger than this were refused, it may be for nothing but their size.
    batch_bytes_max: Option<usize>,
    /// The time limit of transactions, once the brokers have refused a longer one.
    transaction_timeout: Option<Duration>,
}

impl Carried {
    /// The largest batch and the longest transaction.
    fn limits(&self) -> (usize, Duration) {
        (self.batch_bytes_max.unwrap_or(usize::MAX), self.transaction_timeout.unwrap_or(transaction_timeout::WANTED))
    }

    /// Takes note of what a producer that failed knows of a refused batch.
    fn learn(&mut self) -> Result<(), Interruption> {
        let failed = self.failed.take();
        // By now it has told of every record: a producer fails a moment before it does.
        if let Some((acks, Failure::Refused(reason))) = failed.and_then(|acks| acks.failure().map(|failure| (acks, failure))) {
            let (refused, bytes) = acks.refused();
            let refused: Vec<i64> = refused.into_iter().filter(|seq| *seq != POSITION).collect();
            if refused.is_empty() {
                return Err(Interruption::Refused(format!("the relay's own position cannot be stored: {reason}")));
            }
            if refused.len() > 1 {
                tracing::warn!(events = refused.len(), "sends one by one what was in the batch that was refused");
                // A topic takes batches of its max.message.bytes, too. Half of one that is too large is never less than half of that.
                self.batch_bytes_max = Some(self.batch_bytes_max.unwrap_or(usize::MAX).min(bytes / 2));
            }
            self.isolation.accuse(&refused, &reason);
        }
        Ok(())
    }
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
        let dead = &options.undeliverable.dead_letter_topic;
        if !is_dead_letter_topic(dead) {
            return Err(RelayError::Options(format!(
                "`{dead}` is no topic for dead letters: letters, digits, `.`, `_`, `-` and {{topic}}, not alone"
            )));
        }
        if options.debezium.is_some() && options.undeliverable.policy == OnUndeliverable::Park {
            return Err(RelayError::Options(
                "events of a Debezium table cannot be parked, because nothing keeps their rows: set the policy for undeliverable ones to DeadLetter or Stop".into(),
            ));
        }
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
            // A command waits for it.
            let by_command = matches!(interruption, Interruption::TopicsChanged);
            carried.log_unusable = interruption.log_is_unusable();
            if let Interruption::TransactionTimeout(refused) = interruption {
                match transaction_timeout::shorter(&self.options.kafka, refused).await {
                    Ok(shorter) => carried.transaction_timeout = Some(shorter),
                    Err(refusal) => return Err(RelayError::Refused(refusal.full())),
                }
            }
            match interruption.meaning() {
                Meaning::NeedsPerson(remedy) => return Err(RelayError::Refused(remedy)),
                Meaning::ProducerBroken => {
                    let Carried { epoch, direct, isolation, failed, batch_bytes_max, transaction_timeout, .. } = carried;
                    carried = Carried { epoch, direct, isolation, failed, batch_bytes_max, transaction_timeout, ..Carried::default() };
                    self.observer.failing(Part::Kafka, text.clone());
                    self.observer.reconnected("kafka");
                    if matches!(interruption, Interruption::BatchRefused(_)) {
                        // Each such session brings the search on.
                        waits = backoff.build();
                    }
                }
                Meaning::Transient => {
                    let (part, to) = match interruption {
                        Interruption::Topic(_) => (Part::Kafka, "kafka"),
                        _ => (Part::Stream, "postgres"),
                    };
                    self.observer.failing(part, text.clone());
                    self.observer.reconnected(to);
                }
            }
            self.observer.leader(false);
            self.observer.parked(0, 0);
            if by_command || began.elapsed() > GOOD_SESSION {
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
        if !carried.direct {
            tokio::select! {
                direct = pooler::require_direct(&self.options) => direct.inspect_err(|error| self.observer.failing(Part::Database, error.full()))?,
                () = shutdown.cancelled() => return Ok(None),
            }
            carried.direct = true;
        }
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
        require_forward(carried.epoch, ledger.epoch())?;
        let alone = ledger.epoch() == carried.epoch + 1;
        carried.epoch = ledger.epoch();
        observer.ok(Part::Lease, format!("leads, epoch {}", ledger.epoch()));
        let shape = debezium::examine(options, ledger.session()).await?;
        let server = server::examine(options, ledger.session()).await?;
        carried.learn()?;
        let settled = carried.settled.take().filter(|_| alone && saved.moved_to.is_none() && saved.given_up.is_empty());
        let settled = settled.filter(|_| ledger.topic_changes() == carried.topic_changes);
        carried.topic_changes = ledger.topic_changes();
        let (mut forwarder, mut start) = tokio::select! {
            started = self.start(&server, saved, &mut ledger, settled, carried.limits(), lost) => started?,
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
            () = shutdown.cancelled() => return Ok(None),
        };
        let shape = shape.judge(options, ledger.session(), &start.position).await?;
        // Released before the last session ended, and still on the table.
        let released = std::mem::take(&mut start.position.released);
        if !released.is_empty() {
            parked::delete(&mut ledger, &released).await?;
        }
        // Of a Debezium table nothing is parked.
        if options.debezium.is_none() {
            forwarder.load_parked(parked::load(&mut ledger).await?);
        }
        forwarder.isolate(std::mem::take(&mut carried.isolation));
        // In this order: a growth that ends in between is then seen by its partitions, and not by its hold.
        forwarder.hold_back(ledger.take_up_holds().await?);
        forwarder.pin(ledger.pinned().await?);
        let moved = start.moved;
        let mut books = Books::new(&options.name, start, ledger, observer, lost.clone());
        if moved {
            books.cut(&mut forwarder).await?;
        }
        books.show_parked(&forwarder);
        let drive = Drive { options, server: &server, shape: &shape, moved, observer, shutdown, log_unusable: carried.log_unusable };
        let outcome = tokio::select! {
            outcome = drive.run(&mut forwarder, &mut books) => outcome,
            () = retention::run(options, &server.identity, carried.epoch, observer) => Err(Interruption::LeaseLost),
            error = scheduled::run(options, observer) => Err(error),
            // Whatever it waits for: a relay that does not lead any more stops.
            () = lost.cancelled() => Err(Interruption::LeaseLost),
        };
        self.settle(outcome, forwarder, books, carried).await
    }

    /// A producer, and where the relay goes on.
    async fn start(
        &self,
        server: &server::Server,
        saved: Saved,
        ledger: &mut Ledger,
        settled: Option<(Forwarder, Position, u64)>,
        limits: (usize, Duration),
        lost: &CancellationToken,
    ) -> Result<(Forwarder, Start), Interruption> {
        let (options, observer) = (&self.options, &self.observer);
        let names = Names::new(options, server);
        if let Some((mut forwarder, position, number)) = settled {
            forwarder.go_on(&names, server, ledger.epoch(), number);
            return Ok((forwarder, Start { position, number, moved: false }));
        }
        let (batch_bytes_max, transaction_timeout) = limits;
        let transactional = match options.delivery {
            Delivery::ExactlyOnce => names.transactional(transaction_timeout),
            Delivery::AtLeastOnce => Vec::new(),
        };
        let mut forwarder = Forwarder::open(options, &saved.event_source, observer, batch_bytes_max, &transactional)?;
        let cluster = forwarder.reach_cluster().await?;
        let session = resume::Session { options, server, names: &names, cluster: &cluster, observer, lost };
        let start = resume::resume(session, saved, ledger, &mut forwarder).await?;
        tracing::info!(relay = options.name, epoch = ledger.epoch(), cluster, delivery = options.delivery.word(), "leads");
        Ok((forwarder, start))
    }

    /// After a session's work: waits for what was sent, stores it if that is still possible, and keeps what the next session can use.
    async fn settle(
        &self,
        outcome: Result<(), Interruption>,
        mut forwarder: Forwarder,
        mut books: Books,
        carried: &mut Carried,
    ) -> Result<Option<RelayError>, Interruption> {
        let grace = if outcome.is_ok() { self.options.shutdown_grace } else { SETTLE };
        if outcome.is_ok() {
            tracing::info!(under_way = forwarder.sink().acks().under_way().0, "stops reading and waits for what is under way");
        }
        // A leader that is none any more commits nothing further: it would be fenced off if it tried.
        let deposed = matches!(outcome, Err(Interruption::LeaseLost));
        let drained = !deposed && matches!(timeout(grace, books.drain(&mut forwarder)).await, Ok(true));
        match outcome {
            Ok(()) => {
                books.store(&mut forwarder).await?;
                books.stream_ends().await;
                let under_way = forwarder.sink().acks().under_way().0;
                Ok((!drained).then_some(RelayError::GraceExceeded { under_way, grace }))
            }
            Err(interruption) => {
                carried.isolation = forwarder.take_isolation();
                if drained {
                    // So that a person who moves the position past an event moves it past nothing else. The database may be what
                    // interrupted the session: what Kafka has is known all the same.
                    let stored = books.store(&mut forwarder).await;
                    if let Err(error) = stored {
                        tracing::debug!("{}", error.full());
                    }
                    let (position, number) = books.safe();
                    carried.settled = Some((forwarder, position.clone(), number));
                } else {
                    carried.failed = Some(forwarder.sink().acks().clone());
                }
                Err(interruption)
            }
        }
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
