//! Makes progress durable: the position into `relay`, the confirmation into the stream. Also what keeps the stream alive
//! while the relay waits for something else.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{
    error::Interruption,
    forward::{Acknowledged, Forwarder, Hold},
    ledger::Ledger,
    observe::Observer,
    position::Position,
    slot,
    watermark::Watermark,
};
use crate::postgres::replication::StatusWriter;

/// How often progress is stored, and the server told where we are even if nothing changed: what a kill -9 repeats at most
/// beside what was in flight, and well within any `wal_sender_timeout`.
const EVERY: Duration = Duration::from_secs(1);

/// A server that says nothing for this long, although it was asked to, is gone without a word: its machine, or the network.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How often the slot is looked at for the metrics.
const SLOT_EVERY: Duration = Duration::from_secs(10);

/// Keeps the books of one stream.
pub(super) struct Checkpointer {
    pub(super) watermark: Watermark,
    pub(super) ledger: Ledger,
    status: StatusWriter,
    observer: Observer,
    relay: String,
    lost: CancellationToken,
    tick: Interval,
    stored: Position,
    /// When the server was heard last.
    heard: Instant,
    slot_seen: Option<Instant>,
}

impl Checkpointer {
    pub(super) fn new(
        relay: &str,
        watermark: Watermark,
        ledger: Ledger,
        status: StatusWriter,
        observer: &Observer,
        lost: CancellationToken,
    ) -> Self {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first position is stored in any case: the row may be behind what the last session knew.
        let (stored, heard) = (Position::default(), Instant::now());
        Self { watermark, ledger, status, observer: observer.clone(), relay: relay.to_owned(), lost, tick, stored, heard, slot_seen: None }
    }

    /// Waits for the next time progress shall be stored.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn due(&mut self) {
        self.tick.tick().await;
    }

    /// Stores and confirms what is durable.
    ///
    /// # Errors
    /// A lost connection, a lost lease, or a producer that has failed.
    pub(super) async fn store(&mut self, forwarder: &mut Forwarder) -> Result<(), Interruption> {
        let Acknowledged { floor, counts } = forwarder.acknowledged()?;
        self.watermark.acknowledged(floor);
        let position = self.watermark.safe();
        let published = counts.iter().map(|(_, records)| records).sum();
        if position != self.stored || published > 0 {
            self.ledger.checkpoint(position, self.watermark.witness(), published).await?;
            self.stored = position;
        }
        if !counts.is_empty() {
            self.ledger.count_topics(&counts).await?;
        }
        let silence = self.heard.elapsed();
        if silence > SILENCE_MAX {
            return Err(Interruption::replication("waiting for Postgres")(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
        }
        self.confirm(silence > SILENCE_MAX / 3).await?;
        if self.slot_seen.is_none_or(|seen| seen.elapsed() > SLOT_EVERY) {
            self.look_at_slot().await?;
        }
        Ok(())
    }

    /// Takes note that the server was heard.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Tells the server what is safe, as far as it is known; with `reply` it is asked to show that it is there.
    async fn confirm(&mut self, reply: bool) -> Result<(), Interruption> {
        self.status.confirm(self.watermark.confirmed(), reply).await.map_err(Interruption::replication("confirming to Postgres"))
    }

    async fn look_at_slot(&mut self) -> Result<(), Interruption> {
        if let Some((lag_bytes, retained_bytes)) = slot::log_kept(self.ledger.session(), &self.relay).await? {
            self.observer.slot(lag_bytes, retained_bytes);
        }
        self.slot_seen = Some(Instant::now());
        Ok(())
    }

    /// Waits until what held an event is out of the way, and answers for the stream meanwhile: a sink that is slow, or a topic
    /// that is missing for a day, must not look to Postgres like a dead relay. False if `shutdown` came first.
    ///
    /// # Errors
    /// As [`Checkpointer::store`].
    pub(super) async fn attend(
        &mut self,
        forwarder: &mut Forwarder,
        hold: Hold,
        shutdown: &CancellationToken,
    ) -> Result<bool, Interruption> {
        // One future for the whole wait: a question to Kafka takes longer than a tick.
        let mut clearing = forwarder.clear(hold);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(false),
                () = self.lost.cancelled() => return Err(Interruption::LeaseLost),
                cleared = &mut clearing => return forwarder.cleared(cleared).map(|()| true),
                _ = self.tick.tick() => {}
            }
            // Nobody listens at present.
            self.heard();
            self.store(forwarder).await?;
        }
    }

    /// Ends the stream politely.
    pub(super) async fn finish(self) {
        self.status.finish().await;
    }
}
