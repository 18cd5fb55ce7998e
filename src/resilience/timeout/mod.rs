//! An upper bound on one call: tower's own layer, which has all that is needed.
//!
//! A call that does not end in time is dropped and fails with [`Elapsed`], boxed. What it had begun elsewhere is not undone: the other side
//! may have done it. So whatever is timed out and tried again has to be idempotent.
//!
//! There is no default: choose a little more than the dependency's 99.9th percentile, and less than what your own caller waits.
//!
//! # When not
//!
//! - Around a database transaction that must be known to have committed or not: dropping `commit()` leaves that open.
//! - Outside a [circuit breaker](super::circuit_breaker): a dropped call counts as nothing there, so a hanging dependency never opens it.
//!   Inside it, a timeout is a failure like any other.
//! - As the only bound on a call with retries: three attempts of 2 s with 3 s of waits are 9 s. Bound the whole with
//!   [`Retry::within`](super::Retry::within).
//! - For a streamed response: the time runs until the response begins, not until its body ends.
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
//! let bounded = ServiceBuilder::new().layer(TimeoutLayer::new(Duration::from_secs(2))).service(hangs);
//!
//! assert!(bounded.oneshot(()).await.unwrap_err().is::<Elapsed>());
//! # }
//! ```

pub use tower::timeout::error::Elapsed;
pub use tower::timeout::{Timeout, TimeoutLayer};
