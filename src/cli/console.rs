//! `tidings console`: the web console on its own port. `tidings relay --console` serves it on the
//! admin port of a relay.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, Args};
use tokio_util::sync::CancellationToken;

use super::args::Settings as Flags;
use super::config::{Config, Need, Needs};
use super::exit::{DONE, Failure, with_causes};
use super::relay::signals::{Asked, Signals};
use crate::admin::Server;
use crate::console::{Access, Console, ConsoleOptions, Credential, Exposure};
use crate::postgres;
use crate::task::OwnedTask;

/// Address of the console.
const LISTEN: &str = "127.0.0.1:9465";

/// Databases of one console. Each has up to four sessions.
const DATABASES_MAX: usize = 64;

#[derive(Debug, Args)]
pub(super) struct ConsoleArgs {
    /// File with one database URL per line, instead of --database-url
    #[arg(long, value_name = "FILE")]
    databases_file: Option<PathBuf>,
    #[command(flatten)]
    options: AccessArgs,
}

/// Options of a console on the admin port of a relay.
#[derive(Debug, Args)]
pub(super) struct RelayConsoleArgs {
    /// Serve the web console on the address of --listen, below /console
    #[arg(long)]
    pub(super) console: bool,
    #[command(flatten)]
    options: AccessArgs,
}

#[derive(Debug, Args)]
struct AccessArgs {
    /// Allow actions: retry, discard, replay, abort, cancel. Requires a secret file
    #[arg(long)]
    allow_actions: bool,
    /// Show no payloads and no headers of events
    #[arg(long)]
    hide_payloads: bool,
    /// File with a token of at least 12 characters, which every request must present
    #[arg(
        long,
        value_name = "FILE",
        env = "TIDINGS_CONSOLE_TOKEN_FILE",
        hide_short_help = true
    )]
    console_token_file: Option<PathBuf>,
    /// File with NAME:PASSWORD lines, one per user
    #[arg(
        long,
        value_name = "FILE",
        env = "TIDINGS_CONSOLE_USERS_FILE",
        hide_short_help = true
    )]
    console_users_file: Option<PathBuf>,
    /// Host name under which browsers reach the console; may be repeated
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    allow_host: Vec<String>,
    /// Listen beyond this machine without authentication
    #[arg(long, hide_short_help = true)]
    insecure_listen: bool,
}

impl AccessArgs {
    /// Returns `true` if a flag is given. The files may come from the environment of all commands.
    fn is_set(&self) -> bool {
        let is_any = self.allow_actions || self.hide_payloads || self.insecure_listen;
        is_any || !self.allow_host.is_empty()
    }
}

impl ConsoleArgs {
    /// Returns the settings that the command requires.
    pub(super) fn needs(&self) -> Needs {
        Needs {
            database: match self.databases_file {
                None => Need::Required,
                Some(_) => Need::Unused,
            },
            brokers: Need::Optional,
        }
    }
}

/// Describes --listen for this command. The setting of relays, whose default is another port, does
/// not apply to it.
pub(super) fn listen_flag(flag: Arg) -> Arg {
    let help = format!("Address of the console [default: {LISTEN}]");
    flag.help(help.clone())
        .long_help(help)
        .hide_short_help(false)
}

/// Runs until a signal.
pub(super) async fn run(
    config: &Config,
    flags: &Flags,
    args: &ConsoleArgs,
) -> Result<ExitCode, Failure> {
    let address = flags.listen().unwrap_or(LISTEN);
    let access = access(&args.options, address)?;
    let options = ConsoleOptions {
        databases: databases(config, flags, args)?,
        schema: config.schema.clone(),
        kafka: config.kafka.clone(),
        access,
        hide_payloads: args.options.hide_payloads,
    };
    let mut signals =
        Signals::new().map_err(|error| Failure::failed("cannot listen for signals", &error))?;
    let server = Server::bind(address)
        .await
        .map_err(|error| Failure::Failed(with_causes(&error)))?;
    let shutdown = CancellationToken::new();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        databases = options.databases.len(),
        brokers = options.kafka.as_ref().map(|kafka| kafka.brokers.clone()),
        actions = args.options.allow_actions,
        console = format!("http://{}/console", server.address()),
        "console starts"
    );
    let console = Console::start(options, shutdown.clone());
    let serving = OwnedTask::spawn(server.serve_console(console.router(), shutdown.clone()));
    while signals.next().await == Asked::Reload {
        tracing::info!("SIGHUP is ignored by the console");
    }
    shutdown.cancel();
    console.end().await;
    if let Err(error) = serving.await {
        tracing::warn!(%error, "the server of the console failed");
    }
    Ok(ExitCode::from(DONE))
}

