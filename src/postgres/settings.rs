//! Where the database is and how to authenticate, from one URL.
//!
//! The URL is read here, not by sqlx, for two reasons: the replication connection is not sqlx's and must go to the same
//! place in the same way, and sqlx ignores a parameter it does not know, where `sslmod=verify-full` must be an error.
//! What the URL leaves out comes from libpq's environment variables. Not read: `.pgpass`, `pg_service.conf`, several hosts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

/// How long a connection attempt may take unless `connect_timeout` says otherwise. libpq waits for ever; a relay tries again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a Postgres database is and how to authenticate, parsed from a `postgres://` URL.
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
    application_name: Option<String>,
    options: Vec<(String, String)>,
    connect_timeout: Duration,
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

/// Why a database URL is refused. Never quotes a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error("{0}")]
pub struct SettingsError(String);

impl Settings {
    /// Parses `postgres://user:password@host:port/database?sslmode=…`; what the URL leaves out comes from `PGPASSWORD` and the like.
    ///
    /// A Unix socket is `postgres://user@%2Fvar%2Frun%2Fpostgresql/database` or `postgres:///database?host=/var/run/postgresql`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the URL, in one text.
    pub fn parse(url: &str) -> Result<Self, SettingsError> {
        resolve(url, |name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The URL with the password replaced by `***`, for people to read.
    pub fn redacted(&self) -> String {
        let password = if self.password.is_some() { ":***" } else { "" };
        let host = match &self.socket_dir {
            Some(directory) => directory.to_string_lossy().replace('/', "%2F"),
            None if self.host.contains(':') => format!("[{}]", self.host),
            None => self.host.clone(),
        };
        format!("postgres://{}{password}@{host}:{}/{}?sslmode={}", self.user, self.port, self.database, self.ssl_mode.name())
    }

    /// The same settings for sqlx, under the application name `tidings` unless the URL gives one.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.connect_options_as("")
    }

    /// The same, under the application name `tidings <role>`: what `pg_stat_activity` shows.
    pub(crate) fn connect_options_as(&self, role: &str) -> PgConnectOptions {
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
        options
    }
}

// What the replication connection, which is not sqlx's, is made from.
impl Settings {
    /// The host to connect to; `localhost` when a socket is used.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket `.s.PGSQL.<port>`, instead of the host.
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

    /// The PEM file of the authorities to trust; `None` is the system's.
    pub(crate) fn ssl_root_cert(&self) -> Option<&Path> {
        self.ssl_root_cert.as_deref()
    }

    /// The PEM files of the client's certificate and of its key.
    pub(crate) fn ssl_client_identity(&self) -> Option<(&Path, &Path)> {
        self.ssl_client_identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()))
    }

    /// Server settings for the session, as given by `options=-c name=value`.
    pub(crate) fn options(&self) -> &[(String, String)] {
        &self.options
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// What the server calls us: the URL's `application_name`, else `tidings <role>`.
    pub(crate) fn application_name(&self, role: &str) -> String {
        self.application_name.clone().unwrap_or_else(|| format!("tidings {role}").trim_end().to_owned())
    }
}

impl SslMode {
    /// libpq's name of the mode.
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
        let modes = [SslMode::Disable, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull];
        let found = modes.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| format!("sslmode is {name:?}; use disable, prefer, require, verify-ca or verify-full"))
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

/// What the URL and the environment give, as text; each field from the first place that has it.
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
    application_name: Option<String>,
    options: String,
    connect_timeout: Option<String>,
}

fn resolve(url: &str, env: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
    let mut faults = Vec::new();
    let mut given = read_url(url, &mut faults).map_err(SettingsError)?;
    let fallbacks: [(&mut Option<String>, &str); 11] = [
        (&mut given.host, "PGHOST"),
        (&mut given.port, "PGPORT"),
        (&mut given.user, "PGUSER"),
        (&mut given.password, "PGPASSWORD"),
        (&mut given.database, "PGDATABASE"),
        (&mut given.ssl_mode, "PGSSLMODE"),
        (&mut given.ssl_root_cert, "PGSSLROOTCERT"),
        (&mut given.ssl_cert, "PGSSLCERT"),
        (&mut given.ssl_key, "PGSSLKEY"),
        (&mut given.application_name, "PGAPPNAME"),
        (&mut given.connect_timeout, "PGCONNECT_TIMEOUT"),
    ];
    for (field, name) in fallbacks {
        *field = field.take().or_else(|| env(name));
    }
    if let Some(options) = env("PGOPTIONS") {
        given.options = format!("{options} {}", given.options);
    }
    let settings = given.into_settings(&mut faults);
    if faults.is_empty() { Ok(settings) } else { Err(SettingsError(faults.join("; "))) }
}

