//! Is this service alive, is it ready: for any service, as a small axum router.
//!
//! | path | answers |
//! |---|---|
//! | `/health/live` | 200 as long as the process answers at all |
//! | `/health/ready` | 200 if no check fails, else 503; each check's state as JSON |
//!
//! ```json
//! {"status":"not ready","checks":[{"name":"database","status":"ok","text":"connected"},
//!                                 {"name":"kafka","status":"failing","text":"no answer within 900ms"}]}
//! ```
//!
//! The checks run at once, each within its time (900 ms unless told otherwise: an orchestrator's probe gives up after 1 s by default, and
//! shall still hear the reason). Who asks while they run gets the same answer, so that asking often costs no more.
//!
//! Checks that come with the crate: `DatabaseCheck` (feature `outbox`), `KafkaCheck` (`kafka`), `CircuitBreakerCheck`
//! (`resilience`), `SubscriberCheck` (`subscriber`), `RelayLagCheck` (`outbox`), and those of a relay in this process (`relay`). An own one is a closure, or a [`Check`].
//!
//! # What to check, and what not
//!
//! *Ready* means: send me requests. So check what no request can be served without. What some requests need only, and what other
//! *services* do, makes a check [`Degraded`](Status::Degraded) at most: a service that turns unready with its dependency takes its callers
//! down with it. *Live* checks nothing on purpose: a restart cures no database.
//!
//! There is no authentication, and a failing check's text may name hosts: serve it where only the cluster's own network reaches.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use tidings::health::{Health, Status};
//!
//! # async fn free_bytes() -> std::io::Result<u64> { Ok(1 << 40) }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let health = Health::new().check("disk", || async {
//!     match free_bytes().await {
//!         Ok(free) if free < 1 << 30 => Status::Degraded("less than 1 GiB free".into()),
//!         Ok(free) => Status::Ok(format!("{} GiB free", free >> 30)),
//!         Err(error) => Status::Failing(error.to_string()),
//!     }
//! });
//! let service: axum::Router = axum::Router::new().merge(health.router()); // beside the service's own routes
//! # let _ = service;
//! assert!(health.report().await.is_ready());
//! # }
//! ```

mod check;
#[cfg(feature = "resilience")]
mod circuit_breaker;
#[cfg(feature = "outbox")]
mod database;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "relay")]
mod relay;
#[cfg(feature = "outbox")]
mod relay_lag;
mod report;
mod router;
mod run;
#[cfg(feature = "subscriber")]
mod subscriber;

pub use check::{Check, Checking, Status};
#[cfg(feature = "resilience")]
pub use circuit_breaker::CircuitBreakerCheck;
#[cfg(feature = "outbox")]
pub use database::DatabaseCheck;
#[cfg(feature = "kafka")]
pub use kafka::{KafkaCheck, KafkaCheckError};
#[cfg(feature = "outbox")]
pub use relay_lag::RelayLagCheck;
pub use report::{Checked, Report};
pub use run::Health;
#[cfg(feature = "subscriber")]
pub use subscriber::SubscriberCheck;
