//! Upper bound on the duration of one call: tower's own layer.
//!
//! A call that exceeds the limit is dropped and fails with [`Elapsed`], boxed. Work that it started
//! elsewhere is not undone, so the dependency may have carried out the request. A call that times
//! out and is retried must therefore be idempotent.
//!
//! There is no default. Choose a limit slightly above the dependency's 99.9th percentile and below
//! the limit of your own caller.
//!
//! # When not to use it
//!
//! - Around a database transaction whose outcome must be known: dropping `commit()` leaves the
//!   outcome open.
//! - Outside a [circuit breaker](super::circuit_breaker): the breaker ignores a dropped call, so a
//!   hanging dependency never opens it. Inside the breaker, a timeout counts as a failure.
//! - As the only limit of a call with retries: three attempts of 2 s with waits of 3 s take 9 s.
//!   Limit the whole call with [`RetryPolicy::within`](super::RetryPolicy::within).
//! - For a streamed response: the limit applies until the response begins, not until its body ends.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use tidings::resilience::timeout::{Elapsed, TimeoutLayer};
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let hangs = service_fn(|()| std::future::pending::<Result<(), BoxError>>());
//! let bounded = ServiceBuilder::new()
//!     .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!     .service(hangs);
//!
//! assert!(bounded.oneshot(()).await.unwrap_err().is::<Elapsed>());
//! # }
//! ```

pub use tower::timeout::error::Elapsed;
pub use tower::timeout::{Timeout, TimeoutLayer};
