//! Tests of the layers in the order that the module documents.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};

use super::circuit_breaker::CircuitState;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A dependency that responds or hangs.
#[derive(Clone, Default)]
struct Dependency {
    hangs: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
}

impl Dependency {
    async fn ask(self) -> Result<(), BoxError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending().await
        } else {
            sleep(SECOND / 10).await;
            Ok(())
        }
    }

    /// Returns the number of calls since the last call of this method.
    fn asked(&self) -> u32 {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

struct Client {
    dependency: Dependency,
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
}

impl Client {
    fn new(bulkhead: BulkheadPolicy) -> Self {
        let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
        Self {
            dependency: Dependency::default(),
            breaker,
            bulkhead: Bulkhead::new("stock", bulkhead),
        }
    }

    fn service(
        &self,
    ) -> impl Service<(), Response = (), Error = BoxError, Future: Send> + Clone + Send + use<>
    {
        let dependency = self.dependency.clone();
        ServiceBuilder::new()
            .layer(RetryLayer::new(RetryPolicy::default().jitter(0.0)))
            .layer(CircuitBreakerLayer::new(&self.breaker))
            .layer(BulkheadLayer::new(&self.bulkhead))
            .layer(TimeoutLayer::new(2 * SECOND))
            .service(service_fn(move |()| dependency.clone().ask()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_hangs_is_left_alone_after_five_timeouts_and_asked_again_when_it_is_back()
{
    let client = Client::new(BulkheadPolicy::default());
    client.dependency.hangs.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let error = client
        .service()
        .oneshot(())
        .await
        .expect_err("the dependency hangs");
    assert!(error.is::<timeout::Elapsed>(), "{error}");
    assert_eq!(
        (began.elapsed().as_secs(), client.dependency.asked()),
        (3 * 2 + 1 + 2, 3),
        "three attempts and two waits"
    );
    let error = client
        .service()
        .oneshot(())
        .await
        .expect_err("the circuit opens at the second attempt");
    assert!(error.is::<CircuitOpen>(), "{error}");
    assert_eq!(
        (client.breaker.state(), client.dependency.asked()),
        (CircuitState::Open, 2)
    );

    let began = Instant::now();
    let error = client
        .service()
        .oneshot(())
        .await
        .expect_err("the circuit is open");
    assert!(error.is::<CircuitOpen>(), "{error}");
    assert_eq!(
        (began.elapsed(), client.dependency.asked()),
        (Duration::ZERO, 0),
        "an open circuit fails at once"
    );

    client.dependency.hangs.store(false, Ordering::Relaxed);
    sleep(30 * SECOND).await;
    for _ in 0..2 {
        client
            .service()
            .oneshot(())
            .await
            .expect("the dependency has recovered");
    }
    assert_eq!(
        (client.breaker.state(), client.dependency.asked()),
        (CircuitState::Closed, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_turned_away_at_once_and_opens_no_circuit() {
    let client = Client::new(BulkheadPolicy {
        concurrent_max: 2,
        queue_max: 2,
        wait_max: SECOND,
    });
    let mut crowd = JoinSet::new();
    for _ in 0..100 {
        crowd.spawn(client.service().oneshot(()));
    }
    let ended = crowd.join_all().await;
    let turned_away = ended
        .iter()
        .filter(|ended| {
            ended
                .as_ref()
                .is_err_and(|error| error.is::<BulkheadError>())
        })
        .count();
    assert_eq!((turned_away, client.dependency.asked()), (96, 4));
    assert_eq!(client.breaker.state(), CircuitState::Closed);
}

/// One classifier for both layers, as for HTTP, where 429 and 5xx are responses.
fn meaning(outcome: Result<&u16, &BoxError>) -> Class {
    match outcome {
        Ok(429) => Class::RateLimited {
            retry_after: 4 * SECOND,
        },
        Ok(500..) | Err(_) => Class::Transient,
        Ok(400..) => Class::Permanent,
        Ok(_) => Class::Success,
    }
}

#[tokio::test(start_paused = true)]
async fn one_classifier_serves_the_retry_and_the_breaker_and_sees_responses_too() {
    let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
    let answers = Arc::new(std::sync::Mutex::new(vec![404, 200, 429, 503]));
    let answering = answers.clone();
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::default().jitter(0.0)).classify(meaning))
        .layer(CircuitBreakerLayer::new(&breaker).classify(meaning))
        .service(service_fn(move |()| {
            let answer = answering
                .lock()
                .expect("no panic")
                .pop()
                .expect("a response is left");
            async move { Ok::<u16, BoxError>(answer) }
        }));
    let began = Instant::now();
    assert_eq!(client.clone().oneshot(()).await.expect("a response"), 200);
    assert_eq!(
        began.elapsed().as_secs(),
        1 + 4,
        "a backoff after the 503, and the wait that the 429 requested"
    );
    assert_eq!(
        client.oneshot(()).await.expect("a response"),
        404,
        "not called again"
    );
    let counts = breaker.counts();
    assert_eq!((counts.succeeded, counts.failed, counts.ignored), (2, 1, 1));
}
