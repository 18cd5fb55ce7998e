//! Where events come from: the table, and the write-ahead log.
//!
//! `table` reads the outbox in windows between two snapshots, in insertion order, which is each aggregate's order (writers lock it before
//! they publish, see docs/guarantees.md); `wal` streams commits. Both hand rows to the forwarder and keep the books. `pages` fetches
//! the table's rows ahead, `look` asks how far the server is, `pairing` compares the two sources with each other; `row` and `pace` are pure.

mod look;
pub(super) mod notice;
mod pace;
pub(super) mod pages;
mod pairing;
pub(super) mod publish;
mod row;
pub(super) mod table;
pub(super) mod wal;

use pace::Pace;
pub(super) use pages::{Reader, damaged};
use row::{Columns, TableColumns};
pub(crate) use row::{Fault, Row, RowError, TableRow};
pub(in crate::relay) use row::{NULL, TABLE_CELLS};

/// Decodes any bytes as a binary COPY of the outbox: for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_copy(bytes: &[u8]) {
    let Ok(rows) = crate::postgres::CopyRows::<TABLE_CELLS>::new(bytes) else { return };
    for row in rows {
        let _ = row.map(|cells| TableRow::from_cells(&cells).is_ok());
    }
}

/// Decodes any bytes as a message, and an insert's row as one of the outbox: for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_row(bytes: &[u8]) {
    use crate::postgres::replication::{Message, decode};
    match decode(bytes) {
        Ok(Message::Insert { row, .. }) => drop(Columns::in_order().read(&row)),
        Ok(Message::Relation(relation)) => drop(Columns::of(&relation)),
        _ => {}
    }
}
