//! The relay on real services. A history of aggregate versions decides, not the code under test.

mod acls;
mod content;
mod debezium;
mod encrypted;
mod faults;
pub(crate) mod grants;
mod growth;
mod healing;
mod history;
mod hostile;
mod isolation;
mod killed;
mod main_job;
mod operator;
mod parked;
mod pooled;
mod ready;
pub(crate) mod records;
mod refusals;
mod retention;
mod running;
mod scheduled;
mod transactions;
mod traps;
mod two;
mod unusable;
