//! Try again, a few times, with longer and longer waits.
//!
//! The layer is tower's own `Retry`; what is added is the policy: [`Retry`] (how often, how long; pure), a [`Classify`](super::Classify) (which errors),
//! a [`Repeat`] (which requests), and a budget. It has no error of its own: when it gives up, the caller gets the last attempt's.
//!
//! **The budget** bounds what retries add to an outage. Each success pays a fifth of a retry in, each retry takes one out; ten retries a
//! second are free. So a dependency that fails every call gets at most ten more calls a second from one layer, and not three times
//! the load. It is tower's token bucket ([`TpsBudget`]); one budget serves all clones of a layer and of its services.
//!
//! # When not
//!
//! - For what is not idempotent: the first attempt may have done its work and lost only the answer. Have [`Repeat`] return `None`,
//!   or send an idempotency key.
//! - For permanent errors: without a classifier each error is tried again, a 400 included.
//! - On several floors: three attempts in the gateway, the service and its database client are 27 queries. Retry where the failure is
//!   understood, once.
//! - Where a queue already does it: the handler of an event that fails is called again by whoever delivers it. Here, only what lasts
//!   milliseconds.
//! - Without a timeout inside: an attempt that hangs is never followed by another.
//!
//! # Examples
//!
//! ```
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use std::time::Duration;
//! use tidings::resilience::{Class, Retry, RetryLayer};
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
//!     async move { if article == "unicorn" { Err(Refused::NotFound) } else if call < 2 { Err(Refused::Busy) } else { Ok(article.len()) } }
//! });
//! let retrying = RetryLayer::new(Retry::default()).classify(|outcome: Result<&usize, &Refused>| match outcome {
//!     Ok(_) => Class::Success,
//!     Err(Refused::Busy) => Class::RateLimited { retry_after: Duration::from_secs(2) },
//!     Err(Refused::NotFound) => Class::Permanent,
//! });
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
pub use policy::Retry;
pub use service::{Attempts, Cloned, Repeat, RetryService};
pub use tower::retry::budget::{Budget, TpsBudget};
