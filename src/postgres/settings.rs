//! Where the database is and how to authenticate, from one URL.

use sqlx::postgres::PgConnectOptions;

/// Where a Postgres database is and how to authenticate, parsed from a `postgres://` URL.
#[derive(Clone)]
pub struct Settings {
    url: url::Url,
}

/// How the connection is encrypted, named as libpq names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Why a database URL is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error("{0}")]
pub struct SettingsError(String);

impl Settings {
    /// Parses `postgres://user:password@host:port/database?sslmode=…`; what the URL leaves out comes from `PGPASSWORD` and the like.
    pub fn parse(_url: &str) -> Result<Self, SettingsError> {
        unimplemented!()
    }
    /// The URL with the password replaced by `***`, for people to read.
    pub fn redacted(&self) -> String {
        unimplemented!()
    }
    /// The same settings for sqlx.
    pub fn connect_options(&self) -> PgConnectOptions {
        unimplemented!()
    }
}
