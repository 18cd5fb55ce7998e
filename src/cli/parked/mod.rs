//! `tidings parked`: shows, retries and discards events that cannot be delivered, and the events
//! that wait behind them.
//!
//! The commands only read and mark. The leading relay acts within seconds, which keeps the order of
//! each aggregate. `progress` waits for the leader, `text` prints.

mod progress;
mod text;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    args::ListingArgs,
    config::Config,
    confirm::Confirm,
    database,
    escape::escaped,
    exit::{DONE, Failure},
    output,
    watch::Rounds,
};
use crate::inspect::{
    Database,
    aggregate::named,
    parked::{self, OtherRelay, ParkedAggregate, ParkedEvent, Selection},
};
use crate::operator::parked::{Decision, decide as mark};

/// Lists, shows, retries and discards parked events.
#[derive(Debug, Subcommand)]
pub(super) enum ParkedCommand {
    /// Show every aggregate that waits, with its blocking event and the reason
    List(ListArgs),
    /// Show every event that waits, of one aggregate or of all
    Show(ShowArgs),
    /// Make the relay retry events: those of an aggregate are published in order
    Retry(DecideArgs),
    /// Discard events: they are never published, and the relay logs each
    Discard(DiscardArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
    /// Maximum number of aggregates to show
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    limit: u32,
}

impl ListArgs {
    /// Returns the rounds of `--watch`.
    pub(super) fn rounds(&self) -> Option<Rounds> {
        self.listing.rounds()
    }
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Id of an event, or an aggregate as TYPE/ID. Defaults to all
    what: Option<String>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Maximum number of events to show
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    limit: u32,
}

#[derive(Debug, Args)]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    decide: DecideArgs,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Args)]
pub(super) struct DecideArgs {
    /// Id of an event, or an aggregate as TYPE/ID
    #[arg(required_unless_present = "all")]
    what: Option<String>,
    /// Every parked event
    #[arg(long, conflicts_with = "what")]
    all: bool,
    /// Print the events without marking them
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// JSON output of `list` and `show`.
#[derive(Serialize)]
struct Listed<'a, T> {
    relay: &'a str,
    parked: &'a [T],
    /// Parked events of other relays. Empty unless this relay has none.
    elsewhere: &'a [OtherRelay],
}

/// JSON output of `retry` and `discard`.
#[derive(Serialize)]
struct Decided<'a> {
    relay: &'a str,
    decision: &'a str,
    dry_run: bool,
    events: &'a [ParkedEvent],
}

/// Runs a subcommand for the relay that the configuration names.
pub(super) async fn run(config: &Config, command: &ParkedCommand) -> Result<ExitCode, Failure> {
    let database = &database::open(config, "parked").await?;
    match command {
        ParkedCommand::List(args) => list(config, database, args).await,
        ParkedCommand::Show(args) => show(config, database, args).await,
        ParkedCommand::Retry(args) => decide(config, database, args, Decision::Retry).await,
        ParkedCommand::Discard(args) => {
            if !args.decide.dry_run && args.confirm.must_ask() {
                let what = selected(args.decide.what.as_deref())?;
                let events = mark(database, &config.name, &what, Decision::Discard, true)
                    .await
                    .map_err(|error| unreadable(config, &error))?;
                // Without an event, the command reports that there is none.
                if !events.is_empty() {
                    let effect = text::discards(&config.name, &events);
                    args.confirm.ask(&effect).await?;
                }
            }
            decide(config, database, &args.decide, Decision::Discard).await
        }
    }
}

async fn list(config: &Config, database: &Database, args: &ListArgs) -> Result<ExitCode, Failure> {
    let waiting: Vec<ParkedAggregate> = parked::aggregates(database, &config.name, (0, args.limit))
        .await
        .map_err(|error| unreadable(config, &error))?;
    let elsewhere = elsewhere(config, database, waiting.is_empty()).await?;
    if args.listing.output.json {
        output::json(&Listed {
            relay: &config.name,
            parked: &waiting,
            elsewhere: &elsewhere,
        })?;
    } else {
        output::lines(&text::waiting(&config.name, &waiting, &elsewhere));
    }
    Ok(ExitCode::from(DONE))
}

