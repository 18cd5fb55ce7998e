//! `tidings subscribers parked`: shows, retries and discards events that subscribers have parked.
//!
//! The commands only read and mark. The members of the subscriber act within seconds, which keeps
//! the order of each key.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{operator_name, text, undecided};
use crate::cli::{
    args::ListingArgs, config::Config, confirm::Confirm, database, escape::escaped, exit::Failure,
    output, watch::Rounds,
};
use crate::inspect::Database;
use crate::inspect::parked_by_subscribers::{
    ParkedFilter, ParkedHead, Selected, SubscriberParkedContent, SubscriberParkedEvent,
    parked_contents, parked_heads,
};
use crate::inspect::subscribers::{InstanceState, SubscriberStatus, subscribers};
use crate::operator::parked::Decision;
use crate::operator::{Marked, decide_parked, undone_parked};

/// Interval between two queries of the progress.
const EVERY: Duration = Duration::from_millis(250);

/// Time without progress after which the command ends. Members read decisions every second.
const SILENCE: Duration = Duration::from_secs(5);

/// Lists, shows, retries and discards parked events.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SubscribersParkedCommand {
    /// Show every key that waits, with its blocking event and the error
    List(ListArgs),
    /// Show parked events with their headers and payloads
    Show(ShowArgs),
    /// Make the subscriber try events now, in the order of each key
    Retry(DecideArgs),
    /// Discard events: they are never handled, and the subscriber logs each
    Discard(DiscardArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
    /// Only parked events of this subscriber (its consumer group)
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Maximum number of keys to show
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    limit: u32,
}

