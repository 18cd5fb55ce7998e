//! A dependency fails and recovers. Its client retries, opens the circuit, probes, and closes the
//! circuit.
//!
//! ```sh
//! cargo run --example resilience
//! ```

// The runtime of the example owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

use std::ops::Range;
use std::time::{Duration, Instant};

use tidings::resilience::{
    Bulkhead, BulkheadLayer, BulkheadPolicy, CircuitBreaker, CircuitBreakerLayer,
    CircuitBreakerPolicy, RetryLayer, RetryPolicy, TimeoutLayer,
};
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const DOWN: Range<Duration> = millis(300)..millis(1_000);

/// Stands for an HTTP request.
async fn ask_for_stock(began: Instant) -> Result<u32, BoxError> {
    if DOWN.contains(&began.elapsed()) {
        Err("connection refused".into())
    } else {
        Ok(7)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // All clients of the dependency share both. The times are short to make the transitions
    // visible.
    let breaker = CircuitBreaker::new(
        "stock",
        CircuitBreakerPolicy {
            open: millis(300),
            ..Default::default()
        },
    );
    let bulkhead = Bulkhead::new("stock", BulkheadPolicy::default());
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::exponential(
            3,
            millis(20)..millis(100),
        )))
        .layer(CircuitBreakerLayer::new(&breaker))
        .layer(BulkheadLayer::new(&bulkhead))
        .layer(TimeoutLayer::new(millis(500)))
        .service(service_fn(ask_for_stock));

    let began = Instant::now();
    let mut transitions = breaker.transitions();
    tokio::spawn(async move {
        while let Some(transition) = transitions.next().await {
            println!(
                "{:>5} ms  {} -> {}: {}",
                began.elapsed().as_millis(),
                transition.from,
                transition.to,
                transition.cause
            );
        }
    });
    while began.elapsed() < millis(2_000) {
        let answer = client.clone().oneshot(began).await;
        let said = answer.map_or_else(
            |error| error.to_string(),
            |stock| format!("{stock} in stock"),
        );
        println!("{:>5} ms  {said}", began.elapsed().as_millis());
        tokio::time::sleep(millis(80)).await;
    }
    println!("{:?}", breaker.counts());
}
