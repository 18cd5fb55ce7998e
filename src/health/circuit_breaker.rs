//! Health check of a circuit breaker.

use super::{Check, Checking, Status};
use crate::resilience::CircuitBreaker;
use crate::resilience::circuit_breaker::CircuitState;

/// Health check of a circuit breaker. It never fails: a service whose dependency is down is
/// degraded, and taking it out of rotation would only spread the outage to its callers.
///
/// ```
/// use tidings::health::{CircuitBreakerCheck, Health};
/// use tidings::resilience::{CircuitBreaker, CircuitBreakerPolicy};
///
/// let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
/// let health = Health::new().check("stock", CircuitBreakerCheck::new(&breaker));
/// ```
#[derive(Clone, Debug)]
pub struct CircuitBreakerCheck {
    breaker: CircuitBreaker,
}

impl CircuitBreakerCheck {
    /// Creates a check of this breaker.
    pub fn new(breaker: &CircuitBreaker) -> Self {
        Self {
            breaker: breaker.clone(),
        }
    }
}

// === impl Check ===

impl Check for CircuitBreakerCheck {
    fn check(&self) -> Checking<'_> {
        let state = self.breaker.state();
        let text = format!("circuit {state}");
        Box::pin(std::future::ready(if state == CircuitState::Closed {
            Status::Ok(text)
        } else {
            Status::Degraded(text)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;
    use crate::resilience::CircuitBreakerPolicy;

    #[tokio::test]
    async fn an_open_circuit_is_shown_and_the_service_stays_ready() {
        let breaker = CircuitBreaker::new(
            "stock",
            CircuitBreakerPolicy {
                consecutive_failures: Some(1),
                ..Default::default()
            },
        );
        let health = Health::new().check("stock", CircuitBreakerCheck::new(&breaker));
        assert_eq!(
            health.report().await.checks[0].status,
            Status::Ok("circuit closed".into())
        );
        breaker.admit().expect("the circuit is closed").failed();
        let report = health.report().await;
        assert_eq!(
            report.checks[0].status,
            Status::Degraded("circuit open".into())
        );
        assert!(report.is_ready());
    }
}