/// Takes the URL apart. Nothing of it is quoted unless it cannot be part of a password.
fn read_url(text: &str, faults: &mut Vec<String>) -> Result<Given, String> {
    const ENCODE: &str = "write @ : / ? # % in a user name or password percent-encoded (%40 %3A %2F %3F %23 %25)";
    let url = match Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => url,
        Ok(_) | Err(url::ParseError::RelativeUrlWithoutBase) => {
            return Err("not a database URL; write postgres://user:password@host:5432/database".into());
        }
        Err(url::ParseError::EmptyHost) => {
            return Err("the URL has a user and no host; write postgres://user@host/database, or for a socket postgres:///database?host=/directory&user=…".into());
        }
        Err(error) => return Err(format!("not a valid URL ({error}); {ENCODE}; several hosts are not supported")),
    };
    // Such a URL has a password with a character that ended it too early, so that part of it would pass for something else.
    let path = url.path().strip_prefix('/').unwrap_or(url.path());
    if url.fragment().is_some() || path.contains(['/', '@']) || url.query().is_some_and(|query| query.contains('@')) {
        return Err(format!("the URL has a character in the wrong place; {ENCODE}"));
    }
    let mut given = Given {
        host: decoded(url.host_str().unwrap_or_default().trim_matches(['[', ']']), faults),
        port: url.port().map(|port| port.to_string()),
        user: decoded(url.username(), faults),
        password: decoded(url.password().unwrap_or_default(), faults),
        database: decoded(path, faults),
        ..Given::default()
    };
    let mut has_password = false;
    for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
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
            "application_name" => given.application_name = value,
            "options" => given.options = value.unwrap_or_default(),
            "connect_timeout" => given.connect_timeout = value,
            // What follows the password may be the rest of it, so it is not quoted.
            _ if has_password => faults.push("an unknown parameter follows password; write & in a password as %26".into()),
            unknown => faults.push(unknown_parameter(unknown)),
        }
    }
    Ok(given)
}

fn unknown_parameter(name: &str) -> String {
    const KNOWN: [&str; 12] = [
        "application_name",
        "connect_timeout",
        "dbname",
        "host",
        "options",
        "password",
        "port",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslrootcert",
        "user",
    ];
    let nearest = KNOWN.iter().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    match nearest {
        Some(known) if strsim::jaro_winkler(known, name) > 0.88 => format!("unknown parameter {name}; did you mean {known}?"),
        _ => format!("unknown parameter {name}; remove it (known: {})", KNOWN.join(", ")),
    }
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
    fn into_settings(self, faults: &mut Vec<String>) -> Settings {
        let mut fault = |text: String| faults.push(text);
        // sqlx's choice where nothing is said: the machine's socket directory if a server listens there, and the account's name.
        let otherwise = PgConnectOptions::new_without_pgpass();
        let host = self.host.unwrap_or_else(|| otherwise.get_host().to_owned());
        if host.contains(',') {
            fault("several hosts are not supported; name the one that is the primary, or a name that follows it".into());
        }
        let port = self.port.as_deref().map_or(Ok(5432), str::parse::<u16>).ok().filter(|port| *port > 0).unwrap_or_else(|| {
            fault("the port is not a number between 1 and 65535".into());
            5432
        });
        let user = self.user.unwrap_or_else(|| otherwise.get_username().to_owned());
        let system_roots = self.ssl_root_cert.as_deref() == Some("system");
        // As libpq does: trusting every public authority makes sense only when the host name is checked too.
        let ssl_mode = match self.ssl_mode.as_deref() {
            None if system_roots => SslMode::VerifyFull,
            None => SslMode::Prefer,
            Some(name) => SslMode::parse(name).unwrap_or_else(|text| {
                fault(text);
                SslMode::Prefer
            }),
        };
        if system_roots && ssl_mode != SslMode::VerifyFull {
            fault(format!("sslrootcert=system needs sslmode=verify-full, not {}", ssl_mode.name()));
        }
        // As libpq does: who names the authority wants it checked.
        let ssl_mode = match ssl_mode {
            SslMode::Require if self.ssl_root_cert.is_some() => SslMode::VerifyCa,
            mode => mode,
        };
        let ssl_client_identity = match (self.ssl_cert, self.ssl_key) {
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
            host: if host.starts_with('/') { "localhost".into() } else { host },
            port,
            database: self.database.unwrap_or_else(|| user.clone()),
            user,
            password: self.password,
            ssl_mode,
            ssl_root_cert: self.ssl_root_cert.filter(|_| !system_roots).map(PathBuf::from),
            ssl_client_identity,
            application_name: self.application_name,
            options,
            connect_timeout,
        }
    }
}

/// Reads `-c name=value --name=value`, with `\` before a space that belongs to the value, as the server does.
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
            None => return Err("options is not of the form -c name=value".into()),
        };
        let (name, value) = assignment.split_once('=').ok_or("options is not of the form -c name=value")?;
        options.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(options)
}

#[cfg(test)]
mod tests;
