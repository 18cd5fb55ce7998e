//! Health checks of a service (liveness and readiness), served by a small axum router.
//!
//! | path | response |
//! |---|---|
//! | `/health/live` | 200 while the process responds |
//! | `/health/ready` | 200 if no check fails, otherwise 503; the body lists each check as JSON |
//!
//! ```json
//! {
//!   "status": "not ready",
//!   "checks": [
//!     {"name": "database", "status": "ok", "text": "connected"},
//!     {"name": "kafka", "status": "failing", "text": "no answer within 900ms"}
//!   ]
//! }
//! ```
//!
//! The checks run concurrently. Each has a time limit, 900 ms by default: an orchestrator's probe
//! usually gives up after 1 s, and the response must arrive before. Requests that arrive during a
//! run share its result, so frequent requests cost no more.
//!
//! The crate provides `DatabaseCheck` (feature `outbox`), `KafkaCheck` (`kafka`),
//! `CircuitBreakerCheck` (`resilience`), `SubscriberCheck` (`subscriber`), `RelayLagCheck`
//! (`outbox`), and the checks of a relay in this process (`relay`). A custom check is a closure or
//! a [`Check`].
//!
//! # Choice of checks
//!
//! *Ready* means that the service accepts requests. Check the resources without which it can serve
//! no request. A resource that only some requests need, and any other *service*, should make a
//! check at most [`Degraded`](Status::Degraded): a service that becomes unready with its dependency
//! takes its callers down too. *Live* deliberately checks nothing, because a restart does not
//! repair a database.
//!
//! There is no authentication, and the text of a failing check may contain host names. Serve the
//! paths only within the cluster's own network.
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
//! // Merge it into the router with the service's own routes.
//! let service: axum::Router = axum::Router::new().merge(health.router());
//! # let _ = service;
//! assert!(health.report().await.is_ready());
//! # }
//! ```

mod check;
#[cfg(feature = "resilience")]
mod circuit_breaker;
#[cfg(feature = "sqlx")]
mod database;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "relay")]
mod relay;
#[cfg(feature = "sqlx")]
mod relay_lag;
mod report;
mod router;
mod run;
#[cfg(feature = "subscriber")]
mod subscriber;

pub use check::{Check, Checking, Status};
#[cfg(feature = "resilience")]
pub use circuit_breaker::CircuitBreakerCheck;
#[cfg(feature = "sqlx")]
pub use database::DatabaseCheck;
#[cfg(feature = "kafka")]
pub use kafka::{KafkaCheck, KafkaCheckError};
#[cfg(feature = "sqlx")]
pub use relay_lag::RelayLagCheck;
pub use report::{Checked, Report};
pub use run::Health;
#[cfg(feature = "subscriber")]
pub use subscriber::SubscriberCheck;
