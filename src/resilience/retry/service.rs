//! Attempts of one call: tower's retry service with a policy based on [`RetryPolicy`].

use std::fmt;
use std::sync::Arc;

use tokio::time::{Instant, Sleep, sleep};
use tower::retry::budget::Budget;
use tower::retry::{Policy, Retry as TowerRetry};

use super::super::class::class_of;
use super::super::{Class, Classify};
use super::RetryPolicy;
use super::policy::{Next, Why};
use crate::backoff::random;

/// Service whose calls are retried.
pub type RetryService<S, C, R> = TowerRetry<Attempts<C, R>, S>;

/// Creates the requests of further attempts, and sets the deadline of a request.
///
/// A closure implements the first part: `|request: &reqwest::Request| request.try_clone()`.
pub trait Repeat<Request> {
    /// Returns a copy of the request, or `None` if the request must be sent only once.
    fn repeat(&self, request: &Request) -> Option<Request>;

    /// Returns the deadline of the caller of this request. No wait ends later.
    fn deadline(&self, _request: &Request) -> Option<Instant> {
        None
    }
}

/// Repeats every request by cloning it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cloned;

/// Attempts of one call, as tower's `Policy`.
#[derive(Clone)]
pub struct Attempts<C, R> {
    retry: RetryPolicy,
    classify: C,
    repeat: R,
    budget: Arc<dyn Budget + Send + Sync>,
    /// Number of attempts that have ended. Zero in the service itself, which tower clones for each
    /// call.
    made: u32,
    deadline: Option<Instant>,
}

impl<C, R> Attempts<C, R> {
    pub(super) fn new(
        retry: RetryPolicy,
        classify: C,
        repeat: R,
        budget: Arc<dyn Budget + Send + Sync>,
    ) -> Self {
        Self {
            retry,
            classify,
            repeat,
            budget,
            made: 0,
            deadline: None,
        }
    }

    fn next(&self, class: Class) -> Next {
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match self.retry.next(self.made, class, left, random()) {
            Next::Done => {
                self.budget.deposit();
                Next::Done
            }
            Next::Again(_) if !self.budget.withdraw() => Next::GiveUp(Why::Budget),
            next => next,
        }
    }
}

// === impl Policy ===

impl<Request, Response, Error, C, R> Policy<Request, Response, Error> for Attempts<C, R>
where
    C: Classify<Response, Error>,
    R: Repeat<Request>,
    Error: 'static,
{
    type Future = Sleep;

    fn retry(
        &mut self,
        _request: &mut Request,
        outcome: &mut Result<Response, Error>,
    ) -> Option<Sleep> {
        self.made += 1;
        match self.next(class_of(&self.classify, outcome)) {
            Next::Done => None,
            Next::Again(wait) => {
                tracing::debug!(attempt = self.made, ?wait, "a call is retried");
                Some(sleep(wait))
            }
            Next::GiveUp(why) => {
                tracing::debug!(attempt = self.made, ?why, "a call is not retried");
                None
            }
        }
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        if self.made == 0 {
            let limit = self
                .retry
                .limit()
                .and_then(|limit| Instant::now().checked_add(limit));
            self.deadline = [limit, self.repeat.deadline(request)]
                .into_iter()
                .flatten()
                .min();
        }
        self.repeat.repeat(request)
    }
}

// === impl Repeat ===

impl<Request: Clone> Repeat<Request> for Cloned {
    fn repeat(&self, request: &Request) -> Option<Request> {
        Some(request.clone())
    }
}

impl<F, Request> Repeat<Request> for F
where
    F: Fn(&Request) -> Option<Request>,
{
    fn repeat(&self, request: &Request) -> Option<Request> {
        self(request)
    }
}

