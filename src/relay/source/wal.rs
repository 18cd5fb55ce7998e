//! The write-ahead log as a source: commit order, as transactions commit.

use std::{collections::HashMap, time::Duration};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    parked::release,
    read_pacing::Pace,
    reconcile,
    server_snapshot::{Look, look},
    table::publish_missed,
};
use crate::{
    postgres::{
        Lsn,
        replication::{
            Frame, FrameReader, Message, POSTGRES_EPOCH_MICROS, Relation, ReplicationError, decode,
        },
    },
    relay::{
        RelayOptions,
        error::Interruption,
        monitor::metrics::{Observer, Part},
        pipeline::{
            checkpoint::Books,
            publish::publish,
            publisher::{Forwarded, Forwarder},
        },
        row::{
            debezium::{Layout, Scratch},
            native::{Columns, TableColumns},
            table_layout::Shape,
        },
    },
};

/// Behind by this much log, bytes, the table is the faster source. About 100,000 events, which a stream reads in half a second: less is not
/// worth the change.
pub(crate) const BEHIND_BYTES: u64 = 64 << 20;

/// Most tables of the outbox's name in one stream: the table and those that replaced it since, of which each has an id of its own.
const TABLES_MAX: usize = 64;

/// Behind by less than this, much log is not much to publish: others have written it.
const BEHIND: Duration = Duration::from_secs(1);

/// The log may end with the header of a page, which belongs to no record: so many bytes at most.
const PAGE_HEADER_BYTES: u64 = 64;

/// A stream of the log, read and forwarded until something interrupts it.
pub(crate) struct WalSource {
    reader: FrameReader,
    pace: Pace,
    /// The outbox's columns, by the table's id in the stream.
    tables: HashMap<u32, TableColumns>,
    options: RelayOptions,
    shape: Shape,
    /// When the current transaction committed, microseconds since 2000.
    committed_at: i64,
    events: u64,
    /// How far the log was read when this was looked at last.
    seen: Lsn,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    Shutdown,
    /// The table is the faster source now.
    Behind(u64),
}

impl WalSource {
    pub(crate) fn new(reader: FrameReader, options: &RelayOptions, shape: &Shape) -> Self {
        let (options, shape) = (options.clone(), shape.clone());
        Self {
            reader,
            pace: Pace::default(),
            tables: HashMap::new(),
            options,
            shape,
            committed_at: 0,
            events: 0,
            seen: Lsn::default(),
        }
    }

