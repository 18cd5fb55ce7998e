//! `tidings verify`: compares the topics of a relay with the committed outbox.

mod metrics;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::metrics::VerifyMetrics;
#[cfg(feature = "try")]
pub(super) use self::text::report as text;
use super::config::{Config, parse_duration};
use super::exit::{DIFFERENT, DONE, Failure};
use super::progress::{self, Progress};
use super::{brokers, database, output, stderr};
use crate::admin::Server;
use crate::inspect::proof::{Report, Rounds, Verifier, VerifyError, Writers};
use crate::relay::{TopicRule, TopicTemplate};
use crate::task::OwnedTask;

/// Longest delay after a failed round.
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Only events that occurred within this time, e.g. 1h, or since a time
    #[arg(long, value_name = "TIME", value_parser = super::relay::parse_time)]
    since: Option<DateTime<Utc>>,
    /// Continue from the verified point until SIGTERM or SIGINT, and export metrics on --listen
    #[arg(long)]
    pub(super) follow: bool,
    /// Pause between the rounds of --follow
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    every: Duration,
    /// Every writer locks the aggregate before it publishes: an order that only other writers may
    /// cause is then wrong
    #[arg(long)]
    writers_lock: bool,
    /// Folder of temporary files, about 200 bytes per event. Defaults to the system's
    #[arg(long, value_name = "FOLDER")]
    temp_dir: Option<PathBuf>,
    /// Print JSON instead of text; with --follow one line per round
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) async fn run(config: &Config, args: &VerifyArgs) -> Result<ExitCode, Failure> {
    let folder = args.temp_dir.clone();
    let mut verifier = verifier(config, folder).await?;
    if args.writers_lock {
        verifier.writers = Writers::Lock;
    }
    if args.follow {
        return follow(config, args, &verifier).await;
    }
    let report = with_progress(&verifier, Rounds::since(args.since))
        .await
        .map_err(|error| failure(config, error))?;
    match args.json {
        true => output::json(&report)?,
        false => output::lines(&text::report(&report)),
    }
    Ok(ExitCode::from(if report.matches {
        DONE
    } else {
        DIFFERENT
    }))
}

/// Verifies once, and shows on a terminal how much of the topics is read.
async fn with_progress(verifier: &Verifier, mut rounds: Rounds) -> Result<Report, VerifyError> {
    let mut report = std::pin::pin!(verifier.next(&mut rounds));
    let mut ticks = tokio::time::interval(progress::TICK);
    let mut bar: Option<Progress> = None;
    loop {
        tokio::select! {
            report = &mut report => return report,
            _ = ticks.tick() => {
                let (records, offsets) = verifier.progress.now();
                if offsets > 0 {
                    let bar = bar.get_or_insert_with(|| Progress::counted(offsets, "reading"));
                    bar.set(records);
                }
            }
        }
    }
}

/// Verifies the topics of the configured relay once.
#[cfg(feature = "try")]
pub(super) async fn once(config: &Config) -> Result<Report, Failure> {
    let verifier = verifier(config, None).await?;
    with_progress(&verifier, Rounds::since(None))
        .await
        .map_err(|error| failure(config, error))
}

/// Creates a verifier of the configured relay. `folder` is that of temporary files.
async fn verifier(config: &Config, folder: Option<PathBuf>) -> Result<Verifier, Failure> {
    let kafka = brokers::settings(config)?.clone();
    let template = TopicTemplate::parse(&config.topic)
        .map_err(|error| Failure::Options(format!("topic template {:?}: {error}", config.topic)))?;
    Ok(Verifier {
        database: database::open(config, "verify").await?,
        kafka,
        relay: config.name.clone(),
        rule: TopicRule {
            template,
            rewrite: config.topic_rewrite.clone(),
        },
        event_source: config.event_source.clone(),
        writers: Writers::Any,
        folder: folder.unwrap_or_else(std::env::temp_dir),
        progress: Arc::default(),
    })
}

/// Verifies in rounds until a signal. A failed round is reported and repeated.
async fn follow(
    config: &Config,
    args: &VerifyArgs,
    verifier: &Verifier,
) -> Result<ExitCode, Failure> {
    let shutdown = CancellationToken::new();
    let metrics = VerifyMetrics::new();
    let serving = match &config.listen {
        Some(address) => Some(serve(address, &metrics, shutdown.clone()).await?),
        None => None,
    };
    let listening = |kind| signal(kind);
    let signals = listening(SignalKind::terminate()).and_then(|terminate| {
        let interrupt = listening(SignalKind::interrupt())?;
        Ok((terminate, interrupt))
    });
    let (mut terminate, mut interrupt) =
        signals.map_err(|error| Failure::failed("cannot listen for signals", &error))?;
    let mut rounds = Rounds::since(args.since);
    let (mut matches, mut failures) = (true, 0u32);
    let ended = loop {
        let pause = tokio::select! {
            round = verifier.next(&mut rounds) => match round {
                Ok(report) => {
                    failures = 0;
                    matches &= report.matches;
                    metrics.round(&report);
                    print(&report, args.json)?;
                    args.every
                }
                Err(error @ VerifyError::Refused(_)) => break Err(failure(config, error)),
                Err(error) => {
                    failures += 1;
                    metrics.failed();
                    let failure = failure(config, error);
                    stderr::lines(&format!("this round failed and is repeated: {failure}"));
                    PAUSE_MAX.min(Duration::from_secs(1 << failures.min(6)))
                }
            },
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
        }
    };
    shutdown.cancel();
    if let Some(serving) = serving
        && let Err(error) = serving.await
    {
        tracing::warn!(%error, "the admin server failed");
    }
    ended?;
    Ok(ExitCode::from(if matches { DONE } else { DIFFERENT }))
}

/// Starts the server of health and metrics.
async fn serve(
    address: &str,
    metrics: &VerifyMetrics,
    shutdown: CancellationToken,
) -> Result<OwnedTask<()>, Failure> {
    let server = Server::bind(address)
        .await
        .map_err(|error| Failure::Failed(super::exit::with_causes(&error)))?;
    stderr::lines(&format!("metrics on http://{}/metrics", server.address()));
    let (health, shown) = (metrics.health(), metrics.clone());
    Ok(OwnedTask::spawn(server.serve_metrics(
        health,
        move || shown.text(),
        shutdown,
    )))
}

fn print(report: &Report, json: bool) -> Result<(), Failure> {
    if json {
        return output::json_line(report);
    }
    output::lines(&text::round(report));
    Ok(())
}

/// Maps an error to a failure with its remedy.
fn failure(config: &Config, error: VerifyError) -> Failure {
    match error {
        VerifyError::Database(error) => database::unreadable(config, error, "the outbox"),
        VerifyError::Refused(text) => Failure::Refused(text),
        VerifyError::File(error) => Failure::Failed(format!(
            "cannot write temporary files: {error}\n  -> name another folder with --temp-dir"
        )),
        VerifyError::Kafka(error) => Failure::failed("cannot read the topics", &error),
    }
}
