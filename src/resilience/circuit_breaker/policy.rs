//! When a circuit opens and when it closes.

use std::time::Duration;

/// When a circuit opens and when it closes. A count of 0 counts as 1.
///
/// | | default | why |
/// |---|---|---|
/// | `consecutive_failures` | 5 | a dependency that is down shows within five calls, and one hiccup's worth of failures is fewer |
/// | `failure_rate` | 50 % of at least 20 calls within 30 s | one that fails every other call never fails five times in a row |
/// | `open` | 30 s | longer than most restarts; shorter than anybody's patience |
/// | `successes_to_close` | 2 | one may have met the one healthy replica |
/// | `probes` | 1 | what has just come back gets one call at a time, not the whole crowd |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CircuitBreakerPolicy {
    /// So many failures in a row open it; `None`: only the rate does.
    pub consecutive_failures: Option<u32>,
    /// So many failures among the calls of a while open it; `None`: only failures in a row do.
    pub failure_rate: Option<FailureRate>,
    /// How long it stays open. Afterwards the next call is a probe.
    pub open: Duration,
    /// How many probes have to succeed, without one failing, to close it.
    pub successes_to_close: u32,
    /// How many probes may be under way at once.
    pub probes: u32,
}

/// So many failures among the calls of a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FailureRate {
    /// The part of the calls that fails, from 0 to 1.
    pub rate: f64,
    /// The while: a sliding window in ten steps, so it forgets a tenth of itself at a time.
    pub window: Duration,
    /// Below so many calls within the window a rate means nothing.
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
    /// Whether so many failures among so many calls are too many.
    pub(super) fn is_reached(&self, calls: u32, failures: u32) -> bool {
        failures > 0
            && calls >= self.calls_min.max(1)
            && f64::from(failures) >= self.rate * f64::from(calls)
    }
}
