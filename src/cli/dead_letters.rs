//! `tidings dead-letters`: lists, replays and discards events that subscribers could not handle.

mod everywhere;
mod json;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use self::json::WholeLetter;
use super::{
    args::{ListingArgs, OutputArgs},
    brokers,
    config::{Config, parse_duration},
    confirm::Confirm,
    escape::{escaped, escaped_bytes, shortened},
    exit::{DONE, Failure},
    output,
    progress::Progress,
    table::{self, Align},
};
use crate::{
    inspect::{
        dead_letters::{LetterSummary, place},
        units::{counted, utc},
    },
    kafka::Settings,
    subscriber::{
        Bus,
        failure::redrive::{DeadLetter, DeadLetterBox, Filter, Origin, REPLAYS_MAX},
    },
};

/// Characters of a reason that a list shows.
const REASON_CHARACTERS_MAX: usize = 80;

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// List dead letters that are neither replayed nor discarded: those of a topic, or the newest
    /// ones of all topics *.dlt
    List {
        /// The topic, e.g. order.inventory.dlt. Defaults to all topics whose names end with .dlt
        topic: Option<String>,
        #[command(flatten)]
        criteria: Criteria,
        /// At most NUMBER letters: the first ones of a topic, or the newest ones of all topics, at
        /// most 500 unless it is set
        #[arg(long, value_name = "NUMBER", value_parser = count)]
        max: Option<usize>,
        #[command(flatten)]
        listing: ListingArgs,
    },
    /// Show one dead letter with its headers
    Show {
        /// The topic, e.g. order.inventory.dlt
        topic: String,
        /// Partition and offset of the letter, as `list` shows them
        #[arg(value_name = "PARTITION/OFFSET", value_parser = place)]
        letter: (i32, i64),
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Send dead letters back to the subscriber that could not handle them, in order per aggregate
    Replay {
        #[command(flatten)]
        change: Change,
        /// Include letters that have already been replayed three times
        #[arg(long)]
        again: bool,
        /// Subscriber that could not handle the letters. Required for a topic whose name is not
        /// TOPIC.GROUP.dlt
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
    /// Discard dead letters: they are no longer listed or replayed
    Discard {
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// Filter of letters.
#[derive(Debug, Default, Args)]
pub(super) struct Criteria {
    /// Only letters that failed within this time, e.g. 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only letters of this event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
}

/// Letters to change.
#[derive(Debug, Args)]
pub(super) struct Change {
    /// The topic, e.g. order.inventory.dlt
    topic: String,
    #[command(flatten)]
    criteria: Criteria,
    /// Only the first NUMBER letters
    #[arg(long, value_name = "NUMBER")]
    max: Option<usize>,
    /// Partition and offset of each letter, as `list` shows them
    #[arg(value_name = "PARTITION/OFFSET", value_parser = place, required_unless_present = "all")]
    letters: Vec<(i32, i64)>,
    /// All letters that match --since, --type and --max
    #[arg(long, conflicts_with = "letters")]
    all: bool,
    /// Print the changes without making them
    #[arg(long)]
    dry_run: bool,
}

impl DeadLettersCommand {
    /// Returns `true` if the command reads any number of topics, which must end in time.
    pub(super) fn reads_all_topics(&self) -> bool {
        matches!(self, Self::List { topic: None, .. })
    }
}

impl Change {
    fn filter(&self) -> Filter {
        self.criteria.filter(self.max, &self.letters)
    }
}

impl Criteria {
    fn filter(&self, max: Option<usize>, places: &[(i32, i64)]) -> Filter {
        Filter {
            since: self.since.map(|since| chrono::Utc::now() - since),
            event_type: self.event_type.clone(),
            max,
            reason: None,
            places: places.to_vec(),
        }
    }
}

/// Runs a subcommand.
pub(super) async fn run(
    config: &Config,
    command: &DeadLettersCommand,
) -> Result<ExitCode, Failure> {
    let settings = brokers::settings(config)?;
    match command {
        DeadLettersCommand::List {
            topic,
            criteria,
            max,
            listing,
        } => {
            let (filter, json) = (criteria.filter(*max, &[]), listing.output.json);
            match topic {
                Some(topic) => list(settings, topic, filter, json).await,
                None => return everywhere::list(settings, &filter, json).await,
            }
        }
        DeadLettersCommand::Show {
            topic,
            letter,
            output,
        } => show(settings, topic, *letter, output.json).await,
        DeadLettersCommand::Replay {
            change,
            again,
            group,
        } => replay(settings, change, *again, group.as_deref()).await,
        DeadLettersCommand::Discard { change, confirm } => {
            discard(settings, change, *confirm).await
        }
    }?;
    Ok(ExitCode::from(DONE))
}

async fn list(settings: &Settings, topic: &str, filter: Filter, json: bool) -> Result<(), Failure> {
    let letters = read(settings, topic, filter).await?;
    if json {
        let letters: Vec<_> = letters.letters().map(LetterSummary::from).collect();
        return output::json(&letters);
    }
    if letters.letters().len() == 0 {
        output::line(format_args!("no dead letters in {topic}"));
        return Ok(());
    }
    let mut rows = vec![
        [
            "letter", "type", "key", "failed", "attempts", "replays", "reason",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    rows.extend(letters.letters().map(|letter| {
        let reason = shortened(&letter.reason, REASON_CHARACTERS_MAX).into_owned();
        let died = utc(letter.failed_at);
        vec![
            name(letter),
            letter.event_type.clone(),
            letter.key.clone(),
            died,
            letter.attempts.to_string(),
            letter.replays.to_string(),
            reason,
        ]
    }));
    use Align::{Left, Right, Text};
    let columns = [Left, Left, Left, Left, Right, Right, Text];
    output::lines(&table::list(&columns, &rows));
    Ok(())
}

async fn show(
    settings: &Settings,
    topic: &str,
    place: (i32, i64),
    json: bool,
) -> Result<(), Failure> {
    let filter = Criteria::default().filter(None, &[place]);
    let letters = read(settings, topic, filter).await?;
    let letter = letters.letters().next();
    let letter = letter.ok_or_else(|| {
        Failure::Refused(format!(
            "dead letter {}/{} does not exist in {}",
            place.0,
            place.1,
            escaped(topic)
        ))
    })?;
    if json {
        return output::json(&WholeLetter::of(letter));
    }
    output::lines(&whole(topic, letter));
    Ok(())
}

/// Formats a letter with its headers. Everything except numbers is untrusted text.
fn whole(topic: &str, letter: &DeadLetter) -> String {
    let (key, reason) = (escaped(&letter.key), escaped(&letter.reason));
    let mut text = format!(
        "letter   {} of {}\nkey      {key}\nreason   {reason}\n",
        name(letter),
        escaped(topic)
    );
    if let Some(Origin {
        topic,
        group,
        partition,
        offset,
    }) = &letter.origin
    {
        let (topic, group) = (escaped(topic), escaped(group));
        text.push_str(&format!(
            "origin   {partition}/{offset} of {topic}, in {group}\n"
        ));
    }
    for (name, value) in letter.record.headers() {
        text.push_str(&format!(
            "header   {}: {}\n",
            escaped_bytes(name),
            escaped_bytes(value)
        ));
    }
    text + &format!(
        "value    {}\n",
        letter.record.value().map_or("null".into(), escaped_bytes)
    )
}

async fn replay(
    settings: &Settings,
    change: &Change,
    again: bool,
    group: Option<&str>,
) -> Result<(), Failure> {
    let mut letters = read(settings, &change.topic, change.filter()).await?;
    let bus = Bus::new(settings.clone());
    let (mut replayed, mut failure) = (0, None);
    let count = letters.letters().len();
    let progress = Progress::counted(count as u64, "replaying");
    for at in 0..count {
        progress.set(at as u64);
        let letter = letters.letters().nth(at).expect("within the letters");
        let name = name(letter);
        if letter.replays >= REPLAYS_MAX && !again {
            output::line(format_args!(
                "{name} was replayed {} times and failed each time; \
                 use --again to replay it once more",
                letter.replays
            ));
        } else {
            match letter.target(group) {
                Err(reason) => output::line(format_args!(
                    "{name} {}; it is kept",
                    escaped(&reason.to_string())
                )),
                Ok(target) if change.dry_run => output::line(format_args!(
                    "{name} would be replayed to {}",
                    escaped(&target)
                )),
                Ok(target) => {
                    let shown = escaped(&target).into_owned();
                    if let Err(error) = letters.replay(&bus, at, target).await {
                        failure = Some(Failure::failed("cannot replay a dead letter", &error));
                        break;
                    }
                    output::line(format_args!("{name} was replayed to {shown}"));
                    replayed += 1;
                }
            }
        }
    }
    drop(progress);
    finish(&letters, change).await?;
    output::line(format_args!("{replayed} replayed"));
    failure.map_or(Ok(()), Err)
}

async fn discard(settings: &Settings, change: &Change, confirm: Confirm) -> Result<(), Failure> {
    let mut letters = read(settings, &change.topic, change.filter()).await?;
    let count = letters.letters().len();
    if change.dry_run {
        letters
            .letters()
            .for_each(|letter| output::line(format_args!("{} would be discarded", name(letter))));
        return Ok(());
    }
    if count > 0 {
        let effect = format!(
            "{}: {} will be discarded: no longer listed, and never replayed",
            change.topic,
            counted(count as i64, "dead letter")
        );
        confirm.ask(&effect).await?;
    }
    (0..count).for_each(|at| letters.discard(at));
    finish(&letters, change).await?;
    output::line(format_args!("{count} discarded"));
    Ok(())
}

async fn read(settings: &Settings, topic: &str, filter: Filter) -> Result<DeadLetterBox, Failure> {
    let read = DeadLetterBox::read(settings, topic, filter).await;
    read.map_err(|error| {
        Failure::Failed(format!(
            "cannot read the dead letters: {}",
            escaped(&error.to_string())
        ))
    })
}

async fn finish(letters: &DeadLetterBox, change: &Change) -> Result<(), Failure> {
    if change.dry_run {
        return Ok(());
    }
    letters.commit().await.map_err(|error| {
        Failure::Failed(format!(
            "cannot record the processed letters, so they will be listed again: {}",
            escaped(&error.to_string())
        ))
    })
}

/// Parses a number of letters.
fn count(text: &str) -> Result<usize, std::num::ParseIntError> {
    text.parse::<std::num::NonZero<usize>>().map(Into::into)
}

fn name(letter: &DeadLetter) -> String {
    format!("{}/{}", letter.record.partition, letter.record.offset)
}
