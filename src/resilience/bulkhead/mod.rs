//! Limit on running and waiting calls; further calls are rejected at once.
//!
//! A dependency that becomes slow ties up every task, connection and byte of memory that waits for
//! it, and thereby also delays calls to healthy dependencies. A bulkhead per dependency limits this
//! to a share. tower's `ConcurrencyLimit` bounds the running calls but queues without a limit, and
//! its `LoadShed` does not queue. This bulkhead has a queue that is bounded in length and in time.
//!
//! Calls are served in the order of their arrival. A call that is dropped while it waits leaves the
//! queue.
//!
//! # When not to use it
//!
//! - In front of a pool that is already bounded, such as a database pool: there would be two
//!   queues, and the limit of the second would never take effect.
//! - To limit calls per second: ten at once may be ten thousand per second. Use a rate limit.
//! - Around event handlers, to slow a subscriber down: a rejected event must be delivered again.
//!   Limit the number of fetched events instead.
//! - For a streamed response: the slot is released when the response begins, not when its body
//!   ends.
//!
//! # Examples
//!
//! ```
//! use tidings::resilience::{Bulkhead, BulkheadError, BulkheadLayer, BulkheadPolicy};
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let bulkhead = Bulkhead::new(
//!     "stock",
//!     BulkheadPolicy { concurrent_max: 1, queue_max: 0, ..Default::default() },
//! );
//! let slow = service_fn(|()| async {
//!     tokio::time::sleep(std::time::Duration::from_secs(1)).await;
//!     Ok::<_, BoxError>("done")
//! });
//! let stock = ServiceBuilder::new().layer(BulkheadLayer::new(&bulkhead)).service(slow);
//!
//! let (first, second) = tokio::join!(stock.clone().oneshot(()), stock.oneshot(()));
//! assert_eq!(first?, "done");
//! assert!(matches!(second.unwrap_err().downcast_ref(), Some(BulkheadError::Full { .. })));
//! # Ok(()) }
//! ```

mod error;
mod layer;
mod policy;
mod service;
mod slots;

pub use error::BulkheadError;
pub use layer::BulkheadLayer;
pub use policy::BulkheadPolicy;
pub use service::BulkheadService;
pub use slots::{Bulkhead, Slot};
