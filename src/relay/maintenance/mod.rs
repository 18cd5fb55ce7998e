//! Maintenance: jobs that run beside a leading session.
//!
//! `retention` deletes rows that every relay has published. `scheduler` moves scheduled events to
//! the outbox when they are due.

pub(crate) mod retention;
pub(crate) mod scheduler;
