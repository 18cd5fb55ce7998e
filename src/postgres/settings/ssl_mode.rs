//! Encryption of a connection: its mode and the start of TLS.

use sqlx::postgres::PgSslMode;

use super::fault::UrlFault;

/// Encryption of the connection, with libpq's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Start of TLS (`sslnegotiation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SslNegotiation {
    /// After a request in the Postgres protocol, which a server may decline.
    #[default]
    Postgres,
    /// Immediately, as in HTTPS (PostgreSQL 17 and later).
    Direct,
}

impl SslMode {
    /// Returns libpq's name of the mode.
    pub fn name(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Self, UrlFault> {
        // libpq's `allow` tries without TLS first. Trying with TLS first is at least as secure.
        let name = if name == "allow" { "prefer" } else { name };
        let modes = [
            SslMode::Disable,
            SslMode::Prefer,
            SslMode::Require,
            SslMode::VerifyCa,
            SslMode::VerifyFull,
        ];
        let found = modes.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| UrlFault::SslMode(name.to_owned()))
    }
}

impl From<SslMode> for PgSslMode {
    fn from(mode: SslMode) -> Self {
        match mode {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Prefer => PgSslMode::Prefer,
            SslMode::Require => PgSslMode::Require,
            SslMode::VerifyCa => PgSslMode::VerifyCa,
            SslMode::VerifyFull => PgSslMode::VerifyFull,
        }
    }
}
