//! Tidings: an event bus for services that own a Postgres database.
//!
//! (The crate essay is written last.)

#[cfg(feature = "cli")]
pub mod admin;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod event;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "outbox")]
pub mod outbox;
#[cfg(feature = "outbox")]
pub mod postgres;
#[cfg(feature = "relay")]
pub mod relay;

pub use event::DomainEvent;
#[cfg(feature = "outbox")]
pub use outbox::{Outbox, PublishError};
#[cfg(feature = "outbox")]
pub use postgres::{MigrateError, Migrations, migrate};

// The derive macro names the crate by this path, inside it too.
extern crate self as tidings;
