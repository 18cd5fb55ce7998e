//! Circuit breaker: stops calls to a failing dependency, and probes for its recovery.
//!
//! ```text
//!            5 failures in a row, or half of ≥ 20 calls within 30 s
//!  ┌────────┐ ──────────────────────────────────────────────▶ ┌──────┐
//!  │ closed │                                                 │ open │ every call fails
//!  └────────┘ ◀───────┐                            ┌────────▶ └──────┘ with CircuitOpen
//!   every call passes │ 2 successes                │ a failure   │ after 30 s, with the next call
//!                     │          ┌───────────┐     │             │
//!                     └───────── │ half-open │ ────┘ ◀───────────┘
//!                                └───────────┘ one call passes at a time, the others fail at once
//! ```
//!
//! [`CircuitBreaker`] is the handle. Create one for each dependency and share it between all its
//! clients. It returns its [`CircuitState`] and its [`Counts`], sends each [`Transition`] to its
//! [subscribers](CircuitBreaker::transitions), and logs the transitions. [`CircuitBreakerLayer`]
//! wraps a service. [`CircuitBreaker::admit`] serves code that is not a service.
//!
//! An outcome belongs to the phase of the start of its call. A call sent before the circuit opened
//! neither closes it nor keeps it open. A call that panics, or is dropped before its outcome is
//! known, counts as ignored and releases its place as a probe.
//!
//! # When not to use it
//!
//! - For operations that cannot fail for long or call no other system: a computation, a local
//!   cache.
//! - If the caller can only fail anyway and calls do not harm the dependency: the breaker adds an
//!   error and hides the original one.
//! - One breaker for many hosts or shards: one failed shard would block all of them. Use one
//!   breaker for each.
//! - Around an event handler whose failures come from its events: five bad events in a row are not
//!   an outage. Classify such errors as [`Permanent`](super::Class::Permanent).
//! - As a readiness check that takes the service out of rotation: the circuits of its callers would
//!   then open too.
//! - Without a timeout inside: a call that hangs never counts as a failure.
//!
//! # Examples
//!
//! ```
//! use tidings::resilience::circuit_breaker::{
//!     CircuitBreaker, CircuitBreakerLayer, CircuitBreakerPolicy, CircuitOpen, CircuitState,
//! };
//! use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
//! let down = service_fn(|()| async { Err::<(), BoxError>("connection refused".into()) });
//! let mut stock = ServiceBuilder::new().layer(CircuitBreakerLayer::new(&breaker)).service(down);
//!
//! for _ in 0..5 {
//!     assert!(stock.ready().await?.call(()).await.is_err());
//! }
//! assert_eq!(breaker.state(), CircuitState::Open);
//! let error = stock.ready().await?.call(()).await.unwrap_err();
//! let open = error.downcast_ref::<CircuitOpen>().expect("the call was not made");
//! assert_eq!(open.retry_after.as_secs(), 30); // an HTTP gateway's `Retry-After`
//! # Ok(()) }
//! ```

mod breaker;
mod error;
mod layer;
mod policy;
mod service;
mod state;
mod window;

pub use breaker::{CircuitBreaker, Counts, Permit, Transitions};
pub use error::CircuitOpen;
pub use layer::CircuitBreakerLayer;
pub use policy::{CircuitBreakerPolicy, FailureRate};
pub use service::CircuitBreakerService;
pub use state::{Cause, CircuitState, Transition};
