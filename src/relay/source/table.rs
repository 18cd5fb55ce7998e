//! The table as a source, window by window.
//!
//! A window contains the rows that one snapshot sees and the one before it did not, in the order of
//! `seq`. Gaps in the sequence and late commits lose no event, and a window does not wait for open
//! transactions. The order of each aggregate is kept: if A took effect before B, every snapshot
//! that sees B sees A, and A has the smaller number.
//!
//! A window is published only once the server has flushed the log beyond it. With
//! `synchronous_commit` off, a crash may undo commits that a snapshot has seen.

use std::{collections::BTreeSet, time::Duration};

use tokio::sync::mpsc;

use super::{
    pages::{Page, Reader, damaged},
    parked::release,
    publish,
    server_snapshot::look,
};
use crate::{
    failpoint::{self, Step},
    postgres::Lsn,
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::within,
        monitor::metrics::{Component, RelayMetrics},
        pipeline::{Pipeline, Stop},
        position::{Coverage, Witness},
        row::{debezium::RowBuffer, native::TableRow, table_layout::TableLayout},
    },
    task::OwnedTask,
};

/// Interval between checks of the flushed position.
const FLUSH_POLL: Duration = Duration::from_millis(2);

/// Number of unsuccessful checks before the relay makes the server flush. A server whose writers do
/// not wait for the flush may take 200 ms by itself.
const FLUSH_POLLS: u32 = 5;

/// Number of events missing from the stream that are looked up together.
const MISSED_A_PAGE: usize = 500;

/// Reads the outbox in windows.
pub(crate) struct TableSource {
    table_layout: TableLayout,
    reader: Option<Reader>,
    coverage: Coverage,
    /// The insert position read for the last window. It precedes the next snapshot.
    insert: Option<Lsn>,
}

impl TableSource {
    pub(crate) fn new(options: &RelayOptions, table_layout: &TableLayout) -> Self {
        Self {
            table_layout: table_layout.clone(),
            reader: Some(Reader::new(options, table_layout)),
            coverage: Coverage::default(),
            insert: None,
        }
    }

    /// Publishes the events that have become visible since the last window, or the rest of an
    /// interrupted window. Returns their number. Some may still be in flight.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(crate) async fn window(
        &mut self,
        pipeline: &mut Pipeline,
        observer: &RelayMetrics,
    ) -> Result<u64, Stop> {
        observer.note(Component::Stream, "reading the table");
        if pipeline.settled().window.is_none() {
            let look = look(pipeline.connection()).await?;
            if let Some(before) = self.insert.replace(look.insert) {
                self.coverage.note(before, &look.snapshot);
            }
            if look.flushed < look.insert {
                wait_for_flush(pipeline, look.insert).await?;
            }
            pipeline.progress().open_window(look.snapshot, look.insert);
            failpoint::reached(Step::WindowOpened);
        }
        let position = pipeline.settled();
        let window = position.window.clone().expect("a window is open");
        let events = if window.to == position.snapshot {
            0
        } else {
            let (send, mut pages) = mpsc::channel(1);
            let reader = self.reader.take().expect("the last window gave it back");
            let reading =
                OwnedTask::spawn(reader.read(position.snapshot.clone(), window.clone(), send));
            let mut events = 0;
            while let Some(page) = next_page(&mut pages, pipeline).await? {
                pipeline.caught_up();
                events += publish_page(&page, &self.table_layout, pipeline).await?;
            }
            let reader = reading.await.map_err(|error| {
                Interruption::sql("reading the outbox")(sqlx::Error::Io(std::io::Error::other(
                    error,
                )))
            })?;
            self.reader = Some(reader?);
            events
        };
        if events > 0 {
            failpoint::reached(Step::WindowSent);
        }
        pipeline
            .progress()
            .close_window(self.coverage.covered_by(&window.to));
        if events > 0 {
            observer.batch(events);
        }
        Ok(events)
    }
}

/// Returns the next page, or `None` after the last one. Counting a window may take long, so
/// checkpoints are stored meanwhile.
async fn next_page(
    pages: &mut mpsc::Receiver<Page>,
    pipeline: &mut Pipeline,
) -> Result<Option<Page>, Stop> {
    loop {
        tokio::select! {
            biased;
            page = pages.recv() => return Ok(page),
            due = pipeline.due() => due?,
        }
        pipeline.tick().await?;
    }
}

