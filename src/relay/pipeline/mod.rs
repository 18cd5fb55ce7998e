//! The path of every event to Kafka. A source owns only its read position.
//!
//! ```text
//! source ─▶ publish ─▶ publisher: route, envelope, record ─▶ sink ─▶ Kafka
//!              │                                                │
//!              └─ wait_for: back-pressure                       ▼ acknowledged
//!           tick, drain ─▶ checkpoint: position topic ─▶ the relay's row ─▶ slot
//! ```
//!
//! | file | content |
//! |---|---|
//! | `publisher` | one event becomes a record, is parked, or has to wait. Never waits itself |
//! | `checkpoint` | batches, and the position that is durable |
//! | `stream_link` | the connection to a server that streams its log |
//! | `delivery_watch` | whether delivery makes progress |
//! | `housekeeping` | rare jobs of a session |
//! | `clock` | the timestamps of records |
//!
//! The pipeline waits in one place ([`Pipeline::wait_for`]). While it waits it stores checkpoints and answers the server that
//! streams the log, so neither a slow sink nor a topic that is missing for a day looks like a dead relay. A shutdown or an
//! interruption ends every wait as a [`Stop`], which `?` propagates through the sources.

pub(crate) mod checkpoint;
pub(crate) mod clock;
mod delivery_watch;
mod housekeeping;
pub(crate) mod publisher;
mod stream_link;

use std::time::Duration;

use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use self::{
    checkpoint::Checkpointer,
    delivery_watch::DeliveryWatch,
    housekeeping::Housekeeping,
    publisher::{Backpressure, Delivery, EventPublisher, Published, Unsent},
    stream_link::StreamLink,
};
use super::{
    RelayOptions,
    error::Interruption,
    leadership::relay_store::{Ledger, Reading},
    monitor::metrics::Observer,
    parked::set::ParkedSet,
    position::{Position, Progress},
    row::native::{Row, RowError},
    source::confirm_rest,
    startup::{names::LogNames, recovery::Start},
};
use crate::postgres::replication::{DecodeError, StatusWriter};

/// Publishes rows and keeps the checkpoint of one session.
pub(crate) struct Pipeline {
    publisher: EventPublisher,
    checkpoint: Checkpointer,
    stream: Option<StreamLink>,
    watch: DeliveryWatch,
    housekeeping: Housekeeping,
    observer: Observer,
    lost: CancellationToken,
    shutdown: CancellationToken,
}

/// Why a source stops.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The relay is shut down.
    Shutdown,
    /// The session ends, and the supervisor decides what follows.
    Interrupted(Interruption),
}

impl From<Interruption> for Stop {
    fn from(interruption: Interruption) -> Self {
        Self::Interrupted(interruption)
    }
}

impl From<RowError> for Stop {
    fn from(error: RowError) -> Self {
        Self::Interrupted(error.into())
    }
}

impl From<DecodeError> for Stop {
    fn from(error: DecodeError) -> Self {
        Self::Interrupted(error.into())
    }
}

impl Pipeline {
    pub(crate) fn new(
        options: &RelayOptions,
        names: &LogNames,
        start: Start,
        store: Ledger,
        publisher: EventPublisher,
        observer: &Observer,
        (lost, shutdown): (CancellationToken, CancellationToken),
    ) -> Self {
        Self {
            publisher,
            checkpoint: Checkpointer::new(start, store),
            stream: None,
            watch: DeliveryWatch::new(observer),
            housekeeping: Housekeeping::new(options, names),
            observer: observer.clone(),
            lost,
            shutdown,
        }
    }

    /// Publishes one row, or parks it. Waits for back-pressure to clear, except for room in the set of parked events: only a
    /// release makes such room, so the source gets [`Published::NoRoomToPark`] and releases events first.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`].
    pub(crate) async fn publish(&mut self, row: &Row<'_>) -> Result<Published, Stop> {
        loop {
            match self.publisher.publish(row) {
                Ok(published) => return Ok(published),
                Err(unsent) => self.clear(unsent).await?,
            }
        }
    }

