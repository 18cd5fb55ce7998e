//! Where events come from: the write-ahead log (`wal`), and the rows that were there before it was followed (`table`).
//!
//! Both yield [`Row`]s in an order that keeps each aggregate's: the log in commit order, the table in insertion order of
//! the rows that one snapshot sees (writers lock their aggregate before they publish, see docs/guarantees.md).

mod pace;
mod row;
pub(super) mod table;
pub(super) mod wal;

pub(super) use pace::Pace;
pub(crate) use row::{CELLS, Columns, Row, RowError};

/// Decodes any bytes as a message, and an insert's row as one of the outbox: for the fuzz target.
#[cfg(fuzzing)]
pub(crate) fn fuzz_row(bytes: &[u8]) {
    use crate::postgres::replication::{Message, decode};
    match decode(bytes) {
        Ok(Message::Insert { row, .. }) => drop(Columns::in_order().read(&row)),
        Ok(Message::Relation(relation)) => drop(Columns::of(&relation)),
        _ => {}
    }
}
