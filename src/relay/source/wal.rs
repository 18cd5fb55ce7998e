//! The write-ahead log as a source, in the order of the commits.

use std::{collections::HashMap, time::Duration};

use futures_util::FutureExt as _;

use super::{
    parked::release,
    publish,
    read_pacing::Pace,
    reconcile,
    server_snapshot::{ServerSnapshot, look},
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
        monitor::metrics::{Component, RelayMetrics},
        pipeline::{Pipeline, Stop, publisher::Published},
        position::Progress,
        row::{
            debezium::{Layout, RowBuffer},
            native::{Columns, Row, RowError, TableColumns},
            table_layout::TableLayout,
        },
    },
};

/// With more bytes of unread log than this, the table is the faster source. The value is about
/// 100,000 events. A stream reads them in half a second, so for fewer events a change to the table
/// is not worthwhile.
pub(crate) const BEHIND_BYTES: u64 = 64 << 20;

/// Maximum number of tables with the outbox's name in one stream: the table and its replacements,
/// each with its own id.
const TABLES_MAX: usize = 64;

/// With less lag than this, a large amount of unread log contains few events: most of it was
/// written for other tables.
const BEHIND: Duration = Duration::from_secs(1);

/// Maximum number of bytes at the end of the log that belong to no record: the header of a page.
const PAGE_HEADER_BYTES: u64 = 64;

/// A stream of the log that is read and published until it is interrupted.
pub(crate) struct WalSource {
    reader: FrameReader,
    pace: Pace,
    /// The outbox's columns by the table's id in the stream.
    tables: HashMap<u32, TableColumns>,
    options: RelayOptions,
    table_layout: TableLayout,
    /// Commit time of the current transaction, in microseconds since 2000-01-01.
    committed_at: i64,
    events: u64,
    /// The log position of the last comparison with the server.
    seen: Lsn,
}

impl WalSource {
    pub(crate) fn new(
        reader: FrameReader,
        options: &RelayOptions,
        table_layout: &TableLayout,
    ) -> Self {
        let (options, table_layout) = (options.clone(), table_layout.clone());
        Self {
            reader,
            pace: Pace::default(),
            tables: HashMap::new(),
            options,
            table_layout,
            committed_at: 0,
            events: 0,
            seen: Lsn::default(),
        }
    }

