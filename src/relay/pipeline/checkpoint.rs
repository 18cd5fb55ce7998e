//! The books of a session: what was sent, what of it is safe, what Postgres is told. Also what keeps a stream alive while the
//! relay waits for something else.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::publisher::{Forwarder, Hold};
use crate::{
    failpoint::{self, Step},
    postgres::{
        Lsn,
        replication::{ReplicationError, StatusWriter},
    },
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::{Checkpoint, Ledger, Reading},
        monitor::metrics::Observer,
        parked::store,
        position::{Position, Progress},
        sink::Durable,
        source::{confirm_rest, slot},
        startup::{names::LogNames, recovery::Start},
    },
};

/// How often progress is stored, and the server told where we are even if nothing changed: what a kill -9 repeats at most with
/// delivery at least once, and well within any `wal_sender_timeout`.
const EVERY: Duration = Duration::from_secs(1);

/// How often an outbox without events has its position moved along the log: each time costs a Kafka transaction, and what is not confirmed
/// the server keeps.
const IDLE_CUT_EVERY: Duration = Duration::from_secs(10);

/// A server that says nothing for this long, although it was asked to, is gone without a word: its machine, or the network.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Sending a confirmation waits only for room in the socket: a server that reads nothing for this long hangs.
const CONFIRM_WITHIN: Duration = Duration::from_secs(20);

/// How often the slot is looked at for the metrics.
const SLOT_EVERY: Duration = Duration::from_secs(10);

/// Why the table is read before it is known what else can be read.
const BEGINS: &str = "the relay begins";

/// Keeps the books of one session.
pub(crate) struct Books {
    /// Of what was sent.
    pub(crate) progress: Progress,
    pub(crate) ledger: Ledger,
    /// What is safe, and the number of its record.
    safe: Position,
    number: u64,
    /// The position of the last cut.
    cut_log: Lsn,
    cut_at: Instant,
    stream: Option<Stream>,
    reading: (Reading, String),
    stored: bool,
    /// The operator's move is not durable yet: the row keeps it until then.
    moving: bool,
    stored_at: Instant,
    observer: Observer,
    names: LogNames,
    lost: CancellationToken,
    tick: Interval,
    slot_seen: Option<Instant>,
    /// Below which everything was acknowledged when this was looked at last.
    acknowledged: Option<u64>,
    /// The source had nothing more to read since the last look, or has read on.
    caught_up: bool,
    /// An event waits.
    holding: bool,
    /// The outbox is Tidings' own, and not a table made for Debezium.
    own_outbox: bool,
}

/// The stream whose server wants to hear from us.
struct Stream {
    status: StatusWriter,
    heard: Instant,
}

