//! Postgres: where it is, how to connect, and the replication protocol.

#[cfg(feature = "outbox")]
mod migrate;
#[cfg(feature = "outbox")]
mod schema;
#[cfg(feature = "relay")]
mod lsn;
#[cfg(feature = "relay")]
pub(crate) mod replication;
#[cfg(feature = "relay")]
mod settings;

#[cfg(feature = "outbox")]
pub use migrate::{MigrateError, MigrationStep, Migrations, migrate};
#[cfg(feature = "outbox")]
pub use schema::{SchemaName, SchemaNameError};
#[cfg(feature = "relay")]
pub use lsn::{Lsn, LsnError};
#[cfg(feature = "relay")]
pub use settings::{Settings, SettingsError, SslMode};
