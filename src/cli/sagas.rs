//! `tidings sagas`: shows sagas and records decisions about them.
//!
//! The commands only read and mark. The service that runs the saga acts within a second, because
//! only it has the code of the steps.

mod question;

use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::args::ListingArgs;
use super::config::Config;
use super::confirm::Confirm;
use super::database;
use super::exit::{DONE, Failure};
use super::output;
use super::table::{self, Align, aligned_whole};
use super::watch::Rounds;
use crate::inspect::units::{time, utc};
use crate::saga::{Decision, SagaRun, SagaStatus, Sagas};

/// States of a saga that has not ended successfully.
const UNFINISHED: [SagaStatus; 4] = [
    SagaStatus::Waiting,
    SagaStatus::Running,
    SagaStatus::Compensating,
    SagaStatus::Failed,
];

/// Characters of an error that a list shows.
const ERROR_CHARACTERS_MAX: usize = 80;

#[derive(Debug, Subcommand)]
pub(super) enum SagasCommand {
    /// List sagas, the newest first. By default, only those that have not ended successfully
    List(ListArgs),
    /// Show one saga with its steps and its state
    Show(ShowArgs),
    /// Retry sagas where they stopped: the current step, or what has failed
    Retry(DecideArgs),
    /// Compensate sagas that have not passed their pivot
    Abort(AbortArgs),
    /// Release the claim of a removed subscriber to the sagas of a name, so that another one can
    /// run them
    Disown(DisownArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only sagas of this name
    #[arg(long, value_name = "NAME")]
    saga: Option<String>,
    /// Only sagas in this state; may be repeated
    #[arg(long, value_name = "STATE", value_parser = status())]
    status: Vec<SagaStatus>,
    /// Sagas in any state
    #[arg(long, conflicts_with = "status")]
    all: bool,
    #[command(flatten)]
    listing: ListingArgs,
    /// Maximum number of sagas to show
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
    /// The saga's id
    #[arg(value_name = "ID")]
    saga: Uuid,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DecideArgs {
    /// The sagas' ids
    #[arg(value_name = "ID", required = true)]
    sagas: Vec<Uuid>,
}

#[derive(Debug, Args)]
pub(super) struct AbortArgs {
    #[command(flatten)]
    decide: DecideArgs,
    /// End them as failed without compensating completed steps, even after the pivot, and release
    /// their locks
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Args)]
pub(super) struct DisownArgs {
    /// The sagas' name
    #[arg(value_name = "NAME")]
    saga: String,
    /// Subscriber that ran them (its consumer group)
    #[arg(long, value_name = "GROUP")]
    subscriber: String,
    #[command(flatten)]
    confirm: Confirm,
}

/// Parses the word of a status. The error for an unknown word lists all of them.
fn status() -> impl TypedValueParser<Value = SagaStatus> {
    PossibleValuesParser::new(SagaStatus::ALL.map(SagaStatus::word))
        .try_map(|word| word.parse::<SagaStatus>())
}

/// JSON output of `list`.
#[derive(Serialize)]
struct Listed<'a> {
    sagas: &'a [SagaRun],
}

/// Runs a subcommand.
pub(super) async fn run(config: &Config, command: &SagasCommand) -> Result<ExitCode, Failure> {
    let sagas = Sagas::new(database::open(config, "sagas").await?.pool)
        .schema(&config.schema)
        .map_err(|error| Failure::Options(error.to_string()))?;
    match command {
        SagasCommand::List(args) => list(&sagas, args).await,
        SagasCommand::Show(args) => show(&sagas, args).await,
        SagasCommand::Retry(args) => decide(&sagas, args, Decision::Retry).await,
        SagasCommand::Disown(args) => disown(&sagas, args).await,
        SagasCommand::Abort(args) => {
            question::confirm_abort(&sagas, args).await?;
            decide(
                &sagas,
                &args.decide,
                if args.force {
                    Decision::End
                } else {
                    Decision::Abort
                },
            )
            .await
        }
    }?;
    Ok(ExitCode::from(DONE))
}

async fn list(sagas: &Sagas, args: &ListArgs) -> Result<(), Failure> {
    let of: Vec<SagaStatus> = match (args.all, args.status.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => UNFINISHED.into(),
        (false, false) => args.status.clone(),
    };
    let runs = sagas
        .list(args.saga.as_deref(), &of, args.limit)
        .await
        .map_err(|error| unreadable(&error))?;
    if args.listing.output.json {
        return output::json(&Listed { sagas: &runs });
    }
    output::lines(&table(&runs));
    Ok(())
}

async fn show(sagas: &Sagas, args: &ShowArgs) -> Result<(), Failure> {
    let run = sagas
        .get(args.saga)
        .await
        .map_err(|error| unreadable(&error))?;
    let run = run.ok_or_else(|| {
        Failure::Refused(format!(
            "saga {} does not exist: `tidings sagas list --all` lists all sagas",
            args.saga
        ))
    })?;
    if args.json {
        return output::json(&run);
    }
    output::lines(&whole(&run));
    Ok(())
}

