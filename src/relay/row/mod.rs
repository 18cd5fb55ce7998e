//! Rows of the outbox, decoded from the log and from the table.
//!
//! | file | content |
//! |---|---|
//! | `native` | rows of Tidings' own table. Pure |
//! | `debezium` | rows of a table made for Debezium. Pure |
//! | `table_layout` | the layout of a table, and the sources that can read it |

pub(crate) mod debezium;
pub(crate) mod native;
pub(crate) mod table_layout;
