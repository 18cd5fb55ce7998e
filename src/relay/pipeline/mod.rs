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
//! | `publisher` | turns an event into a record, parks it, or returns back-pressure. Never waits |
//! | `checkpoint` | batches and the durable position |
//! | `stop` | the reason why a source stops |
//! | `stream_link` | the connection to the server that streams the log |
//! | `delivery_watch` | progress of delivery, for the stall detection |
//! | `new_topics` | topics that were not used before |
//! | `housekeeping` | periodic jobs of a session |
//! | `clock` | timestamps of records |
//!
//! The pipeline waits in one place, [`Pipeline::wait_for`]. While it waits, it stores checkpoints
//! and sends status updates to the streaming server. Therefore neither a slow sink nor a topic that
//! is missing for a day looks like a dead relay. A shutdown or an interruption ends every wait with
//! a [`Stop`], which `?` propagates through the sources.

pub(crate) mod checkpoint;
pub(crate) mod clock;
mod delivery_watch;
mod housekeeping;
mod new_topics;
pub(crate) mod publisher;
mod stop;
mod stream_link;

use std::time::Duration;

use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

pub(crate) use self::stop::Stop;
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
    leadership::relay_store::{Reading, RelayStore},
    monitor::metrics::RelayMetrics,
    parked::set::ParkedSet,
    position::{Position, Progress},
    row::native::Row,
    source::confirm_rest,
    startup::{names::LogNames, recovery::Start},
};
use crate::postgres::replication::StatusWriter;

/// Publishes rows and stores the checkpoints of one session.
pub(crate) struct Pipeline {
    publisher: EventPublisher,
    checkpoint: Checkpointer,
    stream: Option<StreamLink>,
    watch: DeliveryWatch,
    housekeeping: Housekeeping,
    observer: RelayMetrics,
    lost: CancellationToken,
    shutdown: CancellationToken,
}

impl Pipeline {
    pub(crate) fn new(
        options: &RelayOptions,
        names: &LogNames,
        start: Start,
        store: RelayStore,
        publisher: EventPublisher,
        observer: &RelayMetrics,
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

    /// Publishes one row, or parks it.
    ///
    /// Waits for back-pressure to clear, with one exception: only a release makes room in the set
    /// of parked events. If the set is full, it returns [`Published::NoRoomToPark`], and the source
    /// releases events first.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(crate) async fn publish(&mut self, row: &Row<'_>) -> Result<Published, Stop> {
        loop {
            match self.publisher.publish(row) {
                Ok(published) => return Ok(published),
                Err(unsent) => self.clear(unsent).await?,
            }
        }
    }

    /// Publishes a row at once, even if its aggregate or its topic has parked events. Waits for
    /// back-pressure to clear.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
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

