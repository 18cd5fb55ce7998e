//! Retry of failed calls: a limited number of attempts with exponential backoff.
//!
//! The layer is tower's own `Retry`. This module adds the policy: [`RetryPolicy`] (number of
//! attempts and waits; pure), [`Classify`](super::Classify) (retried errors), [`Repeat`] (repeated
//! requests), and a budget. The layer has no error type of its own: when it gives up, the caller
//! receives the error of the last attempt.
//!
//! **The budget** limits the load that retries add during an outage. Each success adds a fifth of a
//! retry, each retry removes one, and ten retries per second are free. A dependency that fails
//! every call therefore receives at most ten additional calls per second from one layer, rather
//! than three times the load. The budget is tower's token bucket ([`TpsBudget`]). All clones of a
//! layer and of its services share one budget.
//!
//! # When not to use it
//!
//! - For requests that are not idempotent: the first attempt may have succeeded and only its
//!   response was lost. Make [`Repeat`] return `None`, or send an idempotency key.
//! - For permanent errors: without a classifier, every error is retried, including an HTTP 400.
//! - On several levels: three attempts in each of the gateway, the service and its database client
//!   are 27 queries. Retry once, where the failure is understood.
//! - Where a queue already retries: a subscriber calls the handler of a failed event again. Inside
//!   a handler, retry only for milliseconds.
//! - Without a timeout inside: an attempt that hangs is never followed by another one.
//!
//! # Examples
//!
//! ```
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use std::time::Duration;
//! use tidings::resilience::{Class, RetryLayer, RetryPolicy};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! #[derive(Debug)]
//! enum Refused { Busy, NotFound }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let calls = AtomicU32::new(0);
//! let stock = service_fn(|article: &'static str| {
//!     let call = calls.fetch_add(1, Ordering::Relaxed);
//!     async move {
//!         if article == "unicorn" {
//!             Err(Refused::NotFound)
//!         } else if call < 2 {
//!             Err(Refused::Busy)
//!         } else {
//!             Ok(article.len())
//!         }
//!     }
//! });
//! let retrying = RetryLayer::new(RetryPolicy::default()).classify(
//!     |outcome: Result<&usize, &Refused>| match outcome {
//!         Ok(_) => Class::Success,
//!         Err(Refused::Busy) => Class::RateLimited { retry_after: Duration::from_secs(2) },
//!         Err(Refused::NotFound) => Class::Permanent,
//!     },
//! );
//! let stock = ServiceBuilder::new().layer(retrying).service(stock);
//!
//! assert_eq!(stock.clone().oneshot("bolt").await.unwrap(), 4); // the third attempt
//! assert!(matches!(stock.oneshot("unicorn").await, Err(Refused::NotFound))); // no second one
//! assert_eq!(calls.load(Ordering::Relaxed), 4);
//! # }
//! ```

mod layer;
mod policy;
mod service;

pub use layer::RetryLayer;
pub use policy::RetryPolicy;
pub use service::{Attempts, Cloned, Repeat, RetryService};
pub use tower::retry::budget::{Budget, TpsBudget};