/// Starts the console of a relay, or returns `None` if it is not wanted.
pub(super) fn of_relay(
    config: &Config,
    args: &RelayConsoleArgs,
    shutdown: &CancellationToken,
) -> Result<Option<Console>, Failure> {
    if !args.console {
        return match args.options.is_set() {
            true => Err(Failure::Options(
                "an option of the console is given, but the console is off\n  -> add --console"
                    .into(),
            )),
            false => Ok(None),
        };
    }
    let (Some(database), Some(address)) = (&config.database, &config.listen) else {
        return Err(Failure::Options(
            "--console requires the admin port\n  -> remove --listen off".into(),
        ));
    };
    let options = ConsoleOptions {
        databases: vec![database.clone()],
        schema: config.schema.clone(),
        kafka: config.kafka.clone(),
        access: access(&args.options, address)?,
        hide_payloads: args.options.hide_payloads,
    };
    Ok(Some(Console::start(options, shutdown.clone())))
}

/// Reads the secrets and checks the combination of options.
fn access(args: &AccessArgs, address: &str) -> Result<Access, Failure> {
    let mut credentials = Vec::new();
    if let Some(path) = &args.console_token_file {
        credentials.push(Credential {
            user: None,
            secret: file(path, "--console-token-file")?.trim().to_owned(),
        });
    }
    if let Some(path) = &args.console_users_file {
        credentials.extend(users(&file(path, "--console-users-file")?).ok_or_else(|| {
            Failure::Options(format!(
                "{} has a line without a user and a password\n  -> write NAME:PASSWORD",
                path.display()
            ))
        })?);
    }
    let exposure = Exposure {
        address: address.to_owned(),
        allow_actions: args.allow_actions,
        is_insecure: args.insecure_listen,
        hosts: args.allow_host.clone(),
    };
    Access::new(exposure, credentials).map_err(|error| Failure::Options(error.to_string()))
}

/// Parses `NAME:PASSWORD` lines. Empty lines and lines that start with `#` are ignored.
fn users(text: &str) -> Option<Vec<Credential>> {
    lines(text)
        .map(|line| {
            let (user, secret) = line.split_once(':')?;
            (!user.is_empty()).then(|| Credential {
                user: Some(user.to_owned()),
                secret: secret.to_owned(),
            })
        })
        .collect()
}

fn databases(
    config: &Config,
    flags: &Flags,
    args: &ConsoleArgs,
) -> Result<Vec<postgres::DatabaseSettings>, Failure> {
    let urls: Vec<String> = match &args.databases_file {
        Some(path) => lines(&file(path, "--databases-file")?)
            .map(str::to_owned)
            .collect(),
        None => flags.database_urls().to_vec(),
    };
    let mut databases = Vec::new();
    for url in urls {
        let settings = postgres::DatabaseSettings::parse(&url).map_err(|error| {
            Failure::Options(format!(
                "database URL {} is invalid: {error}\n  -> the form is \
                 postgres://user:password@host:5432/database?sslmode=verify-full",
                databases.len() + 1
            ))
        })?;
        databases.push(settings);
    }
    if databases.is_empty() {
        databases.extend(config.database.clone());
    }
    if databases.is_empty() || databases.len() > DATABASES_MAX {
        return Err(Failure::Options(format!(
            "{} databases are named\n  -> name 1 to {DATABASES_MAX}",
            databases.len()
        )));
    }
    Ok(databases)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn file(path: &Path, flag: &str) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        Failure::Options(format!(
            "{flag} {} cannot be read: {error}\n  -> name a file that this user may read",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_users_has_one_user_per_line() {
        let text = "# team\nada:a:b\n\n bob:secret \n";
        let users = users(text).expect("valid lines");
        let pairs: Vec<_> = users
            .iter()
            .map(|one| (one.user.as_deref(), one.secret.as_str()))
            .collect();
        assert_eq!(pairs, [(Some("ada"), "a:b"), (Some("bob"), "secret")]);
        assert!(super::users("no password").is_none() && super::users(":x").is_none());
    }
}
