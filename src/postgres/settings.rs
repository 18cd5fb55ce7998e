//! Address and authentication of a database, parsed from one URL.
//!
//! Tidings parses the URL itself rather than with sqlx, for two reasons. The replication connection
//! does not use sqlx but must connect in the same way. And sqlx ignores unknown parameters, whereas
//! `sslmod=verify-full` must be an error. Parts that the URL omits come from libpq's environment
//! variables and password file. `pg_service.conf` and several hosts are not supported.

mod parameters;
mod passfile;
mod security;

pub(crate) use security::{ChannelBinding, Method, RequireAuth};

use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use super::gateway;

/// Default of `connect_timeout`. libpq waits indefinitely, but a relay retries.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Address and authentication of a Postgres database, parsed from a `postgres://` URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
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

/// Reason why a database URL is refused. Never quotes a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error("{0}")]
pub struct SettingsError(String);

impl Settings {
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
impl Settings {
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

    fn parse(name: &str) -> Result<Self, String> {
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
        found.ok_or_else(|| {
            format!("sslmode is {name:?}; use disable, prefer, require, verify-ca or verify-full")
        })
    }
}

// === impl Debug, From ===

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Settings").field(&self.redacted()).finish()
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

/// Values of the URL and the environment, as text. The URL takes precedence.
#[derive(Default)]
struct Given {
    host: Option<String>,
    port: Option<String>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    ssl_mode: Option<String>,
    ssl_root_cert: Option<String>,
    ssl_cert: Option<String>,
    ssl_key: Option<String>,
    ssl_negotiation: Option<String>,
    ssl_sni: Option<String>,
    channel_binding: Option<String>,
    require_auth: Option<String>,
    keepalives: Option<String>,
    passfile: Option<String>,
    application_name: Option<String>,
    options: String,
    connect_timeout: Option<String>,
}

fn resolve(url: &str, env: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
    let mut faults = Vec::new();
    let mut given = read_url(url, &mut faults).map_err(SettingsError)?;
    let fallbacks: [(&mut Option<String>, &str); 16] = [
        (&mut given.host, "PGHOST"),
        (&mut given.port, "PGPORT"),
        (&mut given.user, "PGUSER"),
        (&mut given.password, "PGPASSWORD"),
        (&mut given.database, "PGDATABASE"),
        (&mut given.ssl_mode, "PGSSLMODE"),
        (&mut given.ssl_root_cert, "PGSSLROOTCERT"),
        (&mut given.ssl_cert, "PGSSLCERT"),
        (&mut given.ssl_key, "PGSSLKEY"),
        (&mut given.ssl_negotiation, "PGSSLNEGOTIATION"),
        (&mut given.ssl_sni, "PGSSLSNI"),
        (&mut given.channel_binding, "PGCHANNELBINDING"),
        (&mut given.require_auth, "PGREQUIREAUTH"),
        (&mut given.passfile, "PGPASSFILE"),
        (&mut given.application_name, "PGAPPNAME"),
        (&mut given.connect_timeout, "PGCONNECT_TIMEOUT"),
    ];
    for (field, name) in fallbacks {
        *field = field.take().or_else(|| env(name));
    }
    if let Some(options) = env("PGOPTIONS") {
        given.options = format!("{options} {}", given.options);
    }
    for (name, variable) in [
        ("gssencmode", "PGGSSENCMODE"),
        ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ] {
        faults.extend(env(variable).and_then(|value| parameters::fault(name, &value)));
    }
    let default_passfile = env("HOME").map(|home| Path::new(&home).join(".pgpass"));
    let settings = given.into_settings(&mut faults, default_passfile.as_deref());
    if faults.is_empty() {
        Ok(settings)
    } else {
        Err(SettingsError(faults.join("; ")))
    }
}

/// Splits the URL into its parts. A message quotes a part only if it cannot belong to a password.
fn read_url(text: &str, faults: &mut Vec<String>) -> Result<Given, String> {
    const ENCODE: &str =
        "write @ : / ? # % in a user name or password percent-encoded (%40 %3A %2F %3F %23 %25)";
    let url = match Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => url,
        Ok(_) | Err(url::ParseError::RelativeUrlWithoutBase) => {
            return Err(
                "not a database URL; write postgres://user:password@host:5432/database".into(),
            );
        }
        Err(url::ParseError::EmptyHost) => {
            return Err(
                "the URL has a user but no host; write postgres://user@host/database, or for a \
                 socket postgres:///database?host=/directory&user=…"
                    .into(),
            );
        }
        Err(error) => {
            return Err(format!(
                "not a valid URL ({error}); {ENCODE}; several hosts are not supported"
            ));
        }
    };
    // In such a URL, a character of the password has ended the password too early, so that the rest
    // of it would be taken for another part.
    let path = url.path().strip_prefix('/').unwrap_or(url.path());
    if url.fragment().is_some()
        || path.contains(['/', '@'])
        || url.query().is_some_and(|query| query.contains('@'))
    {
        return Err(format!(
            "the URL has a character in the wrong place; {ENCODE}"
        ));
    }
    let mut given = Given {
        host: decoded(
            url.host_str().unwrap_or_default().trim_matches(['[', ']']),
            faults,
        ),
        port: url.port().map(|port| port.to_string()),
        user: decoded(url.username(), faults),
        password: decoded(url.password().unwrap_or_default(), faults),
        database: decoded(path, faults),
        ..Given::default()
    };
    let mut has_password = false;
    for pair in url
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value, faults);
        match name {
            "host" => given.host = value,
            "port" => given.port = value,
            "user" => given.user = value,
            "password" => {
                has_password = true;
                given.password = value;
            }
            "dbname" => given.database = value,
            "sslmode" => given.ssl_mode = value,
            "sslrootcert" => given.ssl_root_cert = value,
            "sslcert" => given.ssl_cert = value,
            "sslkey" => given.ssl_key = value,
            "sslnegotiation" => given.ssl_negotiation = value,
            "sslsni" => given.ssl_sni = value,
            "channel_binding" => given.channel_binding = value,
            "require_auth" => given.require_auth = value,
            "passfile" => given.passfile = value,
            "application_name" => given.application_name = value,
            "fallback_application_name" => {
                given.application_name = given.application_name.or(value)
            }
            "options" => given.options = value.unwrap_or_default(),
            "connect_timeout" => given.connect_timeout = value,
            known if parameters::KNOWN.contains(&known) => {
                let value = value.unwrap_or_default();
                faults.extend(parameters::fault(known, &value));
                if known == "keepalives" {
                    given.keepalives = Some(value);
                }
            }
            // The rest may belong to the password, so it is not quoted.
            _ if has_password => faults
                .push("an unknown parameter follows password; write & in a password as %26".into()),
            unknown => faults.push(parameters::unknown(unknown)),
        }
    }
    Ok(given)
}

