//! Checkpoints of a session: what was sent, what of it is durable, and what Postgres stores of it.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::publisher::EventPublisher;
use crate::{
    failpoint::{self, Step},
    postgres::Lsn,
    relay::{
        error::Interruption,
        leadership::relay_store::{Checkpoint, Ledger, Reading},
        parked::store,
        position::{Position, Progress},
        sink::Durable,
        startup::recovery::Start,
    },
};

/// The interval between checkpoints. With delivery at least once it bounds the events that a kill -9 repeats, and it is well
/// within any `wal_sender_timeout`.
const INTERVAL: Duration = Duration::from_secs(1);

/// The interval at which the position of an idle outbox follows the log. Each time costs a Kafka transaction, and the server
/// keeps the log that is not confirmed.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// The reason for the table until another source is chosen.
const STARTING: &str = "the relay begins";

/// The checkpoint of one session.
pub(crate) struct Checkpointer {
    progress: Progress,
    relay_store: Ledger,
    durable: Position,
    /// The number of the durable position's record.
    number: u64,
    /// The position in the log at the end of the last batch.
    batch_log: Lsn,
    batch_ended_at: Instant,
    reading: (Reading, String),
    /// The row in Postgres has the durable position.
    is_stored: bool,
    /// The operator has moved the position, and the move is not durable yet: the row keeps it until then.
    is_moved: bool,
    stored_at: Instant,
    interval: Interval,
}

impl Checkpointer {
    pub(super) fn new(start: Start, relay_store: Ledger) -> Self {
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
            batch_log: position.log,
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

    /// The durable position, and the number of its record.
    pub(super) fn durable(&self) -> (&Position, u64) {
        (&self.durable, self.number)
    }

    pub(super) fn relay_store(&mut self) -> &mut Ledger {
        &mut self.relay_store
    }

    /// Waits until the next checkpoint is due.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(super) async fn due(&mut self) {
        self.interval.tick().await;
    }

    pub(super) fn is_due(&self) -> bool {
        self.stored_at.elapsed() >= INTERVAL
    }

    /// Whether the log has moved on without events for so long that the position should follow it.
    pub(super) fn wants_idle_batch(&self, publisher: &EventPublisher) -> bool {
        let interval = match publisher.sink().cuts_cost() {
            true => IDLE_INTERVAL,
            false => INTERVAL,
        };
        self.settled().log > self.batch_log && self.batch_ended_at.elapsed() >= interval
    }

    /// Ends a batch at the present position. Returns `false` if the previous one is still being committed.
    pub(super) fn end_batch(&mut self, publisher: &mut EventPublisher) -> bool {
        let position = self.progress.position();
        let log = position.log;
        let done = publisher.end_batch(position);
        if done {
            (self.batch_log, self.batch_ended_at) = (log, Instant::now());
        }
        done
    }

    /// Stores the events that were parked since the last call. Returns whether there were any.
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

    /// Stores the durable position if it has moved, or a heartbeat. Returns whether it has moved.
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

    /// Deletes released events from the table of parked ones. After the checkpoint: a session that no longer finds them
    /// there finds the position that has them.
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
