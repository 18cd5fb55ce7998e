//! The table as a source, window by window.
//!
//! A window is what one snapshot sees and the one before it did not, in the order of `seq`. It loses nothing to gaps in the sequence or to late
//! commits, does not wait for a transaction that stays open, and keeps each aggregate's order: if A took effect before B, every snapshot that sees
//! B sees A, and A has the smaller number. A window is published only once the server has flushed the log beyond it: with synchronous_commit
//! off a crash may undo what a snapshot has seen.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    pages::{Page, Reader, damaged},
    parked::release,
    server_snapshot::look,
};
use crate::{
    failpoint::{self, Step},
    postgres::Lsn,
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::within,
        monitor::metrics::{Observer, Part},
        pipeline::{checkpoint::Books, publish, publisher::Forwarder},
        position::{Coverage, Witness},
        row::{debezium::Scratch, native::TableRow, table_layout::Shape},
    },
};

/// Between two looks at how far the server has flushed.
const FLUSH_POLL: Duration = Duration::from_millis(2);

/// Looks without success before the server is made to flush: a server whose writers do not wait for it may take 200 ms by itself.
const FLUSH_POLLS: u32 = 5;

/// Events that the stream left out, looked up at once.
const MISSED_A_PAGE: usize = 500;

/// Reads the outbox in windows.
pub(crate) struct TableSource {
    shape: Shape,
    reader: Option<Reader>,
    coverage: Coverage,
    /// The insert position of the last look: it was read before the next snapshot.
    insert: Option<Lsn>,
}

/// How a window ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowEnd {
    /// It is published (or under way): this many events.
    Done(u64),
    Shutdown,
}

impl TableSource {
    pub(crate) fn new(options: &RelayOptions, shape: &Shape) -> Self {
        Self {
            shape: shape.clone(),
            reader: Some(Reader::new(options, shape)),
            coverage: Coverage::default(),
            insert: None,
        }
    }

    /// Publishes what has become visible since the last window, or what is left of one that was interrupted.
    ///
    /// # Errors
    /// Whatever interrupts it.
    pub(crate) async fn window(
        &mut self,
        forwarder: &mut Forwarder,
        books: &mut Books,
        observer: &Observer,
        shutdown: &CancellationToken,
    ) -> Result<WindowEnd, Interruption> {
        observer.note(Part::Stream, "reading the table");
        if books.progress.settled().window.is_none() {
            let look = look(books.ledger.session()).await?;
            if let Some(before) = self.insert.replace(look.insert) {
                self.coverage.note(before, &look.snapshot);
            }
            if look.flushed < look.insert {
                wait_for_flush(books, look.insert).await?;
            }
            books.progress.open_window(look.snapshot, look.insert);
            failpoint::reached(Step::WindowOpened);
        }
        let position = books.progress.settled();
        let window = position.window.clone().expect("a window is open");
        let events = if window.to == position.seen {
            0
        } else {
            let (send, mut pages) = mpsc::channel(1);
            let reader = self.reader.take().expect("the last window gave it back");
            let reading = tokio::spawn(reader.read(position.seen.clone(), window.clone(), send));
            let mut events = 0;
            while let Some(page) = next_page(&mut pages, forwarder, books).await? {
                books.caught_up();
                match publish_page(&page, &self.shape, forwarder, books, shutdown).await? {
                    Some(published) => events += published,
                    None => return Ok(WindowEnd::Shutdown),
                }
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
        books
            .progress
            .close_window(self.coverage.covered_by(&window.to));
        if events > 0 {
            observer.batch(events);
        }
        Ok(WindowEnd::Done(events))
    }
}

/// The next page, once it is read; `None` after the last. A window may take long to count, and the books are kept meanwhile.
async fn next_page(
    pages: &mut mpsc::Receiver<Page>,
    forwarder: &mut Forwarder,
    books: &mut Books,
) -> Result<Option<Page>, Interruption> {
    let lost = books.lost().clone();
    loop {
        tokio::select! {
            biased;
            page = pages.recv() => return Ok(page),
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
            () = books.due() => books.store(forwarder).await?,
        }
    }
}

/// Publishes a page; how many events it published, or none if `shutdown` came first.
async fn publish_page(
    page: &Page,
    shape: &Shape,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<Option<u64>, Interruption> {
    let (mut events, now) = (0, chrono::Utc::now().timestamp_micros());
    for cells in page.rows(shape)? {
        let (cells, mut scratch) = (cells.map_err(damaged)?, Scratch::default());
        let TableRow { xid, row } = match shape.event(&cells, now, &mut scratch) {
            Err(error)
                if error
                    .seq()
                    .is_some_and(|seq| books.progress.settled().gave_up(seq)) =>
            {
                books.progress.passed(error.seq().unwrap_or_default(), None);
                continue;
            }
            row => row?,
        };
        if !books.progress.wants_row(xid, row.seq) {
            books.progress.passed(row.seq, None);
            continue;
        }
        if publish::publish(&row, forwarder, books, shutdown)
            .await?
            .is_none()
        {
            return Ok(None);
        }
        events += 1;
        books.progress.passed(
            row.seq,
            Some(Witness {
                id: row.event.id,
                seq: row.seq,
                xid,
            }),
        );
        books.cut_if_wanted(forwarder, false).await?;
    }
    if shutdown.is_cancelled() {
        return Ok(None);
    }
    if books.lost().is_cancelled() {
        return Err(Interruption::LeaseLost);
    }
    if books.is_due() {
        books.store(forwarder).await?;
        if !release(forwarder, books, shutdown).await? {
            return Ok(None);
        }
    }
    Ok(Some(events))
}

/// Publishes events that the stream has not brought, out of their order; false if `shutdown` came first.
///
/// # Errors
/// Whatever interrupts it.
pub(super) async fn publish_missed(
    options: &RelayOptions,
    shape: &Shape,
    seqs: &[i64],
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<bool, Interruption> {
    let mut reader = Reader::new(options, shape);
    let (mut rest, now) = (seqs, chrono::Utc::now().timestamp_micros());
    while !rest.is_empty() {
        let (page, done) = reader
            .read_these(&rest[..rest.len().min(MISSED_A_PAGE)])
            .await?;
        rest = &rest[done..];
        for cells in page.rows(shape)? {
            let (cells, mut scratch) = (cells.map_err(damaged)?, Scratch::default());
            let row = shape.event(&cells, now, &mut scratch)?;
            if publish::publish(&row.row, forwarder, books, shutdown)
                .await?
                .is_none()
            {
                return Ok(false);
            }
            books.progress.sent_late(row.xid, row.row.seq);
        }
    }
    Ok(true)
}

/// Waits until the server has flushed its log up to `insert`.
async fn wait_for_flush(books: &mut Books, insert: Lsn) -> Result<(), Interruption> {
    let doing = "waiting for the log to be flushed";
    for polls in 0.. {
        let flushed = sqlx::query_scalar::<_, String>("select pg_current_wal_flush_lsn()::text")
            .fetch_one(books.ledger.session());
        if within(doing, flushed)
            .await?
            .parse::<Lsn>()
            .unwrap_or_default()
            >= insert
        {
            break;
        }
        if polls == FLUSH_POLLS {
            books.ledger.flush().await?;
        }
        tokio::time::sleep(FLUSH_POLL).await;
    }
    Ok(())
}