/// Looks up and registers the new topics of a page.
async fn meet_topics(
    page: &Page,
    table_layout: &TableLayout,
    pipeline: &mut Pipeline,
) -> Result<(), Stop> {
    if !pipeline.publisher().meets_topics() {
        return Ok(());
    }
    let (mut topics, now) = (BTreeSet::new(), chrono::Utc::now().timestamp_micros());
    for cells in page.rows(table_layout)? {
        let (cells, mut scratch) = (cells.map_err(damaged)?, RowBuffer::default());
        // A row that cannot be read is reported when it is published.
        if let Ok(TableRow { xid, row }) = table_layout.event(&cells, now, &mut scratch)
            && pipeline.progress().wants_row(xid, row.seq)
        {
            topics.extend(pipeline.new_topic(&row.event));
        }
    }
    pipeline.meet_topics(topics).await
}

/// Publishes a page. Returns the number of its events that were not published before.
async fn publish_page(
    page: &Page,
    table_layout: &TableLayout,
    pipeline: &mut Pipeline,
) -> Result<u64, Stop> {
    meet_topics(page, table_layout, pipeline).await?;
    let (mut events, now) = (0, chrono::Utc::now().timestamp_micros());
    for cells in page.rows(table_layout)? {
        let (cells, mut scratch) = (cells.map_err(damaged)?, RowBuffer::default());
        let TableRow { xid, row } = match table_layout.event(&cells, now, &mut scratch) {
            Err(error)
                if error
                    .seq()
                    .is_some_and(|seq| pipeline.settled().gave_up(seq)) =>
            {
                pipeline
                    .progress()
                    .passed(error.seq().unwrap_or_default(), None);
                continue;
            }
            row => row?,
        };
        if !pipeline.progress().wants_row(xid, row.seq) {
            pipeline.progress().passed(row.seq, None);
            continue;
        }
        publish(&row, pipeline).await?;
        events += 1;
        pipeline.progress().passed(
            row.seq,
            Some(Witness {
                id: row.event.id,
                seq: row.seq,
                xid,
            }),
        );
        pipeline.end_batch_if_wanted(false).await?;
    }
    if pipeline.tick_if_due().await? {
        release(pipeline).await?;
    }
    Ok(events)
}

/// Publishes events that the stream has left out, later than their order requires.
///
/// # Errors
///
/// Returns [`Stop`] if the relay shuts down or the session is interrupted.
pub(super) async fn publish_missed(
    options: &RelayOptions,
    table_layout: &TableLayout,
    seqs: &[i64],
    pipeline: &mut Pipeline,
) -> Result<(), Stop> {
    let mut reader = Reader::new(options, table_layout);
    let (mut rest, now) = (seqs, chrono::Utc::now().timestamp_micros());
    while !rest.is_empty() {
        let (page, done) = reader
            .read_these(&rest[..rest.len().min(MISSED_A_PAGE)])
            .await?;
        rest = &rest[done..];
        for cells in page.rows(table_layout)? {
            let (cells, mut scratch) = (cells.map_err(damaged)?, RowBuffer::default());
            let row = table_layout.event(&cells, now, &mut scratch)?;
            publish(&row.row, pipeline).await?;
            pipeline.progress().sent_late(row.xid, row.row.seq);
        }
    }
    Ok(())
}

/// Waits until the server has flushed its log up to `insert`.
async fn wait_for_flush(pipeline: &mut Pipeline, insert: Lsn) -> Result<(), Interruption> {
    let doing = "waiting for the log to be flushed";
    for polls in 0.. {
        let flushed = sqlx::query_scalar::<_, String>("select pg_current_wal_flush_lsn()::text")
            .fetch_one(pipeline.connection());
        if within(doing, flushed)
            .await?
            .parse::<Lsn>()
            .unwrap_or_default()
            >= insert
        {
            break;
        }
        if polls == FLUSH_POLLS {
            pipeline.relay_store().flush().await?;
        }
        tokio::time::sleep(FLUSH_POLL).await;
    }
    Ok(())
}
