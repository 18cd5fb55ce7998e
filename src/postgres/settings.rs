//! Address and authentication of a database, parsed from one URL.
//!
//! Tidings parses the URL itself rather than with sqlx, for two reasons. The replication connection
//! does not use sqlx but must connect in the same way. And sqlx ignores unknown parameters, whereas
//! `sslmod=verify-full` must be an error. Parts that the URL omits come from libpq's environment
//! variables and password file. `pg_service.conf` and several hosts are not supported.
//!
//! | file | content |
//! |---|---|
//! | `url` | the parts of a URL |
//! | `resolve` | settings from URL, environment and defaults |
//! | `parameters` | supported parameters, and the reasons why others are refused |
//! | `fault` | faults of a URL |
//! | `passfile` | libpq's password file |
//! | `security` | accepted authentication methods and channel binding |
//! | `ssl_mode` | encryption of the connection |

mod fault;
mod parameters;
mod passfile;
mod resolve;
mod security;
mod ssl_mode;
mod url;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use self::resolve::resolve;
pub(crate) use self::security::{ChannelBinding, Method, RequireAuth};
pub use self::ssl_mode::SslMode;
pub(crate) use self::ssl_mode::SslNegotiation;
use super::gateway;

/// Address and authentication of a Postgres database, parsed from a `postgres://` URL.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseSettings {
    host: String,
    socket_dir: Option<PathBuf>,
    port: u16,
    user: String,
    password: Option<String>,
    database: String,
    ssl_mode: SslMode,
    ssl_root_cert: Option<PathBuf>,
    ssl_client_identity: Option<(PathBuf, PathBuf)>,
    ssl_negotiation: SslNegotiation,
    ssl_sni: bool,
    channel_binding: ChannelBinding,
    require_auth: RequireAuth,
    keepalives: bool,
    application_name: Option<String>,
    options: Vec<(String, String)>,
    connect_timeout: Duration,
}

/// Reason why a database URL is refused. Never quotes a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error("{0}")]
pub struct SettingsError(String);

impl DatabaseSettings {
    /// Parses `postgres://user:password@host:port/database?sslmode=…`. Parts that the URL omits
    /// come from environment variables such as `PGPASSWORD`.
    ///
    /// A URL for a Unix socket is `postgres://user@%2Fvar%2Frun%2Fpostgresql/database` or
    /// `postgres:///database?host=/var/run/postgresql`.
    ///
    /// # Errors
    ///
    /// Returns [`SettingsError`] with all faults of the URL in one text.
    pub fn parse(url: &str) -> Result<Self, SettingsError> {
        resolve(url, |name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        })
    }

    /// Returns the URL with the password replaced by `***`, for display.
    pub fn redacted(&self) -> String {
        let password = if self.password.is_some() { ":***" } else { "" };
        let host = match &self.socket_dir {
            Some(directory) => directory.to_string_lossy().replace('/', "%2F"),
            None if self.host.contains(':') => format!("[{}]", self.host),
            None => self.host.clone(),
        };
        format!(
            "postgres://{}{password}@{host}:{}/{}?sslmode={}",
            self.user,
            self.port,
            self.database,
            self.ssl_mode.name()
        )
    }

    /// Returns the settings for sqlx, with the application name `tidings` unless the URL sets one.
    /// The session keeps the `search_path` of its role.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.connect_options_as("")
    }

    /// Same as [`connect_options`](Self::connect_options), with the application name `tidings
    /// <role>`, which `pg_stat_activity` shows. For [`session`](super::session), which prepares the
    /// session.
    pub(super) fn connect_options_as(&self, role: &str) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .database(&self.database)
            .ssl_mode(self.ssl_mode.into())
            .application_name(&self.application_name(role))
            .options(self.options.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.socket_dir {
            options = options.socket(directory);
        }
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(path) = &self.ssl_root_cert {
            options = options.ssl_root_cert(path);
        }
        if let Some((certificate, key)) = &self.ssl_client_identity {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        if self.needs_gateway() {
            options = options
                .socket(gateway::directory(self))
                .ssl_mode(PgSslMode::Disable);
        }
        options
    }
}

// Settings of the replication connection, which does not use sqlx.
impl DatabaseSettings {
    /// Returns the host to connect to, or `localhost` for a socket.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the server's address for messages: `host:port`, or the path of the socket.
    pub(crate) fn address(&self) -> String {
        match &self.socket_dir {
            Some(directory) => directory
                .join(format!(".s.PGSQL.{}", self.port))
                .display()
                .to_string(),
            None if self.host.contains(':') => format!("[{}]:{}", self.host, self.port),
            None => format!("{}:{}", self.host, self.port),
        }
    }

    /// Returns the directory of the Unix socket `.s.PGSQL.<port>`, if the URL names a socket rather
    /// than a host.
    pub(crate) fn socket_dir(&self) -> Option<&Path> {
        self.socket_dir.as_deref()
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    pub(crate) fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// Returns the PEM file of the trusted authorities, or `None` for those of the system.
    pub(crate) fn ssl_root_cert(&self) -> Option<&Path> {
        self.ssl_root_cert.as_deref()
    }

    /// Returns the PEM files of the client's certificate and key.
    pub(crate) fn ssl_client_identity(&self) -> Option<(&Path, &Path)> {
        self.ssl_client_identity
            .as_ref()
            .map(|(certificate, key)| (certificate.as_path(), key.as_path()))
    }

    pub(crate) fn ssl_negotiation(&self) -> SslNegotiation {
        self.ssl_negotiation
    }

    /// Returns `true` if the host name is sent before the TLS channel is encrypted.
    pub(crate) fn ssl_sni(&self) -> bool {
        self.ssl_sni
    }

    pub(crate) fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    pub(crate) fn require_auth(&self) -> &RequireAuth {
        &self.require_auth
    }

    /// Returns `true` if the kernel probes an idle connection.
    pub(crate) fn keepalives(&self) -> bool {
        self.keepalives
    }

    /// Returns `true` if the password, or an MD5 hash of it, is sent to a server that requests it.
    #[cfg(feature = "cli")]
    pub(crate) fn may_send_password(&self) -> bool {
        let accepted =
            self.require_auth.accepts(Method::Password) || self.require_auth.accepts(Method::Md5);
        accepted && self.channel_binding != ChannelBinding::Require
    }

    /// Returns `true` if the server is on this machine.
    #[cfg(feature = "cli")]
    pub(crate) fn is_local(&self) -> bool {
        let loopback = self
            .host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
        self.socket_dir.is_some() || self.host == "localhost" || loopback
    }

    /// Returns `true` if the URL has parameters that sqlx does not support, so that sqlx's sessions
    /// use the [gateway].
    pub(crate) fn needs_gateway(&self) -> bool {
        let binds = self.channel_binding == ChannelBinding::Require;
        binds
            || self.require_auth.is_set()
            || self.ssl_negotiation == SslNegotiation::Direct
            || !self.ssl_sni
    }

    /// Returns the server settings of the session, from `options=-c name=value`.
    pub(crate) fn options(&self) -> &[(String, String)] {
        &self.options
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Returns the application name: the URL's `application_name`, or `tidings <role>`.
    pub(crate) fn application_name(&self, role: &str) -> String {
        self.application_name
            .clone()
            .unwrap_or_else(|| format!("tidings {role}").trim_end().to_owned())
    }
}

// === impl Debug ===

impl std::fmt::Debug for DatabaseSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DatabaseSettings")
            .field(&self.redacted())
            .finish()
    }
}

#[cfg(test)]
mod tests;
