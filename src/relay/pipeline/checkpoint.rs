//! Checkpoints of a session: the position after the sent events, its durable part, and the copy in
//! Postgres.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::publisher::EventPublisher;
use crate::{
    failpoint::{self, Step},
    postgres::Lsn,
    relay::{
        error::Interruption,
        leadership::relay_store::{Checkpoint, Reading, RelayStore},
        parked::store,
        position::{Position, Progress},
        sink::Durable,
        startup::recovery::Start,
    },
};

/// Interval between checkpoints. With at-least-once delivery it bounds the events that are repeated
/// after a kill -9. It is far below any useful `wal_sender_timeout`.
const INTERVAL: Duration = Duration::from_secs(1);

/// Interval between advances of an idle outbox's position to the end of the log. Each advance costs
/// a Kafka transaction, but the server keeps the log until it is confirmed.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// The reason for reading the table until a source is chosen.
const STARTING: &str = "the relay starts";

/// The checkpoint of one session.
pub(crate) struct Checkpointer {
    progress: Progress,
    relay_store: RelayStore,
    durable: Position,
    /// The number of the durable position's record in the position topic.
    number: u64,
    /// The log position at the end of the last batch.
    batch_log: Lsn,
    batch_ended_at: Instant,
    reading: (Reading, String),
    /// The relay's row in Postgres contains the durable position.
    is_stored: bool,
    /// The operator has moved the position, and the moved position is not durable yet. The row
    /// keeps the requested move until then.
    is_moved: bool,
    stored_at: Instant,
    interval: Interval,
}

impl Checkpointer {
    pub(super) fn new(start: Start, relay_store: RelayStore) -> Self {
        let Start {
            position,
            number,
            moved,
        } = start;
        let mut interval = interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            progress: Progress::new(position.clone()),
            relay_store,
            batch_log: position.resume_lsn,
            batch_ended_at: Instant::now(),
            durable: position,
            number,
            reading: (Reading::Table, STARTING.into()),
            is_stored: false,
            is_moved: moved,
            stored_at: Instant::now(),
            interval,
        }
    }

    pub(super) fn reads(&mut self, reading: Reading, reason: String) {
        let now = (reading, reason);
        if self.reading != now {
            let source = match reading {
                Reading::Wal => "the log",
                Reading::Table => "the table",
            };
            tracing::info!(source = reading.word(), "reads {source}: {}", now.1);
            self.reading = now;
            self.is_stored = false;
        }
    }

    pub(super) fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    pub(super) fn settled(&self) -> &Position {
        self.progress.settled()
    }

    /// Returns the durable position and its record's number.
    pub(super) fn durable(&self) -> (&Position, u64) {
        (&self.durable, self.number)
    }

    pub(super) fn relay_store(&mut self) -> &mut RelayStore {
        &mut self.relay_store
    }

    /// Waits until the next checkpoint is due.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(super) async fn due(&mut self) {
        self.interval.tick().await;
    }

    pub(super) fn is_due(&self) -> bool {
        self.stored_at.elapsed() >= INTERVAL
    }

    /// Returns `true` if the log has advanced without events for long enough that the position
    /// should follow it.
    pub(super) fn wants_idle_batch(&self, publisher: &EventPublisher) -> bool {
        let interval = match publisher.sink().batches_cost() {
            true => IDLE_INTERVAL,
            false => INTERVAL,
        };
        self.settled().resume_lsn > self.batch_log && self.batch_ended_at.elapsed() >= interval
    }

    /// Ends a batch at the current position. Returns `false` if the previous batch is still being
    /// committed.
    pub(super) fn end_batch(&mut self, publisher: &mut EventPublisher) -> bool {
        let position = self.progress.position();
        let log = position.resume_lsn;
        let done = publisher.end_batch(position);
        if done {
            (self.batch_log, self.batch_ended_at) = (log, Instant::now());
        }
        done
    }

    /// Stores the events that were parked since the last call. Returns `true` if there were any.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection or the lease is lost.
    pub(super) async fn store_parked(
        &mut self,
        publisher: &mut EventPublisher,
    ) -> Result<bool, Interruption> {
        if publisher.parked().is_stored() {
            return Ok(false);
        }
        store::store(&mut self.relay_store, publisher.parked()).await?;
        failpoint::reached(Step::Parked);
        publisher.parked_mut().stored();
        Ok(true)
    }

    /// Stores the durable position if it has moved, and a heartbeat otherwise. Returns `true` if
    /// the position has moved.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection, the lease or the producer is lost.
    pub(super) async fn store(
        &mut self,
        publisher: &mut EventPublisher,
    ) -> Result<bool, Interruption> {
        self.stored_at = Instant::now();
        let durable = publisher.durable()?;
        let is_durable = durable.is_some();
        match durable {
            Some((Durable { batch, number }, counts)) => {
                (self.durable, self.number) = (*batch.position, number);
                let published = counts.iter().map(|(_, records)| records).sum();
                self.write(published).await?;
                if number > 0 {
                    self.relay_store.note_signed().await?;
                }
                if !counts.is_empty() {
                    self.relay_store.count_topics(&counts).await?;
                }
                self.forget_released().await?;
                (self.is_stored, self.is_moved) = (true, false);
                failpoint::reached(Step::Mirrored);
            }
            None if !self.is_stored && !self.is_moved => {
                self.write(0).await?;
                self.is_stored = true;
            }
            None => self.relay_store.heartbeat().await?,
        }
        publisher.set_clock(self.relay_store.clock());
        Ok(is_durable)
    }

    async fn write(&mut self, published: u64) -> Result<(), Interruption> {
        let checkpoint = Checkpoint {
            position: &self.durable,
            number: self.number,
            source: self.reading.0,
            reason: &self.reading.1,
            published,
        };
        self.relay_store.checkpoint(checkpoint).await
    }

    /// Deletes released events from the table of parked events, after the checkpoint. A session
    /// that does not find them in the table therefore finds them in the position.
    async fn forget_released(&mut self) -> Result<(), Interruption> {
        if self.durable.released.is_empty() {
            return Ok(());
        }
        failpoint::reached(Step::ReleaseCommitted);
        store::delete(&mut self.relay_store, &self.durable.released).await?;
        failpoint::reached(Step::Released);
        self.progress.forget_released(&self.durable.released);
        Ok(())
    }
}
