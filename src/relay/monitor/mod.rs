//! Monitoring: what a relay reports about itself.
//!
//! | file | content |
//! |---|---|
//! | `pulse` | signs of life, and the stall that their absence means |
//! | `readiness` | the standing reasons against readiness, by check |
//! | `metrics` | metrics and named checks, made of both |
//!
//! `supervisor/watchdog.rs` drops a session without signs of life.

pub(crate) mod metrics;
pub(crate) mod pulse;
pub(crate) mod readiness;
