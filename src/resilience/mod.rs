//! Resilience patterns for calls that can fail: retry, circuit breaker, bulkhead and timeout, as
//! plain [`tower`] layers.
//!
//! The layers are independent of HTTP and Kafka: they wrap any `tower::Service`, such as an HTTP
//! client or an event handler. They use tokio's clock, so a test with
//! `#[tokio::test(start_paused = true)]` does not wait. Parts of tower are reused where they
//! suffice ([`timeout`], and the machinery and the budget of [`retry`]). tower has no circuit
//! breaker, and its concurrency limit queues without a bound.
//!
//! # Order
//!
//! From the outermost layer inwards (in a `ServiceBuilder`, the first layer is the outermost):
//!
//! | | layer | reason for its position |
//! |---|---|---|
//! | 1 | [`retry`] | each attempt passes all layers below; a wait holds no slot |
//! | 2 | [`circuit_breaker`] | sees each attempt, including timeouts; if open, fails it at once |
//! | 3 | [`bulkhead`] | rejects calls before the dependency is called; the breaker ignores them |
//! | 4 | [`timeout`] | bounds one attempt, without the wait for a slot |
//! | | the client or handler | |
//!
//! A timeout *outside* the circuit breaker cancels hanging calls before the breaker can count them,
//! so the breaker never opens.
//!
//! ```
//! use std::time::Duration;
//! use tidings::resilience::{
//!     Bulkhead, BulkheadLayer, BulkheadPolicy, CircuitBreaker, CircuitBreakerLayer,
//!     CircuitBreakerPolicy, RetryLayer, RetryPolicy, TimeoutLayer,
//! };
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
//! let bulkhead = Bulkhead::new("stock", BulkheadPolicy::default());
//! let stock = ServiceBuilder::new()
//!     .layer(RetryLayer::new(RetryPolicy::default()))
//!     .layer(CircuitBreakerLayer::new(&breaker))
//!     .layer(BulkheadLayer::new(&bulkhead))
//!     .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!     // for example an HTTP client
//!     .service(service_fn(|article: u32| async move { Ok::<_, BoxError>(article * 2) }));
//!
//! assert_eq!(stock.oneshot(21).await?, 42);
//! # Ok(()) }
//! ```
//!
//! The breaker and the bulkhead are handles. Create one for each dependency, share it between all
//! clients of that dependency, and read its state and counters from it. A [`Classify`] defines once
//! how each layer treats an error.
//!
//! Each module and `docs/patterns.md` describe when to use a pattern and when not to.

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
pub use retry::{RetryLayer, RetryPolicy};
pub use timeout::TimeoutLayer;