    /// Waits until the cause of back-pressure is resolved. Meanwhile it stores checkpoints and
    /// confirms positions to the streaming server.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(crate) async fn wait_for(&mut self, backpressure: Backpressure) -> Result<(), Stop> {
        match &backpressure {
            Backpressure::Parking => self.store_parked().await?,
            Backpressure::Unregistered(_) => self.register_topics().await?,
            _ => {}
        }
        // One future for the whole wait, because a query to Kafka takes longer than a tick.
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
            // The source does not read the stream meanwhile, so the server's silence proves
            // nothing. An event that waits for a topic must not keep a batch open either.
            self.on_server_message();
            self.end_batch_if_wanted(false).await?;
            self.tick().await?;
        }
    }

    /// Stores and confirms the durable position, and runs the housekeeping jobs that are due.
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
            stream
                .confirm(self.checkpoint.durable().0.resume_lsn)
                .await?;
        }
        self.watch.report(self.publisher.sink().acks(), is_durable);
        let store = self.checkpoint.relay_store();
        self.housekeeping
            .run(store, &self.publisher, &self.observer)
            .await
    }

    /// Runs [`tick`](Self::tick) if it is due. Returns `true` if it ran.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
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
    /// Returns [`Stop`] if the relay shuts down or the lease is lost.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn due(&mut self) -> Result<(), Stop> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Stop::Shutdown),
            () = self.lost.cancelled() => Err(Interruption::LeaseLost.into()),
            () = self.checkpoint.due() => Ok(()),
        }
    }

    /// Ends the batch if the sink requests it. `idle` means that the source has nothing more to
    /// read at present.
    ///
    /// # Errors
    ///
    /// Returns an error under the same conditions as [`end_batch`](Self::end_batch).
    pub(crate) async fn end_batch_if_wanted(&mut self, idle: bool) -> Result<(), Interruption> {
        if self.publisher.sink().should_end_batch(idle) {
            self.end_batch().await?;
        }
        Ok(())
    }

    /// Ends the batch. Returns `false` if the previous batch is still being committed.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection or the lease is lost, because parked events must
    /// be stored before the position passes them.
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

    /// Ends the batch and waits until all sent records are durable.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the producer has failed or parked events cannot be stored.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn drain(&mut self) -> Result<(), Interruption> {
        let mut is_ended = false;
        loop {
            self.watch.settled(self.publisher.sink()).await;
            if let Some(failure) = self.publisher.sink().failure() {
                return Err(failure);
            }
            if is_ended {
                return Ok(());
            }
            is_ended = self.end_batch().await?;
        }
    }

    /// Confirms the rest of the slot after the durable position, within `time`. Called last, at an
    /// orderly shutdown.
    pub(crate) async fn confirm_rest(&mut self, options: &RelayOptions, time: Duration) {
        let log = self.checkpoint.durable().0.resume_lsn;
        confirm_rest::confirm_rest(options, self.housekeeping.names(), log, time).await;
    }

    /// Returns an interruption if the lease is lost.
    pub(crate) fn require_lease(&self) -> Result<(), Interruption> {
        match self.lost.is_cancelled() {
            true => Err(Interruption::LeaseLost),
            false => Ok(()),
        }
    }

    /// Returns the token that is cancelled at shutdown.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Records which source is read from now on, and the reason, for `tidings status`.
    pub(crate) fn reads(&mut self, reading: Reading, reason: impl Into<String>) {
        self.checkpoint.reads(reading, reason.into());
    }

    /// Records that the source made progress, or that it has nothing more to read at present.
    pub(crate) fn caught_up(&mut self) {
        self.watch.caught_up();
    }

    /// Starts to confirm positions to the server that streams the log.
    pub(crate) fn stream_started(&mut self, status: StatusWriter) {
        self.stream = Some(StreamLink::new(status));
    }

    /// Ends the stream in an orderly way.
    pub(crate) async fn end_stream(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.finish().await;
        }
    }

    /// Records that the streaming server has sent a message.
    pub(crate) fn on_server_message(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.on_server_message();
        }
    }

    /// Exports the numbers of parked events and their aggregates.
    pub(crate) fn report_parked(&self) {
        let (events, aggregates) = self.publisher.parked().counts();
        self.observer.parked(events, aggregates);
    }

    /// Returns the progress of the session, for updates by its source.
    pub(crate) fn progress(&mut self) -> &mut Progress {
        self.checkpoint.progress()
    }

    /// Returns the position without the open transaction.
    pub(crate) fn settled(&self) -> &Position {
        self.checkpoint.settled()
    }

    /// Returns the durable position and its record's number.
    pub(crate) fn durable(&self) -> (&Position, u64) {
        self.checkpoint.durable()
    }

    pub(crate) fn publisher(&self) -> &EventPublisher {
        &self.publisher
    }

    /// Returns the set of parked events.
    pub(crate) fn parked(&self) -> &ParkedSet {
        self.publisher.parked()
    }

    pub(crate) fn parked_mut(&mut self) -> &mut ParkedSet {
        self.publisher.parked_mut()
    }

    pub(crate) fn publisher_mut(&mut self) -> &mut EventPublisher {
        &mut self.publisher
    }

    /// Returns the store of the relay's row, on the session's connection.
    pub(crate) fn relay_store(&mut self) -> &mut RelayStore {
        self.checkpoint.relay_store()
    }

    /// Returns the session's connection.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        self.checkpoint.relay_store().session()
    }

    pub(crate) fn into_publisher(self) -> EventPublisher {
        self.publisher
    }
}