impl ListArgs {
    /// Returns the rounds of `--watch`.
    pub(in crate::cli) fn rounds(&self) -> Option<Rounds> {
        self.listing.rounds()
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// Id of an event, its number in `list`, or a key as TOPIC/KEY. Defaults to all
    what: Option<String>,
    /// Only parked events of this subscriber (its consumer group)
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only events whose error contains this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Maximum number of events to show
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: u32,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DiscardArgs {
    #[command(flatten)]
    decide: DecideArgs,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DecideArgs {
    /// Id of an event, its number in `list`, or a key as TOPIC/KEY
    #[arg(required_unless_present_any = ["all", "reason"])]
    what: Option<String>,
    /// Only parked events of this subscriber (its consumer group)
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only events whose error contains this text
    #[arg(long, value_name = "TEXT", requires = "group")]
    reason: Option<String>,
    /// Every parked event of the subscriber
    #[arg(long, conflicts_with_all = ["what", "reason"], requires = "group")]
    all: bool,
    /// Print the events without marking them
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// JSON output of `list`.
#[derive(Serialize)]
struct Listed<'a> {
    parked: &'a [ParkedHead],
}

/// JSON output of `show`.
#[derive(Serialize)]
struct Shown<'a> {
    events: &'a [SubscriberParkedContent],
}

/// JSON output of `retry` and `discard`.
#[derive(Serialize)]
struct Decided<'a> {
    decision: &'a str,
    dry_run: bool,
    count: i64,
    /// The oldest of these events.
    events: &'a [SubscriberParkedEvent],
    /// Events whose decision the subscriber has not executed yet.
    pending: i64,
}

/// Runs a subcommand.
pub(super) async fn run(
    config: &Config,
    database: &Database,
    command: &SubscribersParkedCommand,
) -> Result<(), Failure> {
    match command {
        SubscribersParkedCommand::List(args) => list(config, database, args).await,
        SubscribersParkedCommand::Show(args) => show(config, database, args).await,
        SubscribersParkedCommand::Retry(args) => {
            decide(config, database, args, Decision::Retry).await
        }
        SubscribersParkedCommand::Discard(args) => {
            confirm(config, database, args).await?;
            decide(config, database, &args.decide, Decision::Discard).await
        }
    }
}

async fn list(config: &Config, database: &Database, args: &ListArgs) -> Result<(), Failure> {
    let heads = parked_heads(
        database,
        &filter(None, args.group.as_deref(), None),
        args.limit,
    )
    .await
    .map_err(|error| database::unreadable(config, error, "the parked events"))?;
    if args.listing.output.json {
        return output::json(&Listed { parked: &heads });
    }
    output::lines(&text::heads(&heads));
    Ok(())
}

async fn show(config: &Config, database: &Database, args: &ShowArgs) -> Result<(), Failure> {
    let filter = filter(
        args.what.as_deref(),
        args.group.as_deref(),
        args.reason.as_deref(),
    );
    let events = parked_contents(database, &filter, args.limit)
        .await
        .map_err(|error| database::unreadable(config, error, "the parked events"))?;
    if events.is_empty() && filter != ParkedFilter::default() {
        return Err(nothing(args.what.as_deref()));
    }
    if args.json {
        return output::json(&Shown { events: &events });
    }
    output::lines(&text::contents(&events));
    Ok(())
}

/// Asks for confirmation with the number of events.
async fn confirm(config: &Config, database: &Database, args: &DiscardArgs) -> Result<(), Failure> {
    let DiscardArgs { decide, confirm } = args;
    if decide.dry_run || !confirm.must_ask() {
        return Ok(());
    }
    let marked = decide_parked(
        database,
        &decide.filter(),
        Decision::Discard,
        &operator_name(),
        true,
    )
    .await
    .map_err(|error| undecided(config, error))?;
    match marked.events.first() {
        Some(event) => {
            confirm
                .ask(&text::discards(&event.consumer, marked.count))
                .await
        }
        // The command reports that there is no such event.
        None => Ok(()),
    }
}

impl DecideArgs {
    fn filter(&self) -> ParkedFilter {
        filter(
            self.what.as_deref(),
            self.group.as_deref(),
            self.reason.as_deref(),
        )
    }
}

async fn decide(
    config: &Config,
    database: &Database,
    args: &DecideArgs,
    decision: Decision,
) -> Result<(), Failure> {
    let by = operator_name();
    let marked = decide_parked(database, &args.filter(), decision, &by, args.dry_run)
        .await
        .map_err(|error| undecided(config, error))?;
    if marked.count == 0 && !args.all {
        return Err(nothing(args.what.as_deref()));
    }
    if !args.json {
        output::lines(&text::marked(&marked, decision, args.dry_run));
    }
    let consumer = marked.events.first().map(|event| event.consumer.clone());
    let pending = match consumer.filter(|_| !args.dry_run) {
        Some(consumer) => watch(config, database, &consumer, decision, &marked, args.json).await?,
        None => 0,
    };
    if args.json {
        output::json(&Decided {
            decision: decision.word(),
            dry_run: args.dry_run,
            count: marked.count,
            events: &marked.events,
            pending,
        })?;
    }
    Ok(())
}

/// Waits until the members have executed the decisions, or make no progress. Returns the number of
/// events whose decision is not executed.
async fn watch(
    config: &Config,
    database: &Database,
    consumer: &str,
    decision: Decision,
    marked: &Marked,
    is_quiet: bool,
) -> Result<i64, Failure> {
    let all = subscribers(database)
        .await
        .map_err(|error| database::unreadable(config, error, "the subscribers"))?;
    let status = all.into_iter().find(|one| one.name == consumer);
    let (mut left, mut since) = (marked.count, Instant::now());
    while left > 0 && is_able(status.as_ref()) && since.elapsed() < SILENCE {
        tokio::time::sleep(EVERY).await;
        let now = undone_parked(database, consumer, decision)
            .await
            .map_err(|error| undecided(config, error))?;
        if now != left {
            (left, since) = (now, Instant::now());
        }
    }
    if is_quiet {
        return Ok(left);
    }
    match left {
        0 => {
            let word = match decision {
                Decision::Retry => "tried again",
                Decision::Discard => "discarded",
            };
            let s = if marked.count == 1 { "" } else { "s" };
            output::line(format_args!("{} event{s} {word}", marked.count));
        }
        _ => output::line(format_args!(
            "{left} events of {} are still marked: {}",
            escaped(consumer),
            why_pending(status.as_ref())
        )),
    }
    Ok(left)
}

fn runs(status: Option<&SubscriberStatus>) -> bool {
    status.is_some_and(|status| {
        let mut instances = status.instances.iter();
        instances.any(|instance| instance.state == InstanceState::Running)
    })
}

/// Returns `true` if a member can execute a decision now.
fn is_able(status: Option<&SubscriberStatus>) -> bool {
    runs(status) && status.is_some_and(|status| status.pause.is_none())
}

/// Returns the reason why no member executes a decision.
fn why_pending(status: Option<&SubscriberStatus>) -> &'static str {
    match status {
        Some(status) if status.pause.is_some() => {
            "the subscriber is paused and executes the decisions when it is resumed"
        }
        _ if !runs(status) => {
            "no instance of the subscriber is running; the next one executes the decisions"
        }
        _ => {
            "the instances are busy, do not read the topic, or run an earlier version of Tidings; \
             `tidings subscribers list` shows them"
        }
    }
}

fn filter(what: Option<&str>, group: Option<&str>, reason: Option<&str>) -> ParkedFilter {
    ParkedFilter {
        consumer: group.map(str::to_owned),
        what: what.map_or(Selected::All, Selected::parse),
        error: reason.map(str::to_owned),
    }
}

fn nothing(what: Option<&str>) -> Failure {
    let what = what.map_or_else(String::new, |what| format!(" {}", escaped(what)));
    Failure::Refused(format!(
        "no subscriber has parked such an event{what}\n  \
         -> `tidings subscribers parked list` shows the parked events"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::subscribers::SubscriberPause;

    #[test]
    fn a_decision_that_is_not_executed_has_a_reason() {
        assert!(why_pending(None).contains("no instance"));
        let status = SubscriberStatus {
            pause: Some(SubscriberPause {
                since: chrono::DateTime::UNIX_EPOCH,
                reason: None,
                by: "ada".into(),
            }),
            ..SubscriberStatus::default()
        };
        assert!(why_pending(Some(&status)).contains("resumed"));
    }
}
