//! Settings from the parts of a URL, the environment and libpq's defaults.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::postgres::PgConnectOptions;

use super::{
    ChannelBinding, DatabaseSettings, RequireAuth, SettingsError, SslMode, SslNegotiation,
    fault::UrlFault,
    parameters, passfile,
    url::{Given, read_url},
};

/// Default of `connect_timeout`. libpq waits indefinitely, but a relay retries.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Resolves a URL. Parts that it omits come from the environment.
///
/// # Errors
///
/// Returns all faults in one text.
pub(super) fn resolve(
    url: &str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<DatabaseSettings, SettingsError> {
    let mut faults = Vec::new();
    let mut given = read_url(url, &mut faults).map_err(|fault| SettingsError(fault.to_string()))?;
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

impl Given {
    fn into_settings(
        mut self,
        faults: &mut Vec<String>,
        default_passfile: Option<&Path>,
    ) -> DatabaseSettings {
        let mut settings = self.places(faults);
        self.secure(&mut settings, faults);
        if settings.password.is_none() {
            settings.password = self.filed_password(&settings, faults, default_passfile);
        }
        settings
    }

    /// Sets the accepted authentication methods and the start of TLS.
    fn secure(&self, settings: &mut DatabaseSettings, faults: &mut Vec<String>) {
        let mut fault = |text: String| faults.push(text);
        match self.channel_binding.as_deref().map(ChannelBinding::parse) {
            None => {}
            Some(Ok(binding)) => settings.channel_binding = binding,
            Some(Err(refused)) => fault(refused.to_string()),
        }
        match self.require_auth.as_deref().map(RequireAuth::parse) {
            None => {}
            Some(Ok(require)) => settings.require_auth = require,
            Some(Err(refused)) => fault(refused.to_string()),
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
        settings: &DatabaseSettings,
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
            Some(file) => passfile::lookup(Path::new(file), wanted).unwrap_or_else(|fault| {
                faults.push(fault.to_string());
                None
            }),
        }
    }

    /// Sets the address of the database and the encryption of the connection.
    fn places(&mut self, faults: &mut Vec<String>) -> DatabaseSettings {
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
        let system_roots = self.has_system_roots();
        let ssl_mode = self.encryption(&mut fault);
        let ssl_client_identity = self.client_identity(&mut fault);
        let connect_timeout = self.time_to_connect(&mut fault);
        let options = session_options(&self.options).unwrap_or_else(|refused| {
            fault(refused.to_string());
            Vec::new()
        });
        DatabaseSettings {
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

    /// Returns `true` if the system's authorities are trusted.
    fn has_system_roots(&self) -> bool {
        self.ssl_root_cert.as_deref() == Some("system")
    }

    /// Returns the encryption of the connection.
    fn encryption(&self, mut fault: impl FnMut(String)) -> SslMode {
        let system_roots = self.has_system_roots();
        // As in libpq: trusting every public authority is safe only if the host name is verified
        // too.
        let ssl_mode = match self.ssl_mode.as_deref() {
            None if system_roots => SslMode::VerifyFull,
            None => SslMode::Prefer,
            Some(name) => SslMode::parse(name).unwrap_or_else(|refused| {
                fault(refused.to_string());
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
        match ssl_mode {
            SslMode::Require if self.ssl_root_cert.is_some() => SslMode::VerifyCa,
            mode => mode,
        }
    }

    /// Returns the files of the client's certificate and key.
    fn client_identity(&mut self, mut fault: impl FnMut(String)) -> Option<(PathBuf, PathBuf)> {
        match (self.ssl_cert.take(), self.ssl_key.take()) {
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
        }
    }

    /// Returns the time limit of connecting.
    fn time_to_connect(&self, mut fault: impl FnMut(String)) -> Duration {
        match self.connect_timeout.as_deref().map(str::parse::<u32>) {
            None => CONNECT_TIMEOUT,
            Some(Ok(seconds @ 1..)) => Duration::from_secs(seconds.into()),
            Some(_) => {
                fault("connect_timeout is a whole number of seconds, at least 1".into());
                CONNECT_TIMEOUT
            }
        }
    }
}

/// Parses `-c name=value --name=value`, where `\` precedes a space that belongs to the value, as
/// the server does.
fn session_options(text: &str) -> Result<Vec<(String, String)>, UrlFault> {
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
            None => return Err(UrlFault::Options),
        };
        let (name, value) = assignment.split_once('=').ok_or(UrlFault::Options)?;
        options.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(options)
}
