//! Faults of a database URL.

/// Remedy for a URL with a character in the wrong place.
const ENCODE: &str =
    "write @ : / ? # % in a user name or password percent-encoded (%40 %3A %2F %3F %23 %25)";

/// A part of the URL or the environment that cannot be used, with its remedy. A text quotes a part
/// only if it cannot belong to a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UrlFault {
    #[error("not a database URL; write postgres://user:password@host:5432/database")]
    Scheme,
    #[error(
        "the URL has a user but no host; write postgres://user@host/database, or for a socket \
         postgres:///database?host=/directory&user=…"
    )]
    NoHost,
    #[error("not a valid URL ({0}); {ENCODE}; several hosts are not supported")]
    Syntax(url::ParseError),
    /// A character of the password has ended the password.
    #[error("the URL has a character in the wrong place; {ENCODE}")]
    Misplaced,
    #[error("sslmode is {0:?}; use disable, prefer, require, verify-ca or verify-full")]
    SslMode(String),
    #[error("channel_binding is {0:?}; use disable, prefer or require")]
    ChannelBinding(String),
    #[error("require_auth mixes methods with and without !; write all of them in one way")]
    MixedMethods,
    #[error("require_auth has {method:?}; use {known}")]
    Method { method: String, known: String },
    #[error("options is not of the form -c name=value")]
    Options,
    #[error("the password file {file} can be read by other accounts: run chmod 600 {file}")]
    Passfile { file: String },
}
