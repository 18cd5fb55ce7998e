//! The write-ahead log as a source: commit order, as transactions commit.

use std::collections::HashMap;

use tokio_util::sync::CancellationToken;

use super::{Columns, Pace, Row};
use crate::{
    postgres::{
        Lsn,
        replication::{Frame, FrameReader, Message, POSTGRES_EPOCH_MICROS, decode},
    },
    relay::{
        RelayOptions,
        checkpoint::Checkpointer,
        error::Interruption,
        forward::Forwarder,
        ledger::Witness,
        observe::{Observer, Part},
        position::Position,
    },
};

/// A stream of the log, read and forwarded until something interrupts it.
pub(in crate::relay) struct WalSource {
    reader: FrameReader,
    pace: Pace,
    /// The outbox's columns, by the table's id in the stream.
    tables: HashMap<u32, Columns>,
    schema: String,
    relay: String,
    /// What an earlier run has published.
    done: Position,
    /// When the current transaction committed, microseconds since 2000.
    committed_at: i64,
    events: u64,
}

impl WalSource {
    pub(in crate::relay) fn new(reader: FrameReader, options: &RelayOptions, done: Position) -> Self {
        let (schema, relay) = (options.schema.clone(), options.name.clone());
        Self { reader, pace: Pace::default(), tables: HashMap::new(), schema, relay, done, committed_at: 0, events: 0 }
    }

    /// Reads and forwards until `shutdown`, which is no error; what was sent may then still be under way.
    ///
    /// # Errors
    /// Whatever interrupts the stream.
    pub(in crate::relay) async fn run(
        &mut self,
        forwarder: &mut Forwarder,
        books: &mut Checkpointer,
        observer: &Observer,
        lost: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<(), Interruption> {
        observer.ok(Part::Stream, "streaming");
        loop {
            if !self.forward_buffered(forwarder, books, shutdown).await? {
                return Ok(());
            }
            observer.lag(self.pace.lag());
            if self.events > 0 {
                observer.batch(std::mem::take(&mut self.events));
            }
            let read = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                () = lost.cancelled() => return Err(Interruption::LeaseLost),
                () = books.due() => {
                    books.store(forwarder).await?;
                    continue;
                }
                read = self.reader.fill() => read.map_err(Interruption::replication("reading the stream"))?,
            };
            books.heard();
            if let Some(nap) = self.pace.nap(read) {
                tokio::time::sleep(nap).await;
            }
        }
    }

    /// Forwards what is in the buffer; false if `shutdown` came while an event had to wait.
    async fn forward_buffered(
        &mut self,
        forwarder: &mut Forwarder,
        books: &mut Checkpointer,
        shutdown: &CancellationToken,
    ) -> Result<bool, Interruption> {
        while let Some(frame) = self.reader.next().map_err(Interruption::replication("reading the stream"))? {
            let (sent_at, message) = match frame {
                Frame::Data { sent_at, message } => (sent_at, decode(message)?),
                Frame::Keepalive { end, reply } => {
                    self.pace.saw_idle();
                    books.watermark.idle(end);
                    if reply {
                        books.store(forwarder).await?;
                    }
                    continue;
                }
            };
            match message {
                Message::Begin { commit_lsn, committed_at } => {
                    self.pace.saw_commit(sent_at, committed_at);
                    self.committed_at = committed_at;
                    books.watermark.begin(commit_lsn);
                }
                Message::Commit { end_lsn } => books.watermark.end(end_lsn),
                Message::Relation(relation) => {
                    let columns = Columns::of(&relation);
                    if relation.schema == self.schema && relation.table == "outbox" {
                        self.tables.insert(relation.id, columns?);
                    } else if columns.is_ok() {
                        return Err(Interruption::Refused(format!(
                            "the outbox is called {}.{} now: give it back the name {}.outbox; the relay stops, so that nothing is skipped",
                            relation.schema, relation.table, self.schema
                        )));
                    }
                }
                Message::Insert { relation, row } => {
                    let Some(columns) = self.tables.get(&relation) else { continue };
                    let Some((commit_lsn, ordinal)) = books.watermark.next_event() else { continue };
                    self.events += 1;
                    if self.done.covers(commit_lsn, ordinal) {
                        books.watermark.skip();
                        continue;
                    }
                    let row = columns.read(&row)?;
                    let sent = forward_row(&row, forwarder, books, shutdown).await;
                    let Some(tag) = sent.map_err(|error| say_how_to_skip(error, &self.schema, &self.relay, commit_lsn, ordinal))? else {
                        return Ok(false);
                    };
                    books.watermark.sent(tag, Witness { id: row.event.id, seq: row.seq });
                    forwarder.sink().acks().time(tag, self.committed_at + POSTGRES_EPOCH_MICROS);
                }
                Message::Truncate => tracing::error!("the outbox was truncated: events that were not published before are gone"),
                Message::Other(_) => {}
            }
        }
        Ok(true)
    }
}

/// Sends a row, waiting for whatever holds it; its tag, or none if `shutdown` came first.
async fn forward_row(
    row: &Row<'_>,
    forwarder: &mut Forwarder,
    books: &mut Checkpointer,
    shutdown: &CancellationToken,
) -> Result<Option<u64>, Interruption> {
    loop {
        match forwarder.forward(row.seq, &row.event)? {
            Ok(tag) => return Ok(Some(tag)),
            Err(hold) => {
                if !books.attend(forwarder, hold, shutdown).await? {
                    return Ok(None);
                }
            }
        }
    }
}

/// The log keeps an event that the table does not: deleting the row does not help a relay that has begun to stream.
fn say_how_to_skip(error: Interruption, schema: &str, relay: &str, commit_lsn: Lsn, ordinal: u64) -> Interruption {
    match error {
        Interruption::Refused(text) => Interruption::Refused(format!(
            "{text}; to give this one event up: update {schema}.relay set commit_lsn = '{commit_lsn}', ordinal = {} where name = '{relay}'",
            ordinal + 1
        )),
        other => other,
    }
}