impl<C, R> fmt::Debug for Attempts<C, R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Attempts")
            .field("retry", &self.retry)
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tower::retry::budget::TpsBudget;
    use tower::{Layer, Service, ServiceExt, service_fn};

    use super::super::RetryLayer;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Fails the first `failures` calls, then returns the number of the call.
    fn flaky(
        failures: u32,
    ) -> impl Service<u32, Response = u32, Error = &'static str, Future: Send> + Clone {
        let calls = Arc::new(AtomicU32::new(0));
        service_fn(move |_: u32| {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            async move {
                if call < failures {
                    Err("busy")
                } else {
                    Ok(call + 1)
                }
            }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_tried_again_after_waits_that_double() {
        let began = Instant::now();
        let retried = RetryLayer::new(RetryPolicy::default().jitter(0.0)).layer(flaky(2));
        assert_eq!(retried.oneshot(0).await, Ok(3));
        assert_eq!(began.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_of_a_service_has_all_its_attempts() {
        let mut retried = RetryLayer::default().layer(flaky(6));
        for _ in 0..2 {
            assert_eq!(
                retried
                    .ready()
                    .await
                    .expect("the service is ready")
                    .call(0)
                    .await,
                Err("busy")
            );
        }
        assert_eq!(
            retried
                .ready()
                .await
                .expect("the service is ready")
                .call(0)
                .await,
            Ok(7)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_begins_that_would_end_after_the_deadline() {
        let began = Instant::now();
        let retry = RetryPolicy::exponential(10, SECOND..10 * SECOND)
            .jitter(0.0)
            .within(4 * SECOND);
        assert_eq!(
            RetryLayer::new(retry).layer(flaky(9)).oneshot(0).await,
            Err("busy")
        );
        assert_eq!(
            began.elapsed().as_secs(),
            3,
            "1 s, 2 s, and not another 4 s"
        );
    }

    #[derive(Clone)]
    struct Hurried(Instant);

    impl Repeat<u32> for Hurried {
        fn repeat(&self, request: &u32) -> Option<u32> {
            Some(*request)
        }

        fn deadline(&self, _request: &u32) -> Option<Instant> {
            Some(self.0)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_requests_own_deadline_is_kept_too() {
        let began = Instant::now();
        let retry = RetryPolicy::exponential(10, SECOND..10 * SECOND)
            .jitter(0.0)
            .within(60 * SECOND);
        let retried = RetryLayer::new(retry)
            .repeat(Hurried(began + 2 * SECOND))
            .layer(flaky(9));
        assert_eq!(retried.oneshot(0).await, Err("busy"));
        assert_eq!(began.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_must_be_sent_once_is_sent_once() {
        let only_even = |request: &u32| request.is_multiple_of(2).then_some(*request);
        let mut retried = RetryLayer::default().repeat(only_even).layer(flaky(2));
        assert_eq!(
            retried
                .ready()
                .await
                .expect("the service is ready")
                .call(1)
                .await,
            Err("busy")
        );
        assert_eq!(
            retried
                .ready()
                .await
                .expect("the service is ready")
                .call(2)
                .await,
            Ok(3)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_gets_no_more_retries_than_the_budget_and_success_fills_it_again() {
        let budget = Arc::new(TpsBudget::new(10 * SECOND, 1, 0.5));
        let calls = Arc::new(AtomicU32::new(0));
        let (counted, retry) = (
            calls.clone(),
            RetryPolicy::exponential(5, Duration::from_millis(1)..Duration::from_millis(2)),
        );
        let down = service_fn(move |up: bool| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { if up { Ok(()) } else { Err("down") } }
        });
        let mut retried = RetryLayer::new(retry).budget(budget).layer(down);
        for _ in 0..100 {
            let _ = retried
                .ready()
                .await
                .expect("the service is ready")
                .call(false)
                .await;
        }
        let made = calls.swap(0, Ordering::Relaxed);
        assert_eq!(
            made, 110,
            "a hundred calls and the ten retries of the reserve"
        );
        for _ in 0..4 {
            retried
                .ready()
                .await
                .expect("the service is ready")
                .call(true)
                .await
                .expect("the service is up");
        }
        let _ = retried
            .ready()
            .await
            .expect("the service is ready")
            .call(false)
            .await;
        assert_eq!(
            calls.load(Ordering::Relaxed),
            4 + 1 + 2,
            "four successes pay for two retries"
        );
    }
}
