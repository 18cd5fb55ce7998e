//! Monitoring: what a relay reports about itself.
//!
//! `pulse` detects stalls, `readiness` combines the reasons against readiness, and `metrics`
//! exports both.

pub(crate) mod metrics;
pub(crate) mod pulse;
pub(crate) mod readiness;
