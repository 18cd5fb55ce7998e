//! The layer: what all calls share.

use std::fmt;
use std::sync::Arc;

use tower::Layer;
use tower::retry::budget::{Budget, TpsBudget};

use super::super::{Classify, EveryError};
use super::Retry;
use super::service::{Attempts, Cloned, RetryService};

/// Tries a service's calls again; see the [module](super) for when not to.
///
/// The service has to be `Clone`, and the request too unless [`repeat`](Self::repeat) says how to get another one.
#[derive(Clone)]
pub struct RetryLayer<C = EveryError, R = Cloned> {
    retry: Retry,
    classify: C,
    repeat: R,
    budget: Arc<dyn Budget + Send + Sync>,
}

impl RetryLayer {
    /// Tries every call that fails again, within a budget of its own (see the [module](super)).
    pub fn new(retry: Retry) -> Self {
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
        Self::new(Retry::default())
    }
}

impl<C, R> RetryLayer<C, R> {
    /// Has `classify` say which outcomes are tried again, instead of every error; a closure `|outcome: Result<&Response, &Error>| …` does.
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

    /// Has `repeat` give the next attempt's request, `None` for one that must be sent once. Otherwise requests are cloned.
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

    /// Takes its retries from this budget: to share one between the clients of a dependency, or to have another size.
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
