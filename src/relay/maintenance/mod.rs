//! Maintenance: jobs that run beside a leading session.
//!
//! `retention` deletes rows that every relay has published (`retention/horizon.rs` decides).
//! `scheduler` moves scheduled events to the outbox when they are due. Jobs on the tick of the
//! session are in `pipeline/housekeeping.rs`.

pub(crate) mod retention;
pub(crate) mod scheduler;
