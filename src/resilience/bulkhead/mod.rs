//! So many calls at once, so many waiting, and the rest is turned away at once.
//!
//! A dependency that turns slow takes every task, connection and byte of memory of whoever waits for it, and takes the calls to healthy
//! dependencies with it. A bulkhead for each dependency keeps that to a share. tower's `ConcurrencyLimit` bounds the calls under way but
//! queues without end, and its `LoadShed` queues nothing; this has a queue that is bounded in length and in time.
//!
//! Calls get their turn in the order in which they came. A call that is dropped while it waits leaves the queue.
//!
//! # When not
//!
//! - In front of a pool that is bounded already (a database pool): two queues, and the second one's limit never matters.
//! - To limit the calls a second: ten at once may be ten thousand a second. That is a rate limit.
//! - Around event handlers, to slow a subscriber down: what is turned away has to be delivered again. Bound what is fetched.
//! - For a streamed response: a place is free again when the response begins, not when its body ends.
//!
//! # Examples
//!
//! ```
//! use tidings::resilience::{Bulkhead, BulkheadError, BulkheadLayer, BulkheadPolicy};
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let bulkhead = Bulkhead::new("stock", BulkheadPolicy { concurrent_max: 1, queue_max: 0, ..Default::default() });
//! let slow = service_fn(|()| async { tokio::time::sleep(std::time::Duration::from_secs(1)).await; Ok::<_, BoxError>("done") });
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