async fn decide(sagas: &Sagas, args: &DecideArgs, decision: Decision) -> Result<(), Failure> {
    let mut refused = Vec::new();
    for id in &args.sagas {
        if sagas
            .decide(*id, decision)
            .await
            .map_err(|error| unreadable(&error))?
        {
            output::line(format_args!(
                "{id} is marked; the service that runs it acts within seconds"
            ));
        } else {
            refused.push(id.to_string());
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let why = match decision {
        Decision::Abort => {
            "has ended, is being compensated, has passed its pivot, or does not exist\n  \
             -> `abort --force` ends it without compensation"
        }
        _ => {
            "has ended successfully, or does not exist\n  \
             -> `tidings sagas show ID` shows its state"
        }
    };
    Err(Failure::Refused(format!("{} {why}", refused.join(", "))))
}

async fn disown(sagas: &Sagas, args: &DisownArgs) -> Result<(), Failure> {
    let DisownArgs {
        saga, subscriber, ..
    } = args;
    question::confirm_disown(sagas, args).await?;
    if sagas
        .disown(saga, subscriber)
        .await
        .map_err(|error| unreadable(&error))?
    {
        output::line(format_args!(
            "{subscriber} no longer claims {saga}: the next subscriber that starts with this saga \
             claims it"
        ));
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "{subscriber} runs {saga}, ran it within the last minute, or has never run it\n  \
         -> stop the subscriber, wait a minute and try again"
    )))
}

fn table(runs: &[SagaRun]) -> String {
    if runs.is_empty() {
        return "no sagas\n".into();
    }
    let mut rows = vec![
        [
            "saga", "name", "key", "status", "step", "age", "decided", "error",
        ]
        .map(String::from)
        .to_vec(),
    ];
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    rows.extend(runs.iter().map(|run| {
        let error = run.obstacle.as_ref().map_or_else(
            || text(&run.error),
            |obstacle| format!("cannot be continued: {obstacle}"),
        );
        let error: String = error.chars().take(ERROR_CHARACTERS_MAX).collect();
        let age = (chrono::Utc::now() - run.started_at).as_seconds_f64();
        let status = run.status.word().to_owned();
        vec![
            run.id.to_string(),
            run.name.clone(),
            run.key.clone(),
            status,
            text(&run.step),
            time(age),
            text(&run.action),
            error,
        ]
    }));
    use Align::{Left, Right, Status, Text};
    let columns = [Left, Left, Left, Status, Left, Right, Left, Text];
    table::list(&columns, &rows)
}

fn whole(run: &SagaRun) -> String {
    let list = |steps: &[String]| {
        if steps.is_empty() {
            "-".to_owned()
        } else {
            steps.join(", ")
        }
    };
    let moment = |time: &Option<chrono::DateTime<chrono::Utc>>| time.map_or("-".into(), utc);
    let mut lines = vec![
        (
            "saga",
            format!("{} {}, version {}", run.name, run.id, run.version),
        ),
        ("key", run.key.clone()),
        ("status", run.status.word().into()),
        ("step", run.step.clone().unwrap_or_else(|| "-".into())),
        ("error", run.error.clone().unwrap_or_else(|| "-".into())),
        ("done", list(&run.done)),
        ("undone", list(&run.undone)),
        ("ahead", list(&run.ahead)),
        ("locks", list(&run.locks)),
        ("started", moment(&Some(run.started_at))),
        ("updated", moment(&Some(run.updated_at))),
        ("ended", moment(&run.ended_at)),
        ("due", moment(&run.due_at)),
    ];
    lines.extend(
        run.failed_compensations
            .iter()
            .map(|failed| ("not undone", format!("{}: {}", failed.step, failed.error))),
    );
    lines.extend(
        run.obstacle
            .iter()
            .map(|obstacle| ("blocked", obstacle.clone())),
    );
    lines.extend(run.action.iter().map(|action| ("decided", action.clone())));
    lines.push(("state", run.state.to_string()));
    let rows: Vec<Vec<String>> = lines
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    let mut out = aligned_whole(&[Align::Left, Align::Text], &rows);
    if run.status == SagaStatus::Failed {
        out.push_str(&format!(
            "  -> fix the cause and run `tidings sagas retry {0}`, or release its locks with \
             `tidings sagas abort --force {0}`\n",
            run.id
        ));
    }
    out
}

fn unreadable(error: &sqlx::Error) -> Failure {
    Failure::Failed(format!(
        "cannot read the sagas: {}\n  -> run `tidings migrate` if it has not been run",
        super::exit::with_causes(error)
    ))
}
