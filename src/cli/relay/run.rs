//! `tidings relay` without a subcommand: runs the relay and its admin server until a signal.

use std::process::ExitCode;
use std::time::Duration;

use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use super::reload::reload;
use super::signals::{Asked, Signals};
use super::traces::Traces;
use crate::admin::Server;
use crate::cli::args::Settings;
use crate::cli::config::Config;
use crate::cli::console::{self, RelayConsoleArgs};
use crate::cli::escape::escaped;
use crate::cli::exit::{DONE, Failure, INTERRUPTED, with_causes};
use crate::cli::stderr;
use crate::console::Console;
use crate::relay::{Relay, RelayError};
use crate::task::OwnedTask;

/// Time beyond the grace after which a relay is abandoned. The relay itself ends at the grace.
const BEYOND_GRACE: Duration = Duration::from_secs(2);

/// Task of the relay.
type Running = OwnedTask<Result<(), RelayError>>;

/// Outcome of a run.
enum Ended {
    ByItself(Result<Result<(), RelayError>, JoinError>),
    /// A second signal arrived while the relay drained.
    LeftAtOnce,
    /// The relay did not drain in time.
    TooLate,
}

/// Runs until a signal, then drains.
pub(in crate::cli) async fn run(
    config: &Config,
    settings: &Settings,
    console: &RelayConsoleArgs,
) -> Result<ExitCode, Failure> {
    let mut options = config
        .relay_options()
        .ok_or_else(|| Failure::Failed("a relay requires a database and brokers".into()))?;
    let traces = Traces::start()?;
    options.trace = traces.is_on();
    let relay = Relay::new(options).map_err(ended_by)?;
    let mut signals =
        Signals::new().map_err(|error| Failure::failed("cannot listen for signals", &error))?;
    let admin_shutdown = CancellationToken::new();
    let console = console::of_relay(config, console, &admin_shutdown)?;
    let pages = console.as_ref().map(Console::router);
    let admin = match &config.listen {
        Some(address) => {
            let server = Server::bind(address)
                .await
                .map_err(|error| Failure::Failed(with_causes(&error)))?;
            let address = server.address();
            let serving = server.serve_with(
                relay.observer(),
                stderr::metrics,
                pages,
                admin_shutdown.clone(),
            );
            Some((address, OwnedTask::spawn(serving)))
        }
        None => None,
    };
    announce(config, admin.as_ref().map(|(address, _)| *address));

    let shutdown = CancellationToken::new();
    let mut running = OwnedTask::spawn(relay.run(shutdown.clone()));
    let ended = loop {
        tokio::select! {
            ended = &mut running => break Ended::ByItself(ended),
            asked = signals.next() => match asked {
                Asked::Reload => reload(settings, config),
                Asked::End(name) => {
                    tracing::info!(
                        signal = name,
                        grace = ?config.shutdown_grace,
                        "draining; a second signal exits immediately"
                    );
                    shutdown.cancel();
                    let within = config.shutdown_grace + BEYOND_GRACE;
                    break drained(&mut running, &mut signals, within).await;
                }
            }
        }
    };
    admin_shutdown.cancel();
    if let Some(console) = console {
        console.end().await;
    }
    if let Some((_, serving)) = admin
        && let Err(error) = serving.await
    {
        tracing::warn!(%error, "the admin server failed");
    }
    traces.end().await;
    result(ended, config)
}

/// Waits for the relay to drain.
async fn drained(running: &mut Running, signals: &mut Signals, within: Duration) -> Ended {
    let too_late = tokio::time::sleep(within);
    tokio::pin!(too_late);
    loop {
        tokio::select! {
            ended = &mut *running => return Ended::ByItself(ended),
            () = &mut too_late => return Ended::TooLate,
            asked = signals.next() => match asked {
                Asked::Reload => tracing::info!("SIGHUP is ignored while the relay drains"),
                Asked::End(name) => {
                    tracing::warn!(
                        signal = name,
                        "exiting immediately; events in flight will be sent again"
                    );
                    return Ended::LeftAtOnce;
                }
            }
        }
    }
}

fn result(ended: Ended, config: &Config) -> Result<ExitCode, Failure> {
    match ended {
        Ended::ByItself(Ok(Ok(()))) => {
            tracing::info!("stopped");
            Ok(ExitCode::from(DONE))
        }
        Ended::ByItself(Ok(Err(error))) => Err(ended_by(error)),
        Ended::ByItself(Err(error)) => Err(Failure::failed("the relay task failed", &error)),
        Ended::LeftAtOnce => Ok(ExitCode::from(INTERRUPTED)),
        Ended::TooLate => Err(Failure::NotDrained(format!(
            "the relay did not drain within {:?}; the next relay sends the events in flight \
             again\n  -> raise --shutdown-grace",
            config.shutdown_grace
        ))),
    }
}

pub(in crate::cli) fn ended_by(error: RelayError) -> Failure {
    match error {
        RelayError::Refused(text) => Failure::Refused(escaped(&text).into_owned()),
        RelayError::Options(text) => Failure::Options(escaped(&text).into_owned()),
        RelayError::GraceExceeded { .. } => {
            Failure::NotDrained(format!("{error}\n  -> raise --shutdown-grace"))
        }
        RelayError::NotDrained { .. } => {
            Failure::NotDrained(escaped(&error.to_string()).into_owned())
        }
    }
}

fn announce(config: &Config, admin: Option<std::net::SocketAddr>) {
    let admin = admin.map_or("off".to_owned(), |address| format!("http://{address}"));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name = config.name,
        database = config
            .database
            .as_ref()
            .map(crate::postgres::DatabaseSettings::redacted),
        brokers = config.kafka.as_ref().map(|kafka| kafka.brokers.clone()),
        admin,
        "relay starts"
    );
}
