//! Call through a circuit breaker.

use std::pin::Pin;
use std::task::{Context, Poll};

use tower::{BoxError, Service, ServiceExt};

use super::super::class::class_of;
use super::super::{Class, Classify};
use super::CircuitBreaker;
use super::state::Outcome;

/// A service behind a [`CircuitBreaker`].
#[derive(Clone, Debug)]
pub struct CircuitBreakerService<S, C> {
    inner: S,
    breaker: CircuitBreaker,
    classify: C,
}

impl<S, C> CircuitBreakerService<S, C> {
    pub(super) fn new(inner: S, breaker: CircuitBreaker, classify: C) -> Self {
        Self {
            inner,
            breaker,
            classify,
        }
    }
}

impl Outcome {
    fn of(class: Class) -> Self {
        match class {
            Class::Success | Class::Permanent => Self::Success,
            Class::Transient => Self::Failure,
            Class::RateLimited { .. } | Class::Rejected => Self::Ignored,
        }
    }
}

// === impl Service ===

impl<S, C, Request> Service<Request> for CircuitBreakerService<S, C>
where
    S: Service<Request> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError> + Send + 'static,
    S::Response: Send,
    C: Classify<S::Response, S::Error> + Clone + Send + 'static,
    Request: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Self {
            inner,
            breaker,
            classify,
        } = self.clone();
        Box::pin(async move {
            let permit = breaker.admit()?;
            let outcome = inner.oneshot(request).await;
            permit.end(Outcome::of(class_of(&classify, &outcome)));
            outcome.map_err(Into::into)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};
    use tower::{Layer, service_fn};

    use super::super::{
        Cause, CircuitBreakerLayer, CircuitBreakerPolicy, CircuitOpen, CircuitState,
    };
    use super::*;
    use crate::resilience::BulkheadError;

    const SECOND: Duration = Duration::from_secs(1);

    /// Behavior that a request demands of the test service.
    #[derive(Clone, Copy)]
    enum Do {
        Succeed,
        Fail,
        Hang,
        RejectBelow,
    }

    async fn done(what: Do) -> Result<(), BoxError> {
        match what {
            Do::Succeed => Ok(()),
            Do::Fail => Err("down".into()),
            Do::Hang => std::future::pending().await,
            Do::RejectBelow => Err(BulkheadError::Full {
                name: "x".into(),
                concurrent_max: 1,
                queue_max: 1,
            }
            .into()),
        }
    }

    fn circuit() -> (
        CircuitBreaker,
        impl Service<Do, Response = (), Error = BoxError, Future: Send> + Clone,
    ) {
        let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
        let service = CircuitBreakerLayer::new(&breaker).layer(service_fn(done));
        (breaker, service)
    }

    async fn fail_until_open(
        service: &(impl Service<Do, Response = (), Error = BoxError> + Clone),
    ) {
        for _ in 0..5 {
            service
                .clone()
                .oneshot(Do::Fail)
                .await
                .expect_err("the call fails");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_probes_and_closes_and_tells_whoever_subscribed() {
        let (breaker, service) = circuit();
        let mut transitions = breaker.transitions();
        fail_until_open(&service).await;
        let error = service
            .clone()
            .oneshot(Do::Succeed)
            .await
            .expect_err("the circuit is open");
        assert_eq!(
            error.downcast_ref(),
            Some(&CircuitOpen {
                name: "stock".into(),
                retry_after: 30 * SECOND
            })
        );
        sleep(30 * SECOND).await;
        assert_eq!(breaker.state(), CircuitState::Open, "until the next call");
        for _ in 0..2 {
            service
                .clone()
                .oneshot(Do::Succeed)
                .await
                .expect("a probe passes");
        }
        let mut heard = Vec::new();
        for _ in 0..3 {
            heard.push(transitions.next().await.expect("the breaker exists").cause);
        }
        assert_eq!(
            heard,
            [
                Cause::ConsecutiveFailures(5),
                Cause::OpenElapsed,
                Cause::ProbesSucceeded
            ]
        );
        let counts = breaker.counts();
        assert_eq!(
            (
                counts.succeeded,
                counts.failed,
                counts.rejected,
                counts.opened
            ),
            (2, 5, 1, 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_cancelled_frees_its_place() {
        let (breaker, service) = circuit();
        fail_until_open(&service).await;
        sleep(30 * SECOND).await;
        timeout(SECOND, service.clone().oneshot(Do::Hang))
            .await
            .expect_err("the call hangs");
        assert_eq!(
            (breaker.state(), breaker.counts().ignored),
            (CircuitState::HalfOpen, 1)
        );
        service
            .oneshot(Do::Succeed)
            .await
            .expect("the place of the probe is free");
    }

    #[tokio::test(start_paused = true)]
    async fn while_one_probe_is_under_way_the_others_fail_at_once() {
        let (_, service) = circuit();
        fail_until_open(&service).await;
        sleep(30 * SECOND).await;
        let probe = tokio::spawn(service.clone().oneshot(Do::Hang));
        tokio::task::yield_now().await;
        let error = service
            .clone()
            .oneshot(Do::Succeed)
            .await
            .expect_err("a probe is running");
        assert!(error.is::<CircuitOpen>(), "{error}");
        probe.abort();
        assert!(
            probe
                .await
                .expect_err("the task was aborted")
                .is_cancelled()
        );
        service
            .oneshot(Do::Succeed)
            .await
            .expect("the place of the probe is free");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_bulkhead_below_turns_away_is_no_failure() {
        let (breaker, service) = circuit();
        for _ in 0..100 {
            service
                .clone()
                .oneshot(Do::RejectBelow)
                .await
                .expect_err("the bulkhead is full");
        }
        assert_eq!(
            (breaker.state(), breaker.counts().ignored),
            (CircuitState::Closed, 100)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_shows_that_somebody_is_there() {
        let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
        let not_found = |outcome: Result<&(), &BoxError>| {
            if outcome.is_ok() {
                Class::Success
            } else {
                Class::Permanent
            }
        };
        let service = CircuitBreakerLayer::new(&breaker)
            .classify(not_found)
            .layer(service_fn(done));
        for _ in 0..100 {
            service
                .clone()
                .oneshot(Do::Fail)
                .await
                .expect_err("not found");
        }
        assert_eq!(breaker.state(), CircuitState::Closed);
    }
}
