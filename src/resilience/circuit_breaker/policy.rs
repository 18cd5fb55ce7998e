//! Policy of a circuit breaker: the conditions for opening and closing.

use std::time::Duration;

/// Conditions for opening and closing a circuit. A count of 0 counts as 1.
///
/// | | default | reason |
/// |---|---|---|
/// | `consecutive_failures` | 5 | an outage shows within five calls |
/// | `failure_rate` | half of ≥ 20 calls in 30 s | a partial failure may never fail five in a row |
/// | `open` | 30 s | longer than most restarts |
/// | `successes_to_close` | 2 | one probe may have reached the only healthy replica |
/// | `probes` | 1 | a recovering dependency gets one call at a time rather than the full load |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CircuitBreakerPolicy {
    /// Number of consecutive failures that opens the circuit. With `None`, only the rate opens it.
    pub consecutive_failures: Option<u32>,
    /// Failure rate that opens the circuit. With `None`, only consecutive failures open it.
    pub failure_rate: Option<FailureRate>,
    /// Time for which the circuit stays open. Afterwards the next call is a probe.
    pub open: Duration,
    /// Number of probes that must succeed, without a failure between them, to close the circuit.
    pub successes_to_close: u32,
    /// Maximum number of concurrent probes.
    pub probes: u32,
}

/// Failure rate within a time window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FailureRate {
    /// Fraction of failed calls, from 0 to 1.
    pub rate: f64,
    /// Length of the sliding window. It moves in ten steps, so a tenth of the calls is forgotten at
    /// a time.
    pub window: Duration,
    /// Minimum number of calls in the window. With fewer calls, the rate is ignored.
    pub calls_min: u32,
}

impl Default for CircuitBreakerPolicy {
    fn default() -> Self {
        Self {
            consecutive_failures: Some(5),
            failure_rate: Some(FailureRate::default()),
            open: Duration::from_secs(30),
            successes_to_close: 2,
            probes: 1,
        }
    }
}

impl Default for FailureRate {
    fn default() -> Self {
        Self {
            rate: 0.5,
            window: Duration::from_secs(30),
            calls_min: 20,
        }
    }
}

impl FailureRate {
    /// Returns `true` if this number of failures reaches the rate.
    pub(super) fn is_reached(&self, calls: u32, failures: u32) -> bool {
        failures > 0
            && calls >= self.calls_min.max(1)
            && f64::from(failures) >= self.rate * f64::from(calls)
    }
}
