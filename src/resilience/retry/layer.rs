//! tower layer of the retry: the settings that all calls share.

use std::fmt;
use std::sync::Arc;

use tower::Layer;
use tower::retry::budget::{Budget, TpsBudget};

use super::super::{Classify, EveryError};
use super::RetryPolicy;
use super::service::{Attempts, Cloned, RetryService};

/// Retries the calls of a service; see the [module](super) for when not to use it.
///
/// The service must be `Clone`. The request must be `Clone` too, unless [`repeat`](Self::repeat)
/// sets another way to copy it.
#[derive(Clone)]
pub struct RetryLayer<C = EveryError, R = Cloned> {
    retry: RetryPolicy,
    classify: C,
    repeat: R,
    budget: Arc<dyn Budget + Send + Sync>,
}

impl RetryLayer {
    /// Creates a layer that retries every failed call, within its own budget (see the
    /// [module](super)).
    pub fn new(retry: RetryPolicy) -> Self {
        Self {
            retry,
            classify: EveryError,
            repeat: Cloned,
            budget: Arc::new(TpsBudget::default()),
        }
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new(RetryPolicy::default())
    }
}

impl<C, R> RetryLayer<C, R> {
    /// Uses `classify` to decide which outcomes are retried. A closure
    /// `|outcome: Result<&Response, &Error>| …` implements it. Defaults to every error.
    pub fn classify<F, Response, Error>(self, classify: F) -> RetryLayer<F, R>
    where
        F: Classify<Response, Error>,
    {
        RetryLayer {
            retry: self.retry,
            classify,
            repeat: self.repeat,
            budget: self.budget,
        }
    }

    /// Uses `repeat` to create the request of the next attempt. It returns `None` for a request
    /// that must be sent only once. By default, requests are cloned.
    pub fn repeat<F, Request>(self, repeat: F) -> RetryLayer<C, F>
    where
        F: super::Repeat<Request>,
    {
        RetryLayer {
            retry: self.retry,
            classify: self.classify,
            repeat,
            budget: self.budget,
        }
    }

    /// Takes the retries from this budget, to share one budget between the clients of a dependency
    /// or to change its size.
    #[must_use]
    pub fn budget(self, budget: Arc<dyn Budget + Send + Sync>) -> Self {
        Self { budget, ..self }
    }
}

// === impl Layer ===

impl<S, C: Clone, R: Clone> Layer<S> for RetryLayer<C, R> {
    type Service = RetryService<S, C, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let attempts = Attempts::new(
            self.retry,
            self.classify.clone(),
            self.repeat.clone(),
            self.budget.clone(),
        );
        RetryService::new(attempts, inner)
    }
}

impl<C, R> fmt::Debug for RetryLayer<C, R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RetryLayer")
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
