//! Sources of events.
//!
//! ```text
//! selector ─▶ table     windows of the outbox, in insertion order
//!          ─▶ wal       commits, as the server streams its log
//!          ─▶ parked    events that an operator or a repaired topic releases
//!          ─▶ log_only  a table whose order only the log contains (Debezium): existing rows or a
//!                       connector's position, then wal
//! ```
//!
//! `slot` maintains the publication and the replication slot, `reconcile` compares the log with the
//! table, `pages` reads the table ahead, and `server_snapshot` reads a snapshot together with the
//! log positions of the server. `read_pacing` is pure.

pub(crate) mod confirm_rest;
pub(crate) mod connector_handover;
mod initial;
mod log_only;
pub(crate) mod long_query;
mod notify;
pub(crate) mod pages;
pub(crate) mod parked;
mod parked_topics;
mod read_pacing;
mod reconcile;
pub(crate) mod selector;
mod server_snapshot;
pub(crate) mod slot;
mod table;
mod wal;

#[cfg(any(test, fuzzing))]
use super::row::native::{Columns, TABLE_CELLS, TableRow};
use super::{
    pipeline::{
        Pipeline, Stop,
        publisher::{Backpressure, Published},
    },
    row::native::Row,
};

/// Publishes a row, or parks it. While the set of parked events is full, it releases the events
/// that nothing holds back.
///
/// # Errors
///
/// Returns [`Stop`] if the relay shuts down or the session is interrupted.
async fn publish(row: &Row<'_>, pipeline: &mut Pipeline) -> Result<Published, Stop> {
    let mut full = None;
    loop {
        match pipeline.publish(row).await? {
            Published::NoRoomToPark(limit) => {
                full.get_or_insert_with(|| pipeline.publisher().parked_is_full(limit));
                pipeline.wait_for(Backpressure::ParkedFull(limit)).await?;
                parked::release(pipeline).await?;
            }
            published => return Ok(published),
        }
    }
}

/// Decodes arbitrary bytes as a binary COPY of the outbox, for a fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_copy(bytes: &[u8]) {
    let Ok(rows) = crate::postgres::CopyRows::<TABLE_CELLS>::new(bytes) else {
        return;
    };
    for row in rows {
        let _ = row.map(|cells| TableRow::from_cells(&cells).is_ok());
    }
}

/// Decodes arbitrary bytes as a message, and the row of an insert as a row of the outbox, for a
/// fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_row(bytes: &[u8]) {
    use crate::postgres::replication::{Message, decode};
    match decode(bytes) {
        Ok(Message::Insert { row, .. }) => drop(Columns::in_order().read(&row)),
        Ok(Message::Relation(relation)) => drop(Columns::of(&relation)),
        _ => {}
    }
}
