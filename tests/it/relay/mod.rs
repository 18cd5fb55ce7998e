//! The relay on real services. A history of aggregate versions decides, not the code under test.

mod content;
mod debezium;
mod faults;
mod grants;
mod history;
mod killed;
mod main_job;
mod pooled;
mod records;
mod refusals;
mod running;
mod two;
