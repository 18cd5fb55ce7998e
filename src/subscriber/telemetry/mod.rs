//! Telemetry of a subscriber.
//!
//! | file | content |
//! |---|---|
//! | `counters` | counts per event type, sharded by thread. A new count starts here |
//! | `statistics` | counts, state and lag, for the application and the health check |
//! | `metrics` | the same for a `prometheus-client` registry |
//! | `log_limit` | a rate limit for log lines |

pub(crate) mod counters;
pub(crate) mod log_limit;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod statistics;
