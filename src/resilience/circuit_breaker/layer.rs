//! The layer.

use tower::Layer;

use super::super::{Classify, EveryError};
use super::{CircuitBreaker, CircuitBreakerService};

/// Puts a [`CircuitBreaker`] around a service; see the [module](super) for when not to.
///
/// The error becomes a [`BoxError`](tower::BoxError): the service's own, or [`CircuitOpen`](super::CircuitOpen). The service has to be
/// `Clone`; it is waited for to be ready within the call, so that not becoming ready is a failure too.
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer<C = EveryError> {
    breaker: CircuitBreaker,
    classify: C,
}

impl CircuitBreakerLayer {
    /// Counts every error as a failure and every response as a success.
    pub fn new(breaker: &CircuitBreaker) -> Self {
        Self {
            breaker: breaker.clone(),
            classify: EveryError,
        }
    }
}

impl<C> CircuitBreakerLayer<C> {
    /// Has `classify` say what an outcome counts as; a closure `|outcome: Result<&Response, &Error>| …` does.
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
