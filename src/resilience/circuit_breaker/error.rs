//! Error of a call while the circuit is open.

use std::sync::Arc;
use std::time::Duration;

/// The circuit is open, so the call was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker `{name}` is open: not called; retry in {retry_after:.1?}")]
pub struct CircuitOpen {
    /// Name of the circuit breaker.
    pub name: Arc<str>,
    /// Time until a call may pass at the earliest. Zero while a probe is running, since its result
    /// arrives within one call.
    pub retry_after: Duration,
}
