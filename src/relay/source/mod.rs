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
