//! What a caller gets while the circuit is open.

use std::sync::Arc;
use std::time::Duration;

/// The circuit is open: the call was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker `{name}` is open: not called; ask again in {retry_after:.1?}")]
pub struct CircuitOpen {
    /// The circuit breaker's name.
    pub name: Arc<str>,
    /// When a call may pass at the earliest. Zero while a probe is under way: that is a matter of one call.
    pub retry_after: Duration,
}
