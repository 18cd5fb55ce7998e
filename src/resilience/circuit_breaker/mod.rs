//! Stop asking what does not answer, and find out gently when it does again.
//!
//! ```text
//!              5 failures in a row, or half of ≥ 20 calls within 30 s
//!    ┌────────┐ ────────────────────────────────────────────────▶ ┌──────┐
//!    │ closed │                                                   │ open │ every call fails at once: CircuitOpen
//!    └────────┘ ◀───────┐                              ┌────────▶ └──────┘
//!   every call passes   │ 2 successes                  │ a failure   │ after 30 s, with the next call
//!                       │           ┌───────────┐      │             │
//!                       └────────── │ half-open │ ─────┘ ◀───────────┘
//!                                   └───────────┘ one call at a time passes, the others fail at once
//! ```
//!
//! [`CircuitBreaker`] is the handle: one for each dependency, shared by all its clients. It tells its [`State`], its [`Counts`] and, to
//! whoever [subscribes](CircuitBreaker::transitions), each [`Transition`]; it logs them too. [`CircuitBreakerLayer`] puts it around a
//! service; [`CircuitBreaker::admit`] is for what is not a service.
//!
//! An outcome counts in the phase in which its call began: what was sent before the circuit opened neither closes it nor keeps it open. A
//! call that is dropped before its outcome is known, or panics, counts as nothing, and gives its place as a probe back.
//!
//! # When not
//!
//! - For what cannot fail for long, or has no other side: a computation, a local cache.
//! - Where the caller can do nothing but fail anyhow and the dependency does not suffer from being asked: the breaker adds an error
//!   and hides the true one.
//! - One breaker for many hosts or shards: one dead shard closes the door to the others. One for each.
//! - Around an event handler whose failures come from its events: five bad events in a row are no outage. Classify them
//!   [`Permanent`](super::Class::Permanent).
//! - As a readiness check that takes the service out of rotation: whoever calls you has an open circuit next.
//! - Without a timeout inside: a call that hangs is no failure.
//!
//! # Examples
//!
//! ```
//! use tidings::resilience::circuit_breaker::{CircuitBreaker, CircuitBreakerLayer, CircuitBreakerPolicy, CircuitOpen, State};
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
//! assert_eq!(breaker.state(), State::Open);
//! let error = stock.ready().await?.call(()).await.unwrap_err();
//! let open = error.downcast_ref::<CircuitOpen>().expect("nobody was asked");
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
pub use state::{Cause, State, Transition};
