//! Postgres: settings, sessions, migrations and the replication protocol.
//!
//! | file | content |
//! |---|---|
//! | `settings` | the database URL, and its form for sqlx |
//! | `gateway` | sessions of sqlx for parameters that sqlx does not support |
//! | `begin` | the begin of a transaction, which may be cancelled |
//! | `session`, `session_fault` | sessions of Tidings; sessions that cannot be used any more |
//! | `replication` | own connections: authentication, TLS, the stream of the log |
//! | `copy` | rows of a table in binary form |
//! | `migrate`, `schema` | the tables of Tidings, and the name of their schema |
//! | `errors`, `certificate` | texts and remedies |
//! | `encodable` | text that the database may not be able to encode |

#[cfg(any(feature = "relay", all(feature = "health", feature = "sqlx")))]
mod age;
#[cfg(feature = "sqlx")]
mod begin;
#[cfg(feature = "relay")]
pub(crate) mod certificate;
#[cfg(feature = "relay")]
mod copy;
#[cfg(any(feature = "relay", feature = "subscriber"))]
pub(crate) mod encodable;
#[cfg(feature = "sqlx")]
pub(crate) mod errors;
#[cfg(feature = "relay")]
mod gateway;
#[cfg(feature = "relay")]
mod lsn;
#[cfg(feature = "sqlx")]
mod migrate;
#[cfg(feature = "relay")]
pub(crate) mod replication;
#[cfg(feature = "outbox")]
mod schema;
#[cfg(feature = "relay")]
pub(crate) mod session;
#[cfg(feature = "subscriber")]
pub(crate) mod session_fault;
#[cfg(feature = "relay")]
mod settings;

#[cfg(any(feature = "relay", all(feature = "health", feature = "sqlx")))]
pub(crate) use age::seconds;
#[cfg(feature = "sqlx")]
pub(crate) use begin::begin;
#[cfg(feature = "cli")]
pub(crate) use begin::begin_with;
#[cfg(feature = "relay")]
pub(crate) use copy::{CopyError, CopyRows, copy_header};
#[cfg(feature = "relay")]
pub use lsn::{Lsn, LsnError};
#[cfg(feature = "sqlx")]
pub use migrate::{MigrateError, MigrationStep, Migrations, migrate};
#[cfg(feature = "outbox")]
pub use schema::{SchemaName, SchemaNameError};
#[cfg(feature = "cli")]
pub(crate) use settings::Method;
#[cfg(feature = "relay")]
pub use settings::{DatabaseSettings, SettingsError, SslMode};
