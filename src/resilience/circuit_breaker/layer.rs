//! tower layer of the circuit breaker.

use tower::Layer;

use super::super::{Classify, EveryError};
use super::{CircuitBreaker, CircuitBreakerService};

/// Wraps a service in a [`CircuitBreaker`]; see the [module](super) for when not to use it.
///
/// The error becomes a [`BoxError`](tower::BoxError): that of the service, or
/// [`CircuitOpen`](super::CircuitOpen). The service must be `Clone`. Its readiness is awaited
/// within the call, so a service that does not become ready counts as a failure.
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer<C = EveryError> {
    breaker: CircuitBreaker,
    classify: C,
}

impl CircuitBreakerLayer {
    /// Creates a layer that counts every error as a failure and every response as a success.
    pub fn new(breaker: &CircuitBreaker) -> Self {
        Self {
            breaker: breaker.clone(),
            classify: EveryError,
        }
    }
}

impl<C> CircuitBreakerLayer<C> {
    /// Uses `classify` to decide how an outcome counts. A closure
    /// `|outcome: Result<&Response, &Error>| …` implements it.
    pub fn classify<F, Response, Error>(self, classify: F) -> CircuitBreakerLayer<F>
    where
        F: Classify<Response, Error>,
    {
        CircuitBreakerLayer {
            breaker: self.breaker,
            classify,
        }
    }
}

// === impl Layer ===

impl<S, C: Clone> Layer<S> for CircuitBreakerLayer<C> {
    type Service = CircuitBreakerService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreakerService::new(inner, self.breaker.clone(), self.classify.clone())
    }
}
