//! The beginning of a relay that reads the log alone: a slot, and what becomes of the rows that are there.

use tokio::sync::mpsc;

use super::{connector_handover, selector::Drive, slot};
use crate::relay::{
    ExistingRows,
    error::Interruption,
    monitor::metrics::Part,
    options::debezium::DebeziumOutbox,
    pipeline::{checkpoint::Books, publish::publish, publisher::Forwarder},
    position::{Position, Progress},
    row::debezium::Scratch,
    source::pages::{Reader, damaged},
};

impl Drive<'_> {
    /// Makes a slot, publishes the rows that its snapshot sees or leaves them, and goes on from there; false if `shutdown` came first.
    ///
    /// The position says "nothing" until the last of those rows is published: a relay that dies before that begins anew and repeats them, as
    /// a connector does. There is nothing to resume by.
    ///
    /// # Errors
    /// Whatever interrupts it.
    pub(crate) async fn begin(
        &self,
        existing: ExistingRows,
        forwarder: &mut Forwarder,
        books: &mut Books,
    ) -> Result<bool, Interruption> {
        slot::forget(self.names, books.ledger.session()).await?;
        let mut making = slot::make_exporting(self.options, self.names, self.server);
        let waiting = self.observer.hold(
            Part::Stream,
            "the slot is being made, which waits for every open transaction of the server: the log names them every 5 s",
        );
        let seam = loop {
            tokio::select! {
                made = &mut making => break made.map_err(|error| Interruption::Refused(format!("creating the slot broke off: {error}")))??,
                () = self.shutdown.cancelled() => {
                    making.abort();
                    return Ok(false);
                }
                () = books.due() => books.store(forwarder).await?,
            }
        };
        drop(waiting);
        tracing::info!(slot = self.names.slot, from = %seam.from, ?existing, "has made the slot");
        if existing == ExistingRows::Publish
            && !self
                .publish_existing(&seam.exported, forwarder, books)
                .await?
        {
            return Ok(false);
        }
        drop(seam.connection);
        let start = Position {
            seen: seam.snapshot,
            log: seam.from,
            reach: seam.from,
            ..Position::start()
        };
        self.go_on_from(start, forwarder, books).await
    }

    /// The slot is there: everything before it is left.
    ///
    /// # Errors
    /// Whatever interrupts it.
    pub(crate) async fn begin_at_slot(
        &self,
        forwarder: &mut Forwarder,
        books: &mut Books,
    ) -> Result<bool, Interruption> {
        let start = connector_handover::at_slot(self.names, books.ledger.session()).await?;
        self.go_on_from(start, forwarder, books).await
    }

    /// Goes on where a connector has stopped.
    ///
    /// # Errors
    /// Whatever interrupts it.
    pub(crate) async fn take_over(
        &self,
        outbox: &DebeziumOutbox,
        forwarder: &mut Forwarder,
        books: &mut Books,
    ) -> Result<bool, Interruption> {
        let from = outbox.hand_over.as_ref().expect("decided by it");
        let start =
            connector_handover::take_over(self.options, self.names, books.ledger.session(), from)
                .await?;
        self.go_on_from(start, forwarder, books).await
    }

    /// Stores the position before anything is published after it; false if `shutdown` came first.
    async fn go_on_from(
        &self,
        start: Position,
        forwarder: &mut Forwarder,
        books: &mut Books,
    ) -> Result<bool, Interruption> {
        books.progress = Progress::new(start);
        let drained = tokio::select! {
            drained = books.drain(forwarder) => drained,
            () = self.shutdown.cancelled() => return Ok(false),
        };
        if !drained {
            return Err(forwarder
                .sink()
                .failure()
                .unwrap_or_else(|| Interruption::Kafka("the producer has failed".into())));
        }
        books.store(forwarder).await?;
        Ok(true)
    }

    async fn publish_existing(
        &self,
        snapshot: &str,
        forwarder: &mut Forwarder,
        books: &mut Books,
    ) -> Result<bool, Interruption> {
        self.observer
            .note(Part::Stream, "reading the rows that are there");
        let (send, mut pages) = mpsc::channel(1);
        let reading = tokio::spawn(
            Reader::new(self.options, self.shape).read_existing(snapshot.to_owned(), send),
        );
        let (mut events, now) = (0u64, chrono::Utc::now().timestamp_micros());
        while let Some(page) = pages.recv().await {
            for cells in page.rows(self.shape)? {
                let (cells, mut scratch) = (cells.map_err(damaged)?, Scratch::default());
                let row = self.shape.event(&cells, now, &mut scratch)?;
                if publish(&row.row, forwarder, books, self.shutdown)
                    .await?
                    .is_none()
                {
                    return Ok(false);
                }
                events += 1;
                books.cut_if_wanted(forwarder, false).await?;
            }
            if books.is_due() {
                books.store(forwarder).await?;
            }
        }
        reading.await.map_err(|error| {
            Interruption::Refused(format!(
                "reading the rows that are there broke off: {error}"
            ))
        })??;
        tracing::info!(events, "has published the rows that were there");
        Ok(true)
    }
}
