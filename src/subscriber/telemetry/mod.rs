//! Telemetry: statistics, their counters, and the metrics and log limits made of them.

pub(crate) mod counters;
pub(crate) mod log_limit;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod statistics;
