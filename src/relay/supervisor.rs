//! The relay: options in, events out. Supervises one session after the other.
//!
//! ```text
//!          ┌──────────────── again, after a while ◀───────────── what passes by itself ──┐
//!          ▼                                                                              │
//!   lease (stand by) ─▶ take over the row ─▶ Kafka answers ─▶ resume ─▶ drive: table, log ─┼─▶ a person is needed: end
//!                                                                                          └─▶ shutdown: drain, confirm, end
//! ```

mod access;
pub(crate) mod handover;
mod watchdog;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures_util::FutureExt as _;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    Delivery, Observer, OnUndeliverable, RelayError, RelayOptions,
    error::{Interruption, Meaning},
    leadership::{
        lease::Lease,
        relay_store::{Ledger, Saved, within},
    },
    maintenance::{retention, scheduler},
    monitor::metrics::Part,
    options::{is_dead_letter_topic, is_relay_name},
    parked::store,
    pipeline::{
        checkpoint::Books,
        publisher::{Forwarder, until_reported},
    },
    position::Position,
    routing::template::TopicTemplate,
    row::table_layout::{self, Shape},
    source::selector::Drive,
    startup::{
        names::{self, KafkaNames, LogNames},
        pooler, preflight,
        recovery::{self, Start},
        server, transaction_timeout,
    },
};
use {
    access::Refusals,
    handover::Carried,
    watchdog::{Supervised, Watchdog, hang_limit},
};

/// First and longest wait between two sessions.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A session this long was a good one: the next wait is the first again.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// How long an interrupted session waits for what it has sent. If Kafka answers within it, the next session repeats nothing.
const SETTLE: Duration = Duration::from_secs(10);

/// How long the last position may take to be stored when the grace is over by then.
const STORE_LAST: Duration = Duration::from_millis(500);

/// A relay that is ready to run.
pub struct Relay {
    options: RelayOptions,
    observer: Observer,
}

/// Everything that a session works with.
struct Ready {
    server: server::Server,
    names: LogNames,
    shape: Shape,
    forwarder: Forwarder,
    books: Books,
    moved: bool,
}