fn decoded(text: &str, faults: &mut Vec<String>) -> Option<String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Some(text.into_owned()).filter(|text| !text.is_empty()),
        Err(_) => {
            faults.push("a percent-encoded part of the URL is not UTF-8".into());
            None
        }
    }
}

impl Given {
    fn into_settings(
        mut self,
        faults: &mut Vec<String>,
        default_passfile: Option<&Path>,
    ) -> Settings {
        let mut settings = self.places(faults);
        self.secure(&mut settings, faults);
        if settings.password.is_none() {
            settings.password = self.filed_password(&settings, faults, default_passfile);
        }
        settings
    }

    /// Sets the accepted authentication methods and the start of TLS.
    fn secure(&self, settings: &mut Settings, faults: &mut Vec<String>) {
        let mut fault = |text: String| faults.push(text);
        match self.channel_binding.as_deref().map(ChannelBinding::parse) {
            None => {}
            Some(Ok(binding)) => settings.channel_binding = binding,
            Some(Err(text)) => fault(text),
        }
        match self.require_auth.as_deref().map(RequireAuth::parse) {
            None => {}
            Some(Ok(require)) => settings.require_auth = require,
            Some(Err(text)) => fault(text),
        }
        let encrypts = settings.ssl_mode != SslMode::Disable && settings.socket_dir.is_none();
        if settings.channel_binding == ChannelBinding::Require && !encrypts {
            fault(
                "channel_binding=require needs TLS, which sslmode=disable and a Unix socket \
                 exclude"
                    .into(),
            );
        }
        match self.ssl_negotiation.as_deref() {
            None | Some("postgres") => {}
            Some("direct") if matches!(settings.ssl_mode, SslMode::Disable | SslMode::Prefer) => {
                fault(format!(
                    "sslnegotiation=direct needs sslmode=require or stronger, not {}",
                    settings.ssl_mode.name()
                ));
            }
            Some("direct") => settings.ssl_negotiation = SslNegotiation::Direct,
            Some(other) => fault(format!(
                "sslnegotiation is {other:?}; use postgres or direct"
            )),
        }
        match self.ssl_sni.as_deref() {
            None | Some("1") => {}
            Some("0") => settings.ssl_sni = false,
            Some(other) => fault(format!("sslsni is {other:?}; use 0 or 1")),
        }
        settings.keepalives = self.keepalives.as_deref() != Some("0");
    }

