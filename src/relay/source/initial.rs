//! The start of a relay that reads only the log: its slot, and the existing rows of the table.

use tokio::sync::mpsc;

use super::{
    connector_handover,
    pages::{Reader, damaged},
    publish,
    selector::SourceSelector,
    slot,
};
use crate::{
    relay::{
        ExistingRows,
        error::Interruption,
        monitor::metrics::Component,
        options::debezium::DebeziumOutbox,
        pipeline::{Pipeline, Stop},
        position::{Position, Progress},
        row::debezium::RowBuffer,
    },
    task::OwnedTask,
};

impl SourceSelector<'_> {
    /// Creates a slot, publishes or skips the rows that its snapshot sees, and continues from
    /// there.
    ///
    /// The position stays empty until the last of those rows is published. A relay that dies before
    /// that starts again and repeats them, as a connector does: the table has no column that could
    /// mark the progress of the read.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(super) async fn begin(
        &self,
        existing: ExistingRows,
        pipeline: &mut Pipeline,
    ) -> Result<(), Stop> {
        slot::forget(self.names, pipeline.connection()).await?;
        // Owned, so that the end of the session also ends the creation.
        let mut making = slot::make_exporting(self.options, self.names, self.server);
        let waiting = self.observer.hold(
            Component::Stream,
            "the slot is being created, which waits for every open transaction of the server: the \
             log names them every 5 s",
        );
        let seam = loop {
            tokio::select! {
                made = &mut making => {
                    let broke_off = |error| {
                        Interruption::Refused(format!("creating the slot broke off: {error}"))
                    };
                    break made.map_err(broke_off)??;
                }
                due = pipeline.due() => {
                    due?;
                    pipeline.tick().await?;
                }
            }
        };
        drop(waiting);
        tracing::info!(
            slot = self.names.slot, from = %seam.from, ?existing,
            "created the slot"
        );
        if existing == ExistingRows::Publish {
            self.publish_existing(&seam.exported, pipeline).await?;
        }
        drop(seam.connection);
        let start = Position {
            snapshot: seam.snapshot,
            resume_lsn: seam.from,
            published_lsn: seam.from,
            ..Position::start()
        };
        self.continue_from(start, pipeline).await
    }

    /// Continues at the start of an existing slot, and skips everything before it.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(super) async fn begin_at_slot(&self, pipeline: &mut Pipeline) -> Result<(), Stop> {
        let start = connector_handover::at_slot(self.names, pipeline.connection()).await?;
        self.continue_from(start, pipeline).await
    }

    /// Continues where a connector has stopped.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(super) async fn take_over(
        &self,
        outbox: &DebeziumOutbox,
        pipeline: &mut Pipeline,
    ) -> Result<(), Stop> {
        let from = outbox.hand_over.as_ref().expect("decided by it");
        let connection = pipeline.connection();
        let start =
            connector_handover::take_over(self.options, self.names, connection, from).await?;
        self.continue_from(start, pipeline).await
    }

    /// Stores a position before anything is published after it.
    async fn continue_from(&self, start: Position, pipeline: &mut Pipeline) -> Result<(), Stop> {
        *pipeline.progress() = Progress::new(start);
        let shutdown = pipeline.shutdown().clone();
        let drained = tokio::select! {
            drained = pipeline.drain() => drained,
            () = shutdown.cancelled() => return Err(Stop::Shutdown),
        };
        drained?;
        Ok(pipeline.tick().await?)
    }

    async fn publish_existing(&self, snapshot: &str, pipeline: &mut Pipeline) -> Result<(), Stop> {
        self.observer
            .note(Component::Stream, "reading the existing rows");
        let (send, mut pages) = mpsc::channel(1);
        let reading = OwnedTask::spawn(
            Reader::new(self.options, self.table_layout).read_existing(snapshot.to_owned(), send),
        );
        let (mut events, now) = (0u64, chrono::Utc::now().timestamp_micros());
        while let Some(page) = pages.recv().await {
            for cells in page.rows(self.table_layout)? {
                let (cells, mut scratch) = (cells.map_err(damaged)?, RowBuffer::default());
                let row = self.table_layout.event(&cells, now, &mut scratch)?;
                publish(&row.row, pipeline).await?;
                events += 1;
                pipeline.end_batch_if_wanted(false).await?;
            }
            pipeline.tick_if_due().await?;
        }
        let broke_off =
            |error| Interruption::Refused(format!("reading the existing rows broke off: {error}"));
        reading.await.map_err(broke_off)??;
        tracing::info!(events, "published the existing rows");
        Ok(())
    }
}
