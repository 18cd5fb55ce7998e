//! Call through a bulkhead.

use std::pin::Pin;
use std::task::{Context, Poll};

use tower::{BoxError, Service, ServiceExt};

use super::Bulkhead;

/// A service behind a [`Bulkhead`].
#[derive(Clone, Debug)]
pub struct BulkheadService<S> {
    inner: S,
    bulkhead: Bulkhead,
}

impl<S> BulkheadService<S> {
    pub(super) fn new(inner: S, bulkhead: Bulkhead) -> Self {
        Self { inner, bulkhead }
    }
}

// === impl Service ===

impl<S, Request> Service<Request> for BulkheadService<S>
where
    S: Service<Request> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    Request: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    /// Always ready: each call waits for its own slot, or fails.
    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Self { inner, bulkhead } = self.clone();
        Box::pin(async move {
            let _slot = bulkhead.enter().await?;
            inner.oneshot(request).await.map_err(Into::into)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep};
    use tower::{Layer, service_fn};

    use super::super::{BulkheadError, BulkheadLayer, BulkheadPolicy};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Creates a bulkhead around a service that sleeps for the requested time.
    fn sleeper(
        policy: BulkheadPolicy,
    ) -> (
        Bulkhead,
        impl Service<Duration, Response = (), Error = BoxError, Future: Send> + Clone + Send,
    ) {
        let bulkhead = Bulkhead::new("stock", policy);
        let sleeps = service_fn(|time| async move {
            sleep(time).await;
            Ok::<_, BoxError>(())
        });
        let service = BulkheadLayer::new(&bulkhead).layer(sleeps);
        (bulkhead, service)
    }

    #[tokio::test(start_paused = true)]
    async fn ten_run_ten_wait_and_the_next_is_turned_away() {
        let (bulkhead, service) = sleeper(BulkheadPolicy::default());
        let mut calls = JoinSet::new();
        for _ in 0..20 {
            calls.spawn(service.clone().oneshot(SECOND / 2));
        }
        tokio::task::yield_now().await;
        assert_eq!((bulkhead.running(), bulkhead.waiting()), (10, 10));
        let error = service
            .oneshot(SECOND / 2)
            .await
            .expect_err("the bulkhead is full");
        assert_eq!(
            error.downcast_ref(),
            Some(&BulkheadError::Full {
                name: "stock".into(),
                concurrent_max: 10,
                queue_max: 10
            })
        );
        assert_eq!(
            error.to_string(),
            "the bulkhead `stock` is full: 10 calls run and 10 wait"
        );
        let ended = calls.join_all().await;
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
        assert_eq!(
            (bulkhead.running(), bulkhead.waiting(), bulkhead.rejected()),
            (0, 0, 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_longer_than_the_longest_wait() {
        let (bulkhead, service) = sleeper(BulkheadPolicy {
            concurrent_max: 1,
            ..Default::default()
        });
        let _long = tokio::spawn(service.clone().oneshot(60 * SECOND));
        tokio::task::yield_now().await;
        let began = Instant::now();
        let error = service.oneshot(SECOND).await.expect_err("no free slot");
        assert!(
            matches!(error.downcast_ref(), Some(BulkheadError::Waited { .. })),
            "{error}"
        );
        assert_eq!((began.elapsed().as_secs(), bulkhead.waiting()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_dropped_give_back_their_place_and_their_turn() {
        let (bulkhead, service) = sleeper(BulkheadPolicy {
            concurrent_max: 1,
            queue_max: 1,
            wait_max: 60 * SECOND,
        });
        let running = tokio::spawn(service.clone().oneshot(60 * SECOND));
        let waiting = tokio::spawn(service.clone().oneshot(60 * SECOND));
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.expect_err("aborted").is_cancelled());
        assert_eq!((bulkhead.running(), bulkhead.waiting()), (1, 0));
        running.abort();
        assert!(running.await.expect_err("aborted").is_cancelled());
        assert_eq!(bulkhead.running(), 0);
        service.oneshot(SECOND).await.expect("a slot is free");
    }

    /// Simulates these calls (arrival, duration in ms). Returns for each call whether it gets a
    /// slot.
    fn expected(calls: &[(u64, u64)], policy: BulkheadPolicy) -> Vec<bool> {
        let wait_max = policy.wait_max.as_millis() as u64;
        // The ends of the running calls, and the indices of the waiting calls in order.
        let (mut running, mut served) = (Vec::<u64>::new(), vec![false; calls.len()]);
        let mut waiting: Vec<usize> = Vec::new();
        for now in 0..=calls
            .iter()
            .map(|(arrival, duration)| arrival + duration + wait_max)
            .max()
            .unwrap_or(0)
        {
            running.retain(|end| *end > now);
            while running.len() < policy.concurrent_max && !waiting.is_empty() {
                let call = waiting.remove(0);
                running.push(now + calls[call].1);
                served[call] = true;
            }
            waiting.retain(|call| calls[*call].0 + wait_max > now);
            for (call, (_, duration)) in calls
                .iter()
                .enumerate()
                .filter(|(_, (arrival, _))| *arrival == now)
            {
                if running.len() < policy.concurrent_max {
                    running.push(now + duration);
                    served[call] = true;
                } else if waiting.len() < policy.queue_max {
                    waiting.push(call);
                }
            }
        }
        served
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_serves_whom_a_plain_simulation_serves(
            pauses in proptest::collection::vec((1u64..20, 0u64..40), 1..40),
            concurrent_max in 1usize..4, queue_max in 0usize..4, wait in 0u64..30,
        ) {
            // Arrivals, ends and last waits fall on different offsets within 100 ms. No two
            // coincide, so their order is defined.
            let (mut calls, mut now) = (Vec::new(), 0);
            for (at, (pause, duration)) in pauses.iter().enumerate() {
                now += pause * 100 + 1;
                calls.push((now, duration * 100 + 43 + at as u64 % 2));
            }
            let policy = BulkheadPolicy {
                concurrent_max,
                queue_max,
                wait_max: Duration::from_millis(wait * 100 + 57),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            let served = runtime.block_on(async {
                let (bulkhead, service) = sleeper(policy);
                let (served, mut tasks) = (
                    Arc::new(Mutex::new(vec![false; calls.len()])),
                    JoinSet::new(),
                );
                for (call, (arrival, duration)) in calls.iter().copied().enumerate() {
                    let (service, served) = (service.clone(), served.clone());
                    tasks.spawn(async move {
                        sleep(Duration::from_millis(arrival)).await;
                        let ended = service.oneshot(Duration::from_millis(duration)).await;
                        served.lock().expect("no panic")[call] = ended.is_ok();
                    });
                }
                tasks.join_all().await;
                assert_eq!((bulkhead.running(), bulkhead.waiting()), (0, 0));
                served.lock().expect("no panic").clone()
            });
            prop_assert_eq!(served, expected(&calls, policy));
        }
    }
}