impl Books {
    pub(crate) fn new(
        options: &RelayOptions,
        names: &LogNames,
        start: Start,
        ledger: Ledger,
        observer: &Observer,
        lost: CancellationToken,
    ) -> Self {
        let Start {
            position: safe,
            number,
            moved,
        } = start;
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            progress: Progress::new(safe.clone()),
            ledger,
            cut_log: safe.log,
            cut_at: Instant::now(),
            safe,
            number,
            stream: None,
            reading: (Reading::Table, BEGINS.into()),
            stored: false,
            moving: moved,
            stored_at: Instant::now(),
            observer: observer.clone(),
            names: names.clone(),
            lost,
            tick,
            slot_seen: None,
            acknowledged: None,
            caught_up: false,
            holding: false,
            own_outbox: options.debezium.is_none(),
        }
    }

    /// The source has nothing more to read at the moment, or has read on.
    pub(crate) fn caught_up(&mut self) {
        self.caught_up = true;
    }

    /// Reports whether delivery is well: something was acknowledged since the last report, or nothing is pending.
    fn report_progress(&mut self, forwarder: &Forwarder, is_durable: bool) {
        let acks = forwarder.sink().acks();
        let (floor, (under_way, _)) = (acks.floor(), acks.under_way());
        let acknowledged = self
            .acknowledged
            .replace(floor)
            .is_some_and(|before| floor > before);
        let nothing_pending =
            std::mem::take(&mut self.caught_up) && !self.holding && under_way == 0;
        if is_durable || acknowledged || nothing_pending {
            self.observer.well();
        }
    }

    /// Shows what an event waits for; `None` if none waits any more.
    fn hold(&mut self, reason: Option<&str>) {
        if self.holding || reason.is_some() {
            self.holding = reason.is_some();
            self.observer.pulse().held(reason.map(str::to_owned));
        }
    }

    /// What is read from now on, and why.
    pub(crate) fn reads(&mut self, reading: Reading, reason: impl Into<String>) {
        let reason = reason.into();
        if self.reading != (reading, reason.clone()) {
            tracing::info!(
                source = reading.word(),
                "reads {}: {reason}",
                if reading == Reading::Wal {
                    "the log"
                } else {
                    "the table"
                }
            );
            self.reading = (reading, reason);
            self.stored = false;
        }
    }

    /// A stream has begun whose server is to be told what is safe.
    pub(crate) fn stream_begins(&mut self, status: StatusWriter) {
        self.stream = Some(Stream {
            status,
            heard: Instant::now(),
        });
    }

    /// Ends the stream politely.
    pub(crate) async fn stream_ends(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.status.finish().await;
        }
    }

    /// Leaves as little as possible in the slot, within `time`: the relay ends in order, and writes nothing more.
    pub(crate) async fn leave(&mut self, options: &RelayOptions, time: Duration) {
        let safe = self.safe.log;
        confirm_rest::confirm_rest(options, &self.names, safe, time).await;
    }

    /// What is safe, and the number of its record.
    pub(crate) fn safe(&self) -> (&Position, u64) {
        (&self.safe, self.number)
    }

    /// Cancelled once the lease is not certain any more.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Waits for the next time progress shall be stored.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn due(&mut self) {
        self.tick.tick().await;
    }

    /// Whether progress shall be stored now.
    pub(crate) fn is_due(&self) -> bool {
        self.stored_at.elapsed() >= EVERY
    }

    /// Ends a batch if it is time to; `idle` says that the source has nothing more at the moment.
    ///
    /// # Errors
    /// As [`Books::cut`].
    pub(crate) async fn cut_if_wanted(
        &mut self,
        forwarder: &mut Forwarder,
        idle: bool,
    ) -> Result<(), Interruption> {
        if forwarder.sink().wants_cut(idle) {
            self.cut(forwarder).await?;
        }
        Ok(())
    }

    /// Ends a batch. False if the last one is still being committed.
    ///
    /// # Errors
    /// A lost connection or lease: what was set aside must be stored before a position passes it.
    pub(crate) async fn cut(&mut self, forwarder: &mut Forwarder) -> Result<bool, Interruption> {
        self.park_pending(forwarder).await?;
        let position = self.progress.position();
        let log = position.log;
        let done = forwarder.cut(position);
        if done {
            (self.cut_log, self.cut_at) = (log, Instant::now());
        }
        Ok(done)
    }

    /// Stores what was set aside.
    ///
    /// # Errors
    /// A lost connection or lease.
    pub(crate) async fn park_pending(
        &mut self,
        forwarder: &mut Forwarder,
    ) -> Result<(), Interruption> {
        if forwarder.parked().is_stored() {
            return Ok(());
        }
        store::store(&mut self.ledger, forwarder.parked()).await?;
        failpoint::reached(Step::Parked);
        forwarder.parked_mut().stored();
        self.show_parked(forwarder);
        Ok(())
    }

    /// Shows how much is parked.
    pub(crate) fn show_parked(&self, forwarder: &Forwarder) {
        let (events, aggregates) = forwarder.parked().counts();
        self.observer.parked(events, aggregates);
    }

    /// Stores and confirms what is safe.
    ///
    /// # Errors
    /// A lost connection, a lost lease, or a producer that has failed.
    pub(crate) async fn store(&mut self, forwarder: &mut Forwarder) -> Result<(), Interruption> {
        self.stored_at = Instant::now();
        self.observer.pulse().moved();
        let moved = self.progress.settled().log > self.cut_log;
        let every = if forwarder.sink().cuts_cost() {
            IDLE_CUT_EVERY
        } else {
            EVERY
        };
        if moved && self.cut_at.elapsed() >= every {
            self.cut(forwarder).await?;
        }
        self.park_pending(forwarder).await?;
        let durable = forwarder.durable()?;
        let is_durable = durable.is_some();
        match durable {
            Some((Durable { batch, number }, counts)) => {
                (self.safe, self.number) = (*batch.position, number);
                let published = counts.iter().map(|(_, records)| records).sum();
                let at = Checkpoint {
                    position: &self.safe,
                    number,
                    source: self.reading.0,
                    reason: &self.reading.1,
                    published,
                };
                self.ledger.checkpoint(at).await?;
                if number > 0 {
                    self.ledger.note_signed().await?;
                }
                if !counts.is_empty() {
                    self.ledger.count_topics(&counts).await?;
                }
                // After the checkpoint: whoever finds them gone finds the position that knows of it, too.
                if !self.safe.released.is_empty() {
                    failpoint::reached(Step::ReleaseCommitted);
                    store::delete(&mut self.ledger, &self.safe.released).await?;
                    failpoint::reached(Step::Released);
                    self.progress.forget_released(&self.safe.released);
                }
                (self.stored, self.moving) = (true, false);
                failpoint::reached(Step::Mirrored);
            }
            None if !self.stored && !self.moving => {
                let at = Checkpoint {
                    position: &self.safe,
                    number: self.number,
                    source: self.reading.0,
                    reason: &self.reading.1,
                    published: 0,
                };
                self.ledger.checkpoint(at).await?;
                self.stored = true;
            }
            None => self.ledger.heartbeat().await?,
        }
        forwarder.set_clock(self.ledger.clock());
        self.confirm().await?;
        self.report_progress(forwarder, is_durable);
        if self
            .slot_seen
            .is_none_or(|seen| seen.elapsed() > SLOT_EVERY)
        {
            if let Some((lag_bytes, retained_bytes)) =
                slot::log_kept(self.ledger.session(), &self.names.slot).await?
            {
                self.observer.slot(lag_bytes, retained_bytes);
            }
            if self.own_outbox {
                self.ledger.require_own_transactions().await?;
            }
            self.slot_seen = Some(Instant::now());
        }
        if forwarder.a_hold_is_over() {
            for topic in self.ledger.end_holds().await? {
                tracing::error!(
                    topic,
                    "a command held the topic back and did not come to its end in time: it is published to as before; see `tidings topics list`"
                );
            }
        }
        if self.ledger.topics_have_changed() {
            Err(Interruption::TopicsChanged)
        } else {
            Ok(())
        }
    }

    /// Tells the server what is safe. A server that was not heard for long is asked to show that it is there.
    async fn confirm(&mut self) -> Result<(), Interruption> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let silence = stream.heard.elapsed();
        if silence > SILENCE_MAX {
            return Err(Interruption::replication("waiting for Postgres")(
                ReplicationError::Unanswered("a keepalive"),
            ));
        }
        let confirming = timeout(
            CONFIRM_WITHIN,
            stream
                .status
                .confirm(self.safe.log, silence > SILENCE_MAX / 3),
        );
        let confirmed = confirming
            .await
            .unwrap_or(Err(ReplicationError::Unanswered("a confirmation")));
        confirmed.map_err(Interruption::replication("confirming to Postgres"))?;
        failpoint::reached(Step::Confirmed);
        Ok(())
    }

    /// Takes note that the server was heard.
    pub(crate) fn heard(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.heard = Instant::now();
        }
    }

    /// Waits until what held an event is out of the way, and answers for the stream meanwhile: a sink that is slow, or a topic
    /// that is missing for a day, must not look to Postgres like a dead relay. False if `shutdown` came first.
    ///
    /// # Errors
    /// As [`Books::store`].
    pub(crate) async fn attend(
        &mut self,
        forwarder: &mut Forwarder,
        hold: Hold,
        shutdown: &CancellationToken,
    ) -> Result<bool, Interruption> {
        if matches!(hold, Hold::Parking) {
            self.park_pending(forwarder).await?;
        }
        // One future for the whole wait: a question to Kafka takes longer than a tick.
        let reason = hold.describe();
        let mut clearing = forwarder.clear(hold);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(false),
                () = self.lost.cancelled() => return Err(Interruption::LeaseLost),
                cleared = &mut clearing => {
                    self.hold(None);
                    return forwarder.cleared(cleared).map(|()| true);
                }
                _ = self.tick.tick() => {}
            }
            self.hold(Some(&reason));
            // Nobody listens at present. What waits for a topic must not keep a batch open.
            self.heard();
            self.cut_if_wanted(forwarder, false).await?;
            self.store(forwarder).await?;
        }
    }

    /// Ends what was sent with a cut and waits until it is safe; false if the producer failed, or what was set aside cannot be stored.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn drain(&mut self, forwarder: &mut Forwarder) -> bool {
        loop {
            settled(&self.observer, forwarder).await;
            if forwarder.sink().failure().is_some() {
                return false;
            }
            match self.cut(forwarder).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!("{}", error.full());
                    return false;
                }
            }
        }
        settled(&self.observer, forwarder).await;
        forwarder.sink().failure().is_none()
    }
}

/// Waits for the sink, and shows that it does.
async fn settled(observer: &Observer, forwarder: &Forwarder) {
    let mut settled = std::pin::pin!(forwarder.sink().settled());
    loop {
        tokio::select! {
            () = &mut settled => return,
            () = tokio::time::sleep(EVERY) => observer.pulse().moved(),
        }
    }
}