    /// Publishes the streamed events. With `leave_when_behind` it returns once the table is the
    /// faster source, with the number of bytes of unread log. Records may still be in flight then.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(crate) async fn run(
        &mut self,
        pipeline: &mut Pipeline,
        observer: &RelayMetrics,
        leave_when_behind: bool,
    ) -> Result<u64, Stop> {
        observer.note(Component::Stream, "streaming");
        observer.pulse().step("streaming the log");
        let mut topped_up = false;
        loop {
            self.publish_buffered(pipeline).await?;
            // Events that arrived while the last batch was committed join this batch. Otherwise
            // they would wait for the end of a third one.
            topped_up = !topped_up && self.fill_if_more_has_come()?;
            if topped_up {
                pipeline.on_server_message();
                continue;
            }
            // When the stream is far behind, an empty buffer between two reads does not mean that
            // nothing more follows.
            pipeline
                .end_batch_if_wanted(!self.pace.is_far_behind())
                .await?;
            observer.lag(self.pace.lag());
            if self.events > 0 {
                observer.batch(std::mem::take(&mut self.events));
            }
            let read = tokio::select! {
                biased;
                due = pipeline.due() => {
                    due?;
                    pipeline.tick().await?;
                    release(pipeline).await?;
                    let behind = self.pair(pipeline).await?;
                    if leave_when_behind && behind > BEHIND_BYTES && self.pace.lag() > BEHIND {
                        return Ok(behind);
                    }
                    continue;
                }
                read = self.reader.fill() => {
                    read.map_err(Interruption::replication("reading the stream"))?
                }
            };
            pipeline.on_server_message();
            if let Some(nap) = self.pace.nap(read) {
                tokio::time::sleep(nap).await;
            }
        }
    }

    /// Reads the bytes that have already arrived. Does nothing if the stream is so far behind that
    /// the socket should fill first.
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

    /// Advances the position's snapshot after a comparison with the table. Returns the number of
    /// bytes of log that are not streamed yet.
    async fn pair(&mut self, pipeline: &mut Pipeline) -> Result<u64, Stop> {
        if let Some(pair) = pipeline.progress().reached() {
            let mut missing = match self.table_layout.log_only() {
                None => {
                    reconcile::missing(pipeline.connection(), &self.options.quoted_table(), &pair)
                        .await?
                }
                // A table that is read only from the log cannot be compared.
                Some(_) => Vec::new(),
            };
            missing.retain(|seq| !pipeline.settled().gave_up(*seq));
            if !missing.is_empty() {
                tracing::error!(
                    events = missing.len(),
                    first = missing[0],
                    "the stream left events out that the outbox holds: the publication was altered \
                     or created again while the relay ran. They are published from the table, \
                     after later events of their aggregates"
                );
                publish_missed(&self.options, &self.table_layout, &missing, pipeline).await?;
            }
            pipeline.progress().settle(pair.to);
            if !missing.is_empty() {
                return Err(Interruption::Publication.into());
            }
        }
        let ServerSnapshot {
            snapshot,
            insert,
            flushed,
        } = look(pipeline.connection()).await?;
        let log = pipeline.settled().resume_lsn;
        let behind = insert.0.saturating_sub(log.0);
        // The server streams only flushed log.
        if flushed.0.saturating_sub(log.0) <= PAGE_HEADER_BYTES || log > self.seen {
            pipeline.caught_up();
        }
        self.seen = log;
        pipeline.progress().pair(snapshot, insert);
        Ok(behind)
    }

    /// Publishes the buffered messages.
    async fn publish_buffered(&mut self, pipeline: &mut Pipeline) -> Result<(), Stop> {
        while let Some(frame) = self
            .reader
            .next()
            .map_err(Interruption::replication("reading the stream"))?
        {
            let (sent_at, message) = match frame {
                Frame::Data { sent_at, message } => (sent_at, decode(message)?),
                Frame::Keepalive { end, reply } => {
                    self.pace.saw_idle();
                    pipeline.progress().idle(end);
                    if reply {
                        pipeline.tick().await?;
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
                    pipeline.progress().begin(xid);
                }
                Message::Commit { end_lsn } => pipeline.progress().end(end_lsn),
                Message::Relation(relation) => self.meet(&relation)?,
                Message::Insert { relation, row } => {
                    let Some(columns) = self.tables.get(&relation) else {
                        continue;
                    };
                    if !pipeline.progress().wants_event() {
                        continue;
                    }
                    self.events += 1;
                    let mut scratch = RowBuffer::default();
                    let committed_at = self.committed_at.saturating_add(POSTGRES_EPOCH_MICROS);
                    let read = columns.read(&row, committed_at, &mut scratch);
                    let Some(mut row) = kept(read, pipeline.progress())? else {
                        continue;
                    };
                    row.committed_at = Some(committed_at);
                    let published = publish(&row, pipeline).await?;
                    pipeline.progress().sent(row.event.id, row.seq);
                    if let Published::Sent(tag) = published {
                        let acks = pipeline.publisher().sink().acks();
                        acks.time(tag, committed_at);
                    }
                    pipeline.end_batch_if_wanted(false).await?;
                }
                Message::Truncate => tracing::error!(
                    "the outbox was truncated: events that were not published before are lost"
                ),
                Message::Other(_) => {}
            }
        }
        Ok(())
    }
}

/// Returns the event of a row, unless the operator has given it up. Such a row need not be
/// readable.
fn kept<'r>(
    row: Result<Row<'r>, RowError>,
    progress: &mut Progress,
) -> Result<Option<Row<'r>>, RowError> {
    let seq = match &row {
        Ok(row) => Some(row.seq),
        Err(error) => error.seq(),
    };
    match seq.is_some_and(|seq| progress.gives_up(seq)) {
        true => Ok(None),
        false => row.map(Some),
    }
}

impl WalSource {
    /// Records a table of the stream.
    fn meet(&mut self, relation: &Relation) -> Result<(), Interruption> {
        let (schema, table) = self.options.table();
        let is_outbox = relation.schema == schema && relation.table == table;
        let columns = match &self.options.debezium {
            None => Columns::of(relation).map(TableColumns::Native),
            // The publication of a Debezium outbox may contain other tables.
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
                "the outbox is called {}.{} now: rename it back to {schema}.{table}; the relay \
                 stops, so that nothing is skipped",
                relation.schema, relation.table
            )));
        }
        Ok(())
    }
}