    /// Publishes a row of which it is decided that it goes now, although its aggregate or its topic has parked events. Waits
    /// for back-pressure to clear.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`].
    pub(crate) async fn deliver(&mut self, row: &Row<'_>) -> Result<Delivery, Stop> {
        loop {
            match self.publisher.deliver(row, false) {
                Ok(delivery) => return Ok(delivery),
                Err(unsent) => self.clear(unsent).await?,
            }
        }
    }

    async fn clear(&mut self, unsent: Unsent) -> Result<(), Stop> {
        match unsent {
            Unsent::Waits(backpressure) => self.wait_for(backpressure).await,
            Unsent::Interrupted(interruption) => Err(interruption.into()),
        }
    }

    /// Waits until a cause of back-pressure is resolved. Stores checkpoints and answers the streaming server meanwhile.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`].
    pub(crate) async fn wait_for(&mut self, backpressure: Backpressure) -> Result<(), Stop> {
        if matches!(backpressure, Backpressure::Parking) {
            self.store_parked().await?;
        }
        // One future for the whole wait: a query to Kafka takes longer than a tick.
        let reason = backpressure.describe();
        let mut resolving = self.publisher.resolve(backpressure);
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Stop::Shutdown),
                () = self.lost.cancelled() => return Err(Interruption::LeaseLost.into()),
                resolved = &mut resolving => {
                    self.watch.event_waits(None);
                    return Ok(self.publisher.resolved(resolved)?);
                }
                () = self.checkpoint.due() => {}
            }
            self.watch.event_waits(Some(&reason));
            // The source does not read the stream meanwhile, so its silence proves nothing. An event that waits for a topic
            // must not keep a batch open either.
            self.on_server_message();
            self.end_batch_if_wanted(false).await?;
            self.tick().await?;
        }
    }

    /// Stores and confirms the position that is durable, and runs the jobs of a session that are due.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection, the lease or the producer is lost.
    pub(crate) async fn tick(&mut self) -> Result<(), Interruption> {
        self.observer.pulse().moved();
        if self.checkpoint.wants_idle_batch(&self.publisher) {
            self.end_batch().await?;
        }
        self.store_parked().await?;
        let is_durable = self.checkpoint.store(&mut self.publisher).await?;
        if let Some(stream) = &mut self.stream {
            stream.confirm(self.checkpoint.durable().0.log).await?;
        }
        self.watch.report(self.publisher.sink().acks(), is_durable);
        let store = self.checkpoint.relay_store();
        self.housekeeping
            .run(store, &self.publisher, &self.observer)
            .await
    }

    /// As [`tick`](Self::tick), if one is due. Fails if the session has to end.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`]. The result of the tick is `true`.
    pub(crate) async fn tick_if_due(&mut self) -> Result<bool, Stop> {
        if self.shutdown.is_cancelled() {
            return Err(Stop::Shutdown);
        }
        self.require_lease()?;
        let is_due = self.checkpoint.is_due();
        if is_due {
            self.tick().await?;
        }
        Ok(is_due)
    }

    /// Waits until the next tick is due.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the session has to end before.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn due(&mut self) -> Result<(), Stop> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Stop::Shutdown),
            () = self.lost.cancelled() => Err(Interruption::LeaseLost.into()),
            () = self.checkpoint.due() => Ok(()),
        }
    }

    /// Ends a batch if the sink wants it. `idle`: the source has nothing more to read at the moment.
    ///
    /// # Errors
    ///
    /// As [`end_batch`](Self::end_batch).
    pub(crate) async fn end_batch_if_wanted(&mut self, idle: bool) -> Result<(), Interruption> {
        if self.publisher.sink().wants_cut(idle) {
            self.end_batch().await?;
        }
        Ok(())
    }

    /// Ends a batch. Returns `false` if the previous one is still being committed.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection or the lease is lost: parked events must be stored before a position
    /// passes them.
    pub(crate) async fn end_batch(&mut self) -> Result<bool, Interruption> {
        self.store_parked().await?;
        Ok(self.checkpoint.end_batch(&mut self.publisher))
    }

    /// Stores the events that were parked since the last call.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection or the lease is lost.
    pub(crate) async fn store_parked(&mut self) -> Result<(), Interruption> {
        if self.checkpoint.store_parked(&mut self.publisher).await? {
            self.report_parked();
        }
        Ok(())
    }

    /// Ends the batch and waits until everything that was sent is durable. Returns `false` if the producer has failed, or
    /// parked events cannot be stored.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn drain(&mut self) -> bool {
        loop {
            self.watch.settled(self.publisher.sink()).await;
            if self.publisher.sink().failure().is_some() {
                return false;
            }
            match self.end_batch().await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!("{}", error.full());
                    return false;
                }
            }
        }
        self.watch.settled(self.publisher.sink()).await;
        self.publisher.sink().failure().is_none()
    }

    /// Confirms what is left in the slot behind the last position, within `time`. Call it last, when the relay ends in order.
    pub(crate) async fn confirm_rest(&mut self, options: &RelayOptions, time: Duration) {
        let log = self.checkpoint.durable().0.log;
        confirm_rest::confirm_rest(options, self.housekeeping.names(), log, time).await;
    }

    /// Fails if the lease is lost.
    pub(crate) fn require_lease(&self) -> Result<(), Interruption> {
        match self.lost.is_cancelled() {
            true => Err(Interruption::LeaseLost),
            false => Ok(()),
        }
    }

    /// Waits for the shutdown.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Sets the source that is read from now on, and the reason, for `tidings status`.
    pub(crate) fn reads(&mut self, reading: Reading, reason: impl Into<String>) {
        self.checkpoint.reads(reading, reason.into());
    }

    /// The source has read on, or has nothing more to read at the moment.
    pub(crate) fn caught_up(&mut self) {
        self.watch.caught_up();
    }

    /// Starts to confirm positions to the server that streams its log.
    pub(crate) fn stream_started(&mut self, status: StatusWriter) {
        self.stream = Some(StreamLink::new(status));
    }

    /// Ends the stream in order.
    pub(crate) async fn end_stream(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.finish().await;
        }
    }

    /// Records that the streaming server has sent something.
    pub(crate) fn on_server_message(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.on_server_message();
        }
    }

    /// Exports the number of parked events.
    pub(crate) fn report_parked(&self) {
        let (events, aggregates) = self.publisher.parked().counts();
        self.observer.parked(events, aggregates);
    }

    /// What was sent, as a position.
    pub(crate) fn progress(&mut self) -> &mut Progress {
        self.checkpoint.progress()
    }

    /// The position of everything before the next event, without the events that are still being sent in a transaction.
    pub(crate) fn settled(&self) -> &Position {
        self.checkpoint.settled()
    }

    /// The durable position, and the number of its record.
    pub(crate) fn durable(&self) -> (&Position, u64) {
        self.checkpoint.durable()
    }

    pub(crate) fn publisher(&self) -> &EventPublisher {
        &self.publisher
    }

    /// The parked events.
    pub(crate) fn parked(&self) -> &ParkedSet {
        self.publisher.parked()
    }

    pub(crate) fn parked_mut(&mut self) -> &mut ParkedSet {
        self.publisher.parked_mut()
    }

    pub(crate) fn publisher_mut(&mut self) -> &mut EventPublisher {
        &mut self.publisher
    }

    /// The relay's row in Postgres, on the session's connection.
    pub(crate) fn relay_store(&mut self) -> &mut Ledger {
        self.checkpoint.relay_store()
    }

    /// The session's connection.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        self.checkpoint.relay_store().session()
    }

    pub(crate) fn into_publisher(self) -> EventPublisher {
        self.publisher
    }
}