async fn show(config: &Config, database: &Database, args: &ShowArgs) -> Result<ExitCode, Failure> {
    let what = selected(args.what.as_deref())?;
    let events = parked::events(database, &config.name, &what, args.limit)
        .await
        .map_err(|error| unreadable(config, &error))?;
    if events.is_empty() && what != Selection::All {
        return Err(nothing(config, args.what.as_deref()));
    }
    let elsewhere = elsewhere(config, database, events.is_empty()).await?;
    if args.json {
        output::json(&Listed {
            relay: &config.name,
            parked: &events,
            elsewhere: &elsewhere,
        })?;
    } else {
        output::lines(&text::events(&config.name, &events, &elsewhere));
    }
    Ok(ExitCode::from(DONE))
}

async fn decide(
    config: &Config,
    database: &Database,
    args: &DecideArgs,
    decision: Decision,
) -> Result<ExitCode, Failure> {
    let what = selected(args.what.as_deref())?;
    let events = mark(database, &config.name, &what, decision, args.dry_run)
        .await
        .map_err(|error| unreadable(config, &error))?;
    if events.is_empty() && decision == Decision::Discard && matches!(what, Selection::Event(_)) {
        let around = parked::events(database, &config.name, &what, 1)
            .await
            .map_err(|error| unreadable(config, &error))?;
        if let Some(range) = around.first() {
            return Err(part_of_range(config, range));
        }
    }
    if events.is_empty() && what != Selection::All {
        return Err(nothing(config, args.what.as_deref()));
    }
    if args.json {
        output::json(&Decided {
            relay: &config.name,
            decision: decision.word(),
            dry_run: args.dry_run,
            events: &events,
        })?;
    } else {
        let elsewhere = elsewhere(config, database, events.is_empty()).await?;
        output::lines(&text::decided(
            &config.name,
            &events,
            &elsewhere,
            decision,
            args.dry_run,
        ));
        let marked: i64 = events.iter().map(|event| event.events).sum();
        if decision == Decision::Discard && !args.dry_run {
            progress::watch(config, database, decision, marked)
                .await
                .map_err(|error| unreadable(config, &error))?;
        }
    }
    Ok(ExitCode::from(DONE))
}

/// Returns the parked events of other relays if this relay has `nothing`.
async fn elsewhere(
    config: &Config,
    database: &Database,
    nothing: bool,
) -> Result<Vec<OtherRelay>, Failure> {
    if !nothing {
        return Ok(Vec::new());
    }
    parked::other_relays(database, &config.name)
        .await
        .map_err(|error| unreadable(config, &error))
}

fn selected(text: Option<&str>) -> Result<Selection, Failure> {
    text.map_or(Ok(Selection::All), |text| Ok(named(text)?.into()))
}

fn part_of_range(config: &Config, range: &ParkedEvent) -> Failure {
    let (kind, id, name) = (&range.aggregate_type, &range.aggregate_id, &config.name);
    Failure::Refused(format!(
        "the event is in a range of {} that wait behind an earlier event of {kind}/{id}, and \
         cannot be discarded by itself yet\n  \
         -> retry or discard the earlier event (`tidings parked show {kind}/{id} --name {name}`), \
         or discard all of them with `tidings parked discard {kind}/{id} --name {name}`",
        range.events
    ))
}

fn nothing(config: &Config, what: Option<&str>) -> Failure {
    let (what, name) = (escaped(what.unwrap_or_default()), &config.name);
    Failure::Refused(format!(
        "relay {name} has no parked event for {what}\n  \
         -> `tidings parked list --name {name}` shows its parked events"
    ))
}

fn unreadable(config: &Config, error: &sqlx::Error) -> Failure {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .unwrap_or_default();
    match &*code {
        // undefined_table, invalid_schema_name
        "42P01" | "3F000" => Failure::Refused(format!(
            "table {}.parked does not exist\n  -> run `tidings migrate`",
            config.schema
        )),
        // insufficient_privilege
        "42501" => Failure::Refused(format!(
            "the role may not read or mark parked events\n  \
             -> grant it select and update on {}.parked, and select on the relay's tables",
            config.schema
        )),
        _ => Failure::failed("cannot read the parked events", error),
    }
}
