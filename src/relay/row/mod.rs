//! Rows of the outbox, decoded from the log and from the table, in Tidings' own layout and in
//! Debezium's. Pure, except for the queries of `table_layout`, which determine the layout of a
//! table.

pub(crate) mod debezium;
pub(crate) mod native;
pub(crate) mod table_layout;
