//! `tidings relay` without more: the relay, its admin server and the signals that end both.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin::Server;
use crate::cli::config::Config;
use crate::cli::exit::{DONE, Failure, INTERRUPTED};
use crate::relay::{Relay, RelayError};

/// How much longer than its grace a relay may take before it is left behind: the relay itself ends at the grace.
const BEYOND_GRACE: Duration = Duration::from_secs(2);

/// Runs until a signal, then drains.
pub(in crate::cli) async fn run(config: &Config) -> Result<ExitCode, Failure> {
    let options = config.relay_options().ok_or_else(|| Failure::Failed("a relay needs a database and brokers".into()))?;
    let relay = Relay::new(options).map_err(ended_by)?;
    let mut signals = Signals::new().map_err(|error| Failure::failed("cannot listen for signals", &error))?;
    let admin_shutdown = CancellationToken::new();
    let admin = match &config.listen {
        Some(address) => {
            let server = Server::bind(address).await.map_err(|error| Failure::Failed(error.to_string()))?;
            let address = server.address();
            Some((address, tokio::spawn(server.serve(relay.observer(), admin_shutdown.clone()))))
        }
        None => None,
    };
    announce(config, admin.as_ref().map(|(address, _)| *address));

    let shutdown = CancellationToken::new();
    let mut running = tokio::spawn(relay.run(shutdown.clone()));
    let ended = tokio::select! {
        ended = &mut running => Some(ended),
        name = signals.next() => {
            tracing::info!(signal = name, grace = ?config.shutdown_grace, "draining; a second signal leaves at once");
            shutdown.cancel();
            tokio::select! {
                ended = &mut running => Some(ended),
                name = signals.next() => {
                    tracing::warn!(signal = name, "left at once; what was in flight is sent again");
                    return Ok(ExitCode::from(INTERRUPTED));
                }
                () = tokio::time::sleep(config.shutdown_grace + BEYOND_GRACE) => None,
            }
        }
    };
    admin_shutdown.cancel();
    if let Some((_, serving)) = admin
        && let Ok(Err(error)) = serving.await
    {
        tracing::warn!("{error}");
    }
    match ended {
        Some(Ok(Ok(()))) => {
            tracing::info!("stopped");
            Ok(ExitCode::from(DONE))
        }
        Some(Ok(Err(error))) => Err(ended_by(error)),
        Some(Err(error)) => Err(Failure::failed("the relay broke off", &error)),
        None => Err(Failure::GraceExceeded(format!(
            "the relay did not drain within {:?}; what was in flight is sent again by the next relay\n  -> give it longer with --shutdown-grace",
            config.shutdown_grace
        ))),
    }
}

fn ended_by(error: RelayError) -> Failure {
    match error {
        RelayError::Refused(text) => Failure::Refused(text),
        RelayError::Options(text) => Failure::Options(text),
        RelayError::GraceExceeded { .. } => Failure::GraceExceeded(format!("{error}\n  -> give it longer with --shutdown-grace")),
    }
}

fn announce(config: &Config, admin: Option<std::net::SocketAddr>) {
    let admin = admin.map_or("off".to_owned(), |address| format!("http://{address}"));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name = config.name,
        database = config.database.as_ref().map(crate::postgres::Settings::redacted),
        brokers = config.kafka.as_ref().map(|kafka| kafka.brokers.clone()),
        admin,
        "relay starts"
    );
}

/// The signals that end a relay.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
