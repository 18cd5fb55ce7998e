//! `tidings subscribers pause` and `resume`. Both wait until every running instance has confirmed.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::{operator_name, text, undecided};
use crate::cli::{config::Config, database, escape::escaped, exit::Failure, output};
use crate::inspect::Database;
use crate::inspect::subscribers::{
    Instance, InstanceState, SubscriberPause, SubscriberStatus, subscribers,
};
use crate::operator::{PauseChange, pause_subscriber, resume_subscriber};

/// Time within which the instances confirm. They read decisions every second.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);

/// Pause between two reads of the instances.
const EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(in crate::cli) struct PauseArgs {
    /// The subscriber's name, its consumer group
    #[arg(value_name = "GROUP")]
    group: String,
    /// Reason that state, health and log of the subscriber show
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only report whether it is possible
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ResumeArgs {
    /// The subscriber's name, its consumer group
    #[arg(value_name = "GROUP")]
    group: String,
    /// Only report whether it is paused
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// JSON output of both commands.
#[derive(Serialize)]
struct Outcome<'a> {
    subscriber: &'a str,
    dry_run: bool,
    /// `false` if the subscriber was in this state already.
    changed: bool,
    paused: bool,
    /// The pause that is in effect, or that has ended.
    pause: Option<&'a SubscriberPause>,
    instances: Vec<Confirmed<'a>>,
}

/// An instance that runs.
#[derive(Serialize)]
struct Confirmed<'a> {
    id: Uuid,
    host: &'a str,
    version: &'a str,
    confirmed: bool,
}

impl<'i> Confirmed<'i> {
    fn of(instance: &'i Instance, wanted: Option<&SubscriberPause>) -> Self {
        Self {
            id: instance.id,
            host: &instance.host,
            version: &instance.version,
            confirmed: instance.has_applied(wanted),
        }
    }
}

pub(super) async fn pause(
    config: &Config,
    database: &Database,
    args: &PauseArgs,
) -> Result<(), Failure> {
    let group = args.group.as_str();
    let reason = args.reason.as_deref().filter(|reason| !reason.is_empty());
    let change = pause_subscriber(database, group, reason, &operator_name(), args.dry_run)
        .await
        .map_err(|error| undecided(config, error))?;
    let wanted = change.pause.as_ref();
    let (running, confirmed) = confirmations(config, database, group, wanted, args.dry_run).await?;
    if args.json {
        json(group, args.dry_run, true, &change, &running, wanted)?;
    } else {
        let line = match (wanted, change.is_new) {
            (None, _) => format!("would pause {}; nothing was changed\n", escaped(group)),
            (Some(pause), true) => text::paused(group, pause) + "\n",
            (Some(pause), false) => {
                format!(
                    "{}; this pause stays in effect\n",
                    text::paused(group, pause)
                )
            }
        };
        output::lines(&line);
        if !args.dry_run {
            let what = "starts no more events";
            output::lines(&counted(&running, confirmed, what, "starts paused"));
            output::lines(&format!(
                "  -> `tidings subscribers resume {}`\n",
                escaped(group)
            ));
        }
    }
    all_confirmed(&running, wanted, args.dry_run, "paused")
}

pub(super) async fn resume(
    config: &Config,
    database: &Database,
    args: &ResumeArgs,
) -> Result<(), Failure> {
    let group = args.group.as_str();
    let change = resume_subscriber(database, group, args.dry_run)
        .await
        .map_err(|error| undecided(config, error))?;
    let (running, confirmed) = confirmations(config, database, group, None, args.dry_run).await?;
    if args.json {
        let is_paused = args.dry_run && change.is_new;
        json(group, args.dry_run, is_paused, &change, &running, None)?;
    } else {
        let name = escaped(group);
        let line = match (&change.pause, args.dry_run) {
            (None, _) => format!("{name} is not paused\n"),
            (Some(pause), true) => {
                format!(
                    "{}\nwould resume it; nothing was changed\n",
                    text::paused(group, pause)
                )
            }
            (Some(_), false) => format!("{name} is resumed\n"),
        };
        output::lines(&line);
        if change.pause.is_some() && !args.dry_run {
            output::lines(&counted(
                &running,
                confirmed,
                "handles events again",
                "handles events",
            ));
        }
    }
    all_confirmed(&running, None, args.dry_run, "resumed")
}

/// Waits until every running instance has applied a decision, or the time is over. Returns the
/// running instances, and the number of those that have.
async fn confirmations(
    config: &Config,
    database: &Database,
    group: &str,
    wanted: Option<&SubscriberPause>,
    dry_run: bool,
) -> Result<(Vec<Instance>, usize), Failure> {
    let began = Instant::now();
    loop {
        let all = subscribers(database)
            .await
            .map_err(|error| database::unreadable(config, error, "the subscribers"))?;
        let running = running(all, group);
        let confirmed = running
            .iter()
            .filter(|instance| instance.has_applied(wanted))
            .count();
        if dry_run || confirmed == running.len() || began.elapsed() >= CONFIRM_WITHIN {
            return Ok((running, confirmed));
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn running(all: Vec<SubscriberStatus>, group: &str) -> Vec<Instance> {
    let of_group = all.into_iter().filter(|one| one.name == group);
    of_group
        .flat_map(|one| one.instances)
        .filter(|instance| instance.state == InstanceState::Running)
        .collect()
}

fn json(
    group: &str,
    dry_run: bool,
    paused: bool,
    change: &PauseChange,
    running: &[Instance],
    wanted: Option<&SubscriberPause>,
) -> Result<(), Failure> {
    output::json(&Outcome {
        subscriber: group,
        dry_run,
        changed: change.is_new && !dry_run,
        paused: paused && (change.pause.is_some() || !dry_run),
        pause: change.pause.as_ref(),
        instances: running
            .iter()
            .map(|instance| Confirmed::of(instance, wanted))
            .collect(),
    })
}

fn counted(running: &[Instance], confirmed: usize, what: &str, next: &str) -> String {
    match running.len() {
        0 => format!("no instance is running; the next one {next}\n"),
        all => format!("{confirmed} of {all} running instances: each {what}\n"),
    }
}

/// Returns an error if an instance has not confirmed.
fn all_confirmed(
    running: &[Instance],
    wanted: Option<&SubscriberPause>,
    dry_run: bool,
    word: &str,
) -> Result<(), Failure> {
    let silent: Vec<String> = running
        .iter()
        .filter(|instance| !dry_run && !instance.has_applied(wanted))
        .map(|instance| escaped(&instance.host).into_owned())
        .collect();
    if silent.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "the subscriber is {word}, but {} of its instances have not confirmed within {} s: {}\n  \
         -> each was killed less than a minute ago, cannot reach the database, or runs an earlier \
         version of Tidings that does not know pauses; run the command again to wait for them",
        silent.len(),
        CONFIRM_WITHIN.as_secs(),
        silent.join(", ")
    )))
}