impl Relay {
    /// A relay with these options; nothing is connected yet.
    ///
    /// # Errors
    /// [`RelayError::Options`] names an option that cannot be used.
    pub fn new(options: RelayOptions) -> Result<Self, RelayError> {
        let name = &options.name;
        if !is_relay_name(name) {
            return Err(RelayError::Options(format!(
                "`{name}` is no name for a relay: lower case letters, digits and `_`, 40 at most"
            )));
        }
        TopicTemplate::parse(&options.topic).map_err(|error| {
            RelayError::Options(format!("topic template `{}`: {error}", options.topic))
        })?;
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
        let observer = Observer::new(options.stall_after);
        Ok(Self { options, observer })
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
        let relay = Arc::new(Self {
            options: self.options.clone(),
            observer: self.observer.clone(),
        });
        let mut watchdog = Watchdog::new(
            &self.observer,
            hang_limit(&self.options),
            self.options.shutdown_grace,
        );
        let (mut carried, mut refusals) = (Carried::default(), Refusals::default());
        let backoff = ExponentialBuilder::default()
            .with_min_delay(RETRY.0)
            .with_max_delay(RETRY.1)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        let mut waits = backoff.build();
        loop {
            let began = Instant::now();
            let (epoch, direct, transaction_timeout) =
                (carried.epoch, carried.direct, carried.transaction_timeout);
            let dropped = CancellationToken::new();
            let session = relay
                .clone()
                .run_session(carried, dropped.clone(), shutdown.clone());
            let interruption = match watchdog.supervise(session, &dropped, &shutdown).await {
                Supervised::Ended((_, Ok(None))) => return Ok(()),
                Supervised::Ended((_, Ok(Some(exceeded)))) => return Err(exceeded),
                Supervised::Ended((left, Err(interruption))) => {
                    carried = left;
                    interruption
                }
                Supervised::Hung(step) => {
                    carried = Carried {
                        epoch,
                        direct,
                        transaction_timeout,
                        ..Carried::default()
                    };
                    Interruption::Hung(step)
                }
                Supervised::Overdue => return self.overdue(),
            };
            let text = interruption.explained();
            // A command waits for it, or everybody.
            let at_once = matches!(
                interruption,
                Interruption::TopicsChanged | Interruption::Isolated
            );
            carried.log_unusable = interruption.log_is_unusable();
            if let Interruption::TransactionTimeout(refused) = interruption {
                match transaction_timeout::shorter(&self.options.kafka, refused).await {
                    Ok(shorter) => carried.transaction_timeout = Some(shorter),
                    Err(refusal) => return Err(RelayError::Refused(refusal.full())),
                }
            }
            carried.log_silent = interruption.log_is_silent();
            match interruption.meaning() {
                Meaning::NeedsPerson(_)
                    if carried.direct
                        && interruption.may_be_a_change_of_access()
                        && refusals.may_retry(Instant::now()) =>
                {
                    self.observer.interrupted(part(&interruption), text.clone());
                    self.observer.reconnected("postgres");
                }
                Meaning::NeedsPerson(remedy) => return Err(RelayError::Refused(remedy)),
                Meaning::ProducerBroken => {
                    carried = carried.without_producer();
                    self.observer.interrupted(Part::Kafka, text.clone());
                    self.observer.reconnected("kafka");
                    if matches!(interruption, Interruption::BatchRefused(_)) || carried.untimely() {
                        // Each such session brings the search on.
                        waits = backoff.build();
                    }
                }
                Meaning::Transient => {
                    let part = part(&interruption);
                    self.observer.interrupted(part, text.clone());
                    self.observer.reconnected(if part == Part::Kafka {
                        "kafka"
                    } else {
                        "postgres"
                    });
                }
            }
            if interruption.is_timed_out() {
                // It may be that there are fewer connections than there were.
                carried.has_connections = false;
            }
            self.observer.leader(false);
            self.observer.parked(0, 0);
            if at_once || began.elapsed() > GOOD_SESSION {
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

    /// A relay that did not stop within its grace: a wait in it does not respond.
    fn overdue(&self) -> Result<(), RelayError> {
        tracing::warn!("the session did not respond within the shutdown grace, and is left");
        match self.observer.pulse().under_way() {
            0 => Ok(()),
            under_way => Err(RelayError::GraceExceeded {
                under_way,
                grace: self.options.shutdown_grace,
            }),
        }
    }

    /// One session as a task of its own: takes what the last one left, and returns what it leaves.
    async fn run_session(
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
        observer.pulse().held(None);
        let ready = tokio::select! {
            ready = self.prepare(carried, lost) => ready?,
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
            () = shutdown.cancelled() => return Ok(None),
        };
        let Ready {
            server,
            names,
            shape,
            mut forwarder,
            mut books,
            moved,
        } = ready;
        let (log_unusable, log_silent) = (carried.log_unusable, carried.log_silent);
        let (server, names, shape) = (&server, &names, &shape);
        let drive = Drive {
            options,
            server,
            names,
            shape,
            moved,
            observer,
            shutdown,
            log_unusable,
            log_silent,
        };
        observer.pulse().step("reading the outbox");
        let mut broken_off = false;
        let outcome = tokio::select! {
            outcome = drive.run(&mut forwarder, &mut books) => outcome,
            () = retention::run(options, &server.identity, carried.epoch, observer) => Err(Interruption::LeaseLost),
            error = scheduler::run(options, observer) => Err(error),
            // Whatever it waits for: a relay that does not lead any more stops.
            () = lost.cancelled() => Err(Interruption::LeaseLost),
            // Its loops stop at once. A statement without an answer does not.
            () = async { shutdown.cancelled().await; tokio::time::sleep(options.shutdown_grace / 2).await } => {
                broken_off = true;
                Ok(())
            }
        };
        self.settle(outcome, broken_off, forwarder, books, carried)
            .await
    }

    /// Everything that a session needs before it reads.
    async fn prepare(
        &self,
        carried: &mut Carried,
        lost: &CancellationToken,
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
        let (mut forwarder, mut start) = self
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
            forwarder.take_up_faults(faults);
        }
        // Of a Debezium table nothing is parked.
        if options.debezium.is_none() {
            forwarder.load_parked(store::load(&mut ledger).await?);
        }
        // In this order: a growth that ends in between is then seen by its partitions, and not by its hold.
        forwarder.hold_back(ledger.take_up_holds().await?);
        forwarder.pin(ledger.pinned().await?);
        let moved = start.moved;
        let mut books = Books::new(options, &names, start, ledger, observer, lost.clone());
        if moved {
            books.cut(&mut forwarder).await?;
        }
        books.show_parked(&forwarder);
        // Last: from here on the end of the session gives it back.
        forwarder.isolate(std::mem::take(&mut carried.isolation));
        Ok(Ready {
            server,
            names,
            shape,
            forwarder,
            books,
            moved,
        })
    }

    /// A producer, and where the relay goes on.
    async fn start(
        &self,
        server: &server::Server,
        saved: Saved,
        ledger: &mut Ledger,
        settled: Option<(Forwarder, Position, u64)>,
        carried: &mut Carried,
        lost: &CancellationToken,
    ) -> Result<(Forwarder, Start), Interruption> {
        let (options, observer) = (&self.options, &self.observer);
        let names = KafkaNames::new(&options.name, &server.identity, &options.schema);
        if let Some((mut forwarder, position, number)) = settled {
            forwarder.go_on(&names, server, ledger, number);
            return Ok((
                forwarder,
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
        let mut forwarder = Forwarder::open(
            options,
            &saved.event_source,
            observer,
            batch_bytes_max,
            &transactional,
            stamps,
        )?;
        let cluster = forwarder.reach_cluster().await?;
        let session = recovery::Session {
            options,
            server,
            names: &names,
            cluster: &cluster,
            observer,
            lost,
        };
        let start = recovery::resume(session, saved, ledger, &mut forwarder).await?;
        tracing::info!(
            relay = options.name,
            epoch = ledger.epoch(),
            cluster,
            delivery = options.delivery.word(),
            "leads"
        );
        Ok((forwarder, start))
    }

    /// After a session's work: waits for what was sent, stores it if that is still possible, and keeps what the next session can use.
    /// Work that did not end at a shutdown was `broken_off`.
    async fn settle(
        &self,
        outcome: Result<(), Interruption>,
        broken_off: bool,
        mut forwarder: Forwarder,
        mut books: Books,
        carried: &mut Carried,
    ) -> Result<Option<RelayError>, Interruption> {
        if let Err(interruption) = &outcome {
            self.observer
                .interrupted(part(interruption), interruption.explained());
        }
        self.observer.pulse().step("waiting for what is under way");
        let grace = match &outcome {
            Ok(()) if broken_off => self.options.shutdown_grace / 4,
            Ok(()) => self.options.shutdown_grace,
            Err(_) => SETTLE,
        };
        let deadline = Instant::now() + grace;
        if outcome.is_ok() {
            tracing::info!(
                under_way = forwarder.sink().acks().under_way().0,
                "stops reading and waits for what is under way"
            );
        }
        // A leader that is none any more commits nothing further: it would be fenced off if it tried.
        let deposed = matches!(outcome, Err(Interruption::LeaseLost));
        // What was broken off may have sent an event and not taken note of it: the batch is left for the next session to send again.
        let drained = !deposed
            && !broken_off
            && matches!(timeout(grace, books.drain(&mut forwarder)).await, Ok(true));
        match outcome {
            Ok(()) => {
                match timeout_at(
                    deadline.max(Instant::now() + STORE_LAST),
                    books.store(&mut forwarder),
                )
                .await
                {
                    Ok(stored) => stored?,
                    Err(_) => tracing::warn!(
                        "the database does not answer: the position is not stored, and is read from Kafka again"
                    ),
                }
                books.stream_ends().await;
                let under_way = forwarder.sink().acks().under_way().0;
                let safe = drained || (under_way == 0 && forwarder.sink().is_settled());
                if drained {
                    books
                        .leave(
                            &self.options,
                            deadline.saturating_duration_since(Instant::now()),
                        )
                        .await;
                }
                Ok((!safe).then_some(RelayError::GraceExceeded {
                    under_way,
                    grace: self.options.shutdown_grace,
                }))
            }
            Err(interruption) => {
                if matches!(interruption, Interruption::BatchRefused(_)) {
                    until_reported(forwarder.sink().acks()).await;
                }
                carried.isolation = forwarder.take_isolation(drained);
                carried.topic_faults = Some(forwarder.take_faults());
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

/// The check that shows an interruption.
fn part(interruption: &Interruption) -> Part {
    match interruption {
        _ if interruption.meaning() == Meaning::ProducerBroken => Part::Kafka,
        Interruption::Topic(_) => Part::Kafka,
        Interruption::LeaseLost => Part::Lease,
        Interruption::Connections { .. } | Interruption::Waiting(_) => Part::Database,
        _ if interruption.is_of_connecting() => Part::Database,
        _ => Part::Stream,
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