    /// Returns the password from the password file. A file that other accounts may access is an
    /// error if the URL or the environment names it, and is ignored otherwise.
    fn filed_password(
        &self,
        settings: &Settings,
        faults: &mut Vec<String>,
        default: Option<&Path>,
    ) -> Option<String> {
        let (host, port, database, user) = (
            &*settings.host,
            settings.port,
            &*settings.database,
            &*settings.user,
        );
        let wanted = passfile::Wanted {
            host,
            port,
            database,
            user,
        };
        match &self.passfile {
            None => default.and_then(|file| passfile::lookup(file, wanted).ok()?),
            Some(file) => passfile::lookup(Path::new(file), wanted).unwrap_or_else(|text| {
                faults.push(text);
                None
            }),
        }
    }

    /// Sets the address of the database and the encryption of the connection.
    fn places(&mut self, faults: &mut Vec<String>) -> Settings {
        let mut fault = |text: String| faults.push(text);
        // sqlx's defaults: the machine's socket directory if a server listens there, and the
        // account's name.
        let otherwise = PgConnectOptions::new_without_pgpass();
        let host = self
            .host
            .take()
            .unwrap_or_else(|| otherwise.get_host().to_owned());
        if host.contains(',') {
            fault(
                "several hosts are not supported; use the host of the primary, or a name that \
                 follows the primary"
                    .into(),
            );
        }
        let port = self
            .port
            .as_deref()
            .map_or(Ok(5432), str::parse::<u16>)
            .ok()
            .filter(|port| *port > 0)
            .unwrap_or_else(|| {
                fault("the port is not a number between 1 and 65535".into());
                5432
            });
        let user = self
            .user
            .take()
            .unwrap_or_else(|| otherwise.get_username().to_owned());
        let system_roots = self.ssl_root_cert.as_deref() == Some("system");
        // As in libpq: trusting every public authority is safe only if the host name is verified
        // too.
        let ssl_mode = match self.ssl_mode.as_deref() {
            None if system_roots => SslMode::VerifyFull,
            None => SslMode::Prefer,
            Some(name) => SslMode::parse(name).unwrap_or_else(|text| {
                fault(text);
                SslMode::Prefer
            }),
        };
        if system_roots && ssl_mode != SslMode::VerifyFull {
            fault(format!(
                "sslrootcert=system needs sslmode=verify-full, not {}",
                ssl_mode.name()
            ));
        }
        // As in libpq: with a root certificate, `require` verifies the authority.
        let ssl_mode = match ssl_mode {
            SslMode::Require if self.ssl_root_cert.is_some() => SslMode::VerifyCa,
            mode => mode,
        };
        let ssl_client_identity = match (self.ssl_cert.take(), self.ssl_key.take()) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            (Some(_), None) => {
                fault("sslcert is given without sslkey; give both".into());
                None
            }
            (None, Some(_)) => {
                fault("sslkey is given without sslcert; give both".into());
                None
            }
        };
        let connect_timeout = match self.connect_timeout.as_deref().map(str::parse::<u32>) {
            None => CONNECT_TIMEOUT,
            Some(Ok(seconds @ 1..)) => Duration::from_secs(seconds.into()),
            Some(_) => {
                fault("connect_timeout is a whole number of seconds, at least 1".into());
                CONNECT_TIMEOUT
            }
        };
        let options = session_options(&self.options).unwrap_or_else(|text| {
            fault(text);
            Vec::new()
        });
        Settings {
            socket_dir: host.starts_with('/').then(|| PathBuf::from(&host)),
            host: if host.starts_with('/') {
                "localhost".into()
            } else {
                host
            },
            port,
            database: self.database.take().unwrap_or_else(|| user.clone()),
            user,
            password: self.password.take(),
            ssl_mode,
            ssl_root_cert: self
                .ssl_root_cert
                .take()
                .filter(|_| !system_roots)
                .map(PathBuf::from),
            ssl_client_identity,
            ssl_negotiation: SslNegotiation::default(),
            ssl_sni: true,
            channel_binding: ChannelBinding::default(),
            require_auth: RequireAuth::default(),
            keepalives: true,
            application_name: self.application_name.take(),
            options,
            connect_timeout,
        }
    }
}

/// Parses `-c name=value --name=value`, where `\` precedes a space that belongs to the value, as
/// the server does.
fn session_options(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, words.last_mut()) {
            ('\\', Some(word)) => word.extend(characters.next()),
            (' ', _) => words.push(String::new()),
            (other, Some(word)) => word.push(other),
            (_, None) => {}
        }
    }
    let mut options = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let assignment = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") => words.next().unwrap_or_default(),
            Some(rest) => rest.to_owned(),
            // A Neon option for clients that do not send a host name in TLS.
            None if word.starts_with("endpoint=") || word.starts_with("project=") => continue,
            None => return Err("options is not of the form -c name=value".into()),
        };
        let (name, value) = assignment
            .split_once('=')
            .ok_or("options is not of the form -c name=value")?;
        options.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(options)
}

#[cfg(test)]
mod tests;
