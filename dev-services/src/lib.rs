//! A real Postgres and a real Kafka for tests: one server of each per process, and one database and
//! one topic per test.
//!
//! ```no_run
//! use tidings_testing::Services;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let services = Services::shared()?; // starts once per process
//! # #[cfg(feature = "databases")]
//! let database = services.database()?; // dropped at the end of the test
//! let topic = services.topic(3)?; // deleted at the end of the test
//! # #[cfg(feature = "databases")]
//! println!("{} {} {}", database.url(), services.brokers(), topic.name());
//! # Ok(())
//! # }
//! ```
//!
//! The source of each service is the first of these that is available:
//! 1. the environment: `DATABASE_URL`, `KAFKA_BROKERS`;
//! 2. Docker, if an engine responds, with the `docker-compose.yml` of this crate;
//! 3. programs on this machine: an installed Postgres (15 or newer), and Java (17 or newer) with
//!    Kafka's jars. Maven downloads missing programs once into the cache.
//!
//! `TIDINGS_DEV_SERVICES=programs` skips Docker.
//!
//! Servers listen on free ports of 127.0.0.1 and store their data in the temporary folder. Nothing
//! outlives the process that started them, even if it is killed: a shell whose standard input is a
//! pipe from that process ends the server and removes its folder.
//!
//! A test that breaks servers starts its own, which it may kill, pause and restart: [`Postgres`],
//! [`Kafka`], or three brokers as a [`KafkaCluster`]. They are always programs. A
//! [`Postgres::standby`] can take over from its primary. A [`Proxy`] is a connection that can be
//! cut.

#![cfg_attr(docsrs, feature(doc_cfg))]
// The functions block: their callers run them on threads of their own.
#![allow(clippy::disallowed_methods)]

mod cache;
mod choice;
mod compose;
#[cfg(feature = "databases")]
mod database;
mod error;
pub mod java;
mod kafka;
mod keeper;
mod maven;
mod names;
mod port;
mod postgres;
mod process;
mod programs;
mod proxy;
mod services;
mod user;

#[cfg(feature = "databases")]
pub use database::Database;
pub use error::Error;
pub use kafka::{Acl, AclOperation, AclResource, Kafka, KafkaCluster, KafkaOptions, Topic};
pub use postgres::{Postgres, PostgresOptions};
pub use proxy::Proxy;
pub use services::Services;

/// Runs `launch` again if another process took its port between the choice and the bind.
fn retry_if_port_is_taken<T>(launch: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..3 {
        match launch() {
            Err(Error::Start { log, .. }) if log.contains("already in use") => {}
            result => return result,
        }
    }
    launch()
}