    /// Reads and forwards until `shutdown`, or, if `leave_when_behind`, until the table is the faster source; what was sent may then still be
    /// under way.
    ///
    /// # Errors
    /// Whatever interrupts the stream.
    pub(crate) async fn run(
        &mut self,
        forwarder: &mut Forwarder,
        books: &mut Books,
        observer: &Observer,
        leave_when_behind: bool,
        shutdown: &CancellationToken,
    ) -> Result<StreamEnd, Interruption> {
        observer.note(Part::Stream, "streaming");
        observer.pulse().step("streaming the log");
        let lost = books.lost().clone();
        let mut topped_up = false;
        loop {
            if !self.forward_buffered(forwarder, books, shutdown).await? {
                return Ok(StreamEnd::Shutdown);
            }
            // What came while the last batch was committed goes along with this one, or it would wait for a third to end.
            topped_up = !topped_up && self.fill_if_more_has_come()?;
            if topped_up {
                books.heard();
                continue;
            }
            // Far behind, the buffer is empty between two reads and not because there is nothing more.
            books
                .cut_if_wanted(forwarder, !self.pace.is_far_behind())
                .await?;
            observer.lag(self.pace.lag());
            if self.events > 0 {
                observer.batch(std::mem::take(&mut self.events));
            }
            let read = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(StreamEnd::Shutdown),
                () = lost.cancelled() => return Err(Interruption::LeaseLost),
                () = books.due() => {
                    books.store(forwarder).await?;
                    if !release(forwarder, books, shutdown).await? {
                        return Ok(StreamEnd::Shutdown);
                    }
                    match self.pair(forwarder, books, shutdown).await? {
                        None => return Ok(StreamEnd::Shutdown),
                        Some(behind) if leave_when_behind && behind > BEHIND_BYTES && self.pace.lag() > BEHIND => {
                            return Ok(StreamEnd::Behind(behind));
                        }
                        Some(_) => continue,
                    }
                }
                read = self.reader.fill() => read.map_err(Interruption::replication("reading the stream"))?,
            };
            books.heard();
            if let Some(nap) = self.pace.nap(read) {
                tokio::time::sleep(nap).await;
            }
        }
    }

    /// Reads what is there already, unless so much is that the socket had better fill.
    fn fill_if_more_has_come(&mut self) -> Result<bool, Interruption> {
        if self.pace.is_behind() {
            return Ok(false);
        }
        match self.reader.fill().now_or_never() {
            None => Ok(false),
            Some(read) => read
                .map(|_| true)
                .map_err(Interruption::replication("reading the stream")),
        }
    }

    /// Moves the position's snapshot on, after a comparison with the table. Bytes of log that are not streamed yet; none if `shutdown` came first.
    async fn pair(
        &mut self,
        forwarder: &mut Forwarder,
        books: &mut Books,
        shutdown: &CancellationToken,
    ) -> Result<Option<u64>, Interruption> {
        if let Some(pair) = books.progress.reached() {
            let mut missing = match self.shape.log_only() {
                None => {
                    reconcile::missing(books.ledger.session(), &self.options.quoted_table(), &pair)
                        .await?
                }
                // There is nothing to compare with.
                Some(_) => Vec::new(),
            };
            missing.retain(|seq| !books.progress.settled().gave_up(*seq));
            if !missing.is_empty() {
                tracing::error!(
                    events = missing.len(),
                    first = missing[0],
                    "the stream left events out that the outbox holds: the publication was altered or made anew while the relay ran. They are published from the table, after later events of their aggregates"
                );
                if !publish_missed(
                    &self.options,
                    &self.shape,
                    &missing,
                    forwarder,
                    books,
                    shutdown,
                )
                .await?
                {
                    return Ok(None);
                }
            }
            books.progress.settle(pair.to);
            if !missing.is_empty() {
                return Err(Interruption::Publication);
            }
        }
        let Look {
            snapshot,
            insert,
            flushed,
        } = look(books.ledger.session()).await?;
        let log = books.progress.settled().log;
        let behind = insert.0.saturating_sub(log.0);
        // What is not flushed yet is not streamed either.
        if flushed.0.saturating_sub(log.0) <= PAGE_HEADER_BYTES || log > self.seen {
            books.caught_up();
        }
        self.seen = log;
        books.progress.pair(snapshot, insert);
        Ok(Some(behind))
    }

    /// Forwards what is in the buffer; false if `shutdown` came while an event had to wait.
    async fn forward_buffered(
        &mut self,
        forwarder: &mut Forwarder,
        books: &mut Books,
        shutdown: &CancellationToken,
    ) -> Result<bool, Interruption> {
        while let Some(frame) = self
            .reader
            .next()
            .map_err(Interruption::replication("reading the stream"))?
        {
            let (sent_at, message) = match frame {
                Frame::Data { sent_at, message } => (sent_at, decode(message)?),
                Frame::Keepalive { end, reply } => {
                    self.pace.saw_idle();
                    books.progress.idle(end);
                    if reply {
                        books.store(forwarder).await?;
                    }
                    continue;
                }
            };
            match message {
                Message::Begin {
                    committed_at, xid, ..
                } => {
                    self.pace.saw_commit(sent_at, committed_at);
                    self.committed_at = committed_at;
                    books.progress.begin(xid);
                }
                Message::Commit { end_lsn } => books.progress.end(end_lsn),
                Message::Relation(relation) => self.meet(&relation)?,
                Message::Insert { relation, row } => {
                    let Some(columns) = self.tables.get(&relation) else {
                        continue;
                    };
                    if !books.progress.wants_event() {
                        continue;
                    }
                    self.events += 1;
                    let mut scratch = Scratch::default();
                    let row = match columns.read(
                        &row,
                        self.committed_at.saturating_add(POSTGRES_EPOCH_MICROS),
                        &mut scratch,
                    ) {
                        Err(error)
                            if error.seq().is_some_and(|seq| books.progress.gives_up(seq)) =>
                        {
                            continue;
                        }
                        row => row?,
                    };
                    if books.progress.gives_up(row.seq) {
                        continue;
                    }
                    let Some(forwarded) = publish(&row, forwarder, books, shutdown).await? else {
                        return Ok(false);
                    };
                    books.progress.sent(row.event.id, row.seq);
                    if let Forwarded::Sent(tag) = forwarded {
                        forwarder
                            .sink()
                            .acks()
                            .time(tag, self.committed_at.saturating_add(POSTGRES_EPOCH_MICROS));
                    }
                    books.cut_if_wanted(forwarder, false).await?;
                }
                Message::Truncate => tracing::error!(
                    "the outbox was truncated: events that were not published before are gone"
                ),
                Message::Other(_) => {}
            }
        }
        Ok(true)
    }
}

impl WalSource {
    /// Takes note of a table of the stream.
    fn meet(&mut self, relation: &Relation) -> Result<(), Interruption> {
        let (schema, table) = self.options.table();
        let is_outbox = relation.schema == schema && relation.table == table;
        let columns = match &self.options.debezium {
            None => Columns::of(relation).map(TableColumns::Own),
            // Any table may be in its publication.
            Some(_) if !is_outbox && !self.tables.contains_key(&relation.id) => return Ok(()),
            Some(outbox) => Layout::of(outbox, &relation.columns)
                .map(|layout| TableColumns::Debezium(Box::new(layout))),
        };
        if is_outbox {
            if self.tables.len() >= TABLES_MAX && !self.tables.contains_key(&relation.id) {
                let many = ReplicationError::Protocol(format!(
                    "more than {TABLES_MAX} tables called {schema}.{table} in one stream"
                ));
                return Err(Interruption::replication("reading the stream")(many));
            }
            self.tables.insert(relation.id, columns?);
        } else if columns.is_ok() {
            return Err(Interruption::Refused(format!(
                "the outbox is called {}.{} now: give it back the name {schema}.{table}; the relay stops, so that nothing is skipped",
                relation.schema, relation.table
            )));
        }
        Ok(())
    }
}
