//! `tidings try`: publishes example events on a real Postgres and a real Kafka, prints each one
//! that arrives, and proves at the end that the topic contains exactly the committed events.
//!
//! | file | content |
//! |---|---|
//! | `servers` | the servers: those of the configuration, or ones that end with the command |
//! | `orders` | the example events, and the transactions that publish them |
//! | `session` | the schema, the topic and the relay of one run, and their removal |
//! | `text` | the texts around the events |

mod orders;
mod servers;
mod session;
mod text;

use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;

use self::servers::Servers;
use self::session::Session;
use super::config::{Config, Need, Needs};
use super::exit::{DIFFERENT, DONE, Failure, INTERRUPTED};
use super::relay::signals::{Asked, Signals};
use super::time_limit::within;
use super::verify;
use super::{output, stderr};

#[derive(Debug, Args)]
pub(super) struct TryArgs {
    /// End after this number of events. Defaults to Ctrl-C
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
    /// Events per second
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=1_000)
    )]
    rate: u32,
}

impl TryArgs {
    /// Settings that the command requires. It starts the servers that are not configured.
    pub(super) const NEEDS: Needs = Needs {
        database: Need::Optional,
        brokers: Need::Optional,
    };
}

/// Runs the command until `--events` events have arrived, or a signal.
pub(super) async fn run(config: &Config, args: &TryArgs) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::new().map_err(|error| Failure::failed("cannot listen for signals", &error))?;
    let servers = tokio::select! {
        servers = Servers::start(config) => servers?,
        () = ended_by_signal(&mut signals) => {
            return Err(Failure::Failed("ended by a signal before an event was published".into()));
        }
    };
    let session = Session::new(config, &servers);
    output::lines(&servers.describe());
    output::line(format_args!(
        "schema, relay and topic {}",
        session.config.name
    ));
    let stop = CancellationToken::new();
    tokio::select! {
        ended = attempt(&session, args, &stop) => ended,
        () = second_signal(&mut signals, &stop) => {
            stderr::lines(&session.left_behind());
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

/// Publishes, verifies and removes everything that the session has created, also after a failure.
async fn attempt(
    session: &Session,
    args: &TryArgs,
    stop: &CancellationToken,
) -> Result<ExitCode, Failure> {
    let verified = verified(session, args, stop).await;
    let removed = within(session.database()?, session.remove()).await;
    let code = verified?;
    removed?;
    output::line("the schema, the relay and its topics are removed");
    Ok(code)
}

async fn verified(
    session: &Session,
    args: &TryArgs,
    stop: &CancellationToken,
) -> Result<ExitCode, Failure> {
    let database = session.database()?;
    within(database, session.create()).await?;
    let counts = session.publish(args.events, args.rate, stop).await?;
    output::lines(&text::counts(counts));
    let report = within(database, verify::once(&session.config)).await?;
    output::lines(&verify::text(&report));
    if !report.matches {
        return Ok(ExitCode::from(DIFFERENT));
    }
    match report.tally.delivered == counts.committed {
        true => Ok(ExitCode::from(DONE)),
        false => Err(Failure::Failed(format!(
            "{} of {} committed events have not arrived",
            counts.committed.saturating_sub(report.tally.delivered),
            counts.committed
        ))),
    }
}

/// Waits for a signal that ends a command.
async fn ended_by_signal(signals: &mut Signals) {
    while signals.next().await == Asked::Reload {}
}

/// Requests the end at the first signal. Returns at the second one.
async fn second_signal(signals: &mut Signals, stop: &CancellationToken) {
    ended_by_signal(signals).await;
    stop.cancel();
    stderr::lines("waiting for the committed events, then for the verdict; Ctrl-C exits at once");
    ended_by_signal(signals).await;
}
