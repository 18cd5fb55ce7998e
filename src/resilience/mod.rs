//! What a call to something that can fail needs around it: retry, circuit breaker, bulkhead and timeout, as plain [`tower`] layers.
//!
//! They know neither HTTP nor Kafka: a `tower::Service` is wrapped, be it an HTTP client or an event handler. Time is tokio's, so that a
//! test with `#[tokio::test(start_paused = true)]` does not wait. tower's own parts are used where they serve ([`timeout`], the machinery
//! and the budget of [`retry`]); a circuit breaker tower does not have, and its concurrency limit queues without end.
//!
//! # The order
//!
//! From the outside in; with `ServiceBuilder` the first layer named is the outermost:
//!
//! | | layer | why there |
//! |---|---|---|
//! | 1 | [`retry`] | each attempt passes everything below; no slot is held and no clock runs while it waits |
//! | 2 | [`circuit_breaker`] | sees each attempt, timeouts included; while open, nothing below is touched |
//! | 3 | [`bulkhead`] | a full queue is turned away before the dependency is asked, and does not count against it |
//! | 4 | [`timeout`] | bounds one attempt, without the wait for a slot |
//! | | the client or handler | |
//!
//! A timeout *outside* the circuit breaker cancels calls before the breaker learns that they hang, and it never opens.
//!
//! ```
//! use std::time::Duration;
//! use tidings::resilience::{
//!     Bulkhead, BulkheadLayer, BulkheadPolicy, CircuitBreaker, CircuitBreakerLayer, CircuitBreakerPolicy, Retry, RetryLayer, TimeoutLayer,
//! };
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
//! let bulkhead = Bulkhead::new("stock", BulkheadPolicy::default());
//! let stock = ServiceBuilder::new()
//!     .layer(RetryLayer::new(Retry::default()))
//!     .layer(CircuitBreakerLayer::new(&breaker))
//!     .layer(BulkheadLayer::new(&bulkhead))
//!     .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!     .service(service_fn(|article: u32| async move { Ok::<_, BoxError>(article * 2) })); // an HTTP client, say
//!
//! assert_eq!(stock.oneshot(21).await?, 42);
//! # Ok(()) }
//! ```
//!
//! The breaker and the bulkhead are handles: keep one for each dependency, give it to every client of that dependency, and ask it how it
//! stands. What an error means to them is said once, by a [`Classify`].
//!
//! When to use which, and when not, is in each module and in `docs/patterns.md`.

pub mod bulkhead;
pub mod circuit_breaker;
mod class;
#[cfg(feature = "metrics")]
mod metrics;
pub mod retry;
#[cfg(test)]
mod tests;
pub mod timeout;

pub use bulkhead::{Bulkhead, BulkheadError, BulkheadLayer, BulkheadPolicy};
pub use circuit_breaker::{CircuitBreaker, CircuitBreakerLayer, CircuitBreakerPolicy, CircuitOpen};
pub use class::{Class, Classify, EveryError};
#[cfg(feature = "metrics")]
pub use metrics::ResilienceMetrics;
pub use retry::{Retry, RetryLayer};
pub use timeout::TimeoutLayer;
