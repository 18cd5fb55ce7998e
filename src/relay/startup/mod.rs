//! Start of a session: the conditions of a start, and the start position.
//!
//! | file | content |
//! |---|---|
//! | `preflight` | the conditions that refuse a start; `tidings check` uses the same list |
//! | `pooler` | detection of a connection pooler, and of too few connections |
//! | `server` | the server and the database behind a session |
//! | `names` | the names of slot, publication, transactional ids and position topic |
//! | `continuity` | the check that this database is the one that the position belongs to |
//! | `position_topic` | the positions that Kafka holds |
//! | `recovery` | the start position, chosen from Kafka, Postgres and the operator's moves |
//! | `transaction_timeout` | the time limit of Kafka transactions that the brokers allow |

pub(crate) mod continuity;
pub(crate) mod names;
pub(crate) mod pooler;
pub(crate) mod position_topic;
pub(crate) mod preflight;
pub(crate) mod recovery;
pub(crate) mod server;
pub(crate) mod transaction_timeout;
