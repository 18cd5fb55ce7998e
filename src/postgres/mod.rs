//! Postgres: where it is, how to connect, and the replication protocol.

#[cfg(feature = "relay")]
mod lsn;
#[cfg(feature = "relay")]
pub(crate) mod replication;
#[cfg(feature = "relay")]
mod settings;

#[cfg(feature = "relay")]
pub use lsn::{Lsn, LsnError};
#[cfg(feature = "relay")]
pub use settings::{Settings, SettingsError, SslMode};
