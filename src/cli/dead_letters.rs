//! `tidings dead-letters`: lists, replays and discards events that subscribers could not handle.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{
    config::{Config, parse_duration},
    escape::{escaped, escaped_bytes, shortened},
    exit::{DONE, Failure},
    output,
    table::{Align, aligned},
};
use crate::{
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
    /// List the dead letters of a topic that are neither replayed nor discarded
    List(Selection),
    /// Show one dead letter with its headers
    Show {
        /// The topic, e.g. order.inventory.dlt
        topic: String,
        /// Partition and offset of the letter, as `list` shows them
        #[arg(value_name = "PARTITION/OFFSET", value_parser = place)]
        letter: (i32, i64),
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
    },
}

/// Filter of letters.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// The topic, e.g. order.inventory.dlt
    topic: String,
    /// Only letters that failed within this time, e.g. 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only letters of this event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only the first NUMBER letters
    #[arg(long, value_name = "NUMBER")]
    max: Option<usize>,
}

/// Letters to change.
#[derive(Debug, Args)]
pub(super) struct Change {
    #[command(flatten)]
    selection: Selection,
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

/// Runs a subcommand.
pub(super) async fn run(
    config: &Config,
    command: &DeadLettersCommand,
) -> Result<ExitCode, Failure> {
    let settings = config.kafka.as_ref().ok_or_else(|| {
        Failure::Failed("no brokers are configured: set --brokers or KAFKA_BROKERS".into())
    })?;
    match command {
        DeadLettersCommand::List(selection) => list(settings, selection).await,
        DeadLettersCommand::Show { topic, letter } => show(settings, topic, *letter).await,
        DeadLettersCommand::Replay {
            change,
            again,
            group,
        } => replay(settings, change, *again, group.as_deref()).await,
        DeadLettersCommand::Discard { change } => discard(settings, change).await,
    }?;
    Ok(ExitCode::from(DONE))
}

async fn list(settings: &Settings, selection: &Selection) -> Result<(), Failure> {
    let letters = read(settings, selection, &[]).await?;
    if letters.letters().len() == 0 {
        output::line(format_args!("no dead letters in {}", selection.topic));
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
        let died = letter.failed_at.format("%Y-%m-%d %H:%M:%SZ").to_string();
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
    let columns = [
        Align::Left,
        Align::Left,
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Left,
    ];
    output::lines(&aligned(&columns, &rows));
    Ok(())
}

async fn show(settings: &Settings, topic: &str, place: (i32, i64)) -> Result<(), Failure> {
    let selection = Selection {
        topic: topic.to_owned(),
        since: None,
        event_type: None,
        max: None,
    };
    let letters = read(settings, &selection, &[place]).await?;
    let letter = letters.letters().next();
    let letter = letter.ok_or_else(|| {
        Failure::Refused(format!(
            "dead letter {}/{} does not exist in {}",
            place.0,
            place.1,
            escaped(topic)
        ))
    })?;
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
    let mut letters = read(settings, &change.selection, &change.letters).await?;
    let bus = Bus::new(settings.clone());
    let (mut replayed, mut failure) = (0, None);
    let count = letters.letters().len();
    for at in 0..count {
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
                Err(reason) => {
                    output::line(format_args!("{name} {}; it is kept", escaped(&reason)))
                }
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
    finish(&letters, change).await?;
    output::line(format_args!("{replayed} replayed"));
    failure.map_or(Ok(()), Err)
}

async fn discard(settings: &Settings, change: &Change) -> Result<(), Failure> {
    let mut letters = read(settings, &change.selection, &change.letters).await?;
    let count = letters.letters().len();
    if change.dry_run {
        letters
            .letters()
            .for_each(|letter| output::line(format_args!("{} would be discarded", name(letter))));
        return Ok(());
    }
    (0..count).for_each(|at| letters.discard(at));
    finish(&letters, change).await?;
    output::line(format_args!("{count} discarded"));
    Ok(())
}

async fn read(
    settings: &Settings,
    selection: &Selection,
    places: &[(i32, i64)],
) -> Result<DeadLetterBox, Failure> {
    let filter = Filter {
        since: selection.since.map(|since| chrono::Utc::now() - since),
        event_type: selection.event_type.clone(),
        max: selection.max,
        places: places.to_vec(),
    };
    let read = DeadLetterBox::read(settings, &selection.topic, filter).await;
    read.map_err(|reason| {
        Failure::Failed(format!(
            "cannot read the dead letters: {}",
            escaped(&reason)
        ))
    })
}

async fn finish(letters: &DeadLetterBox, change: &Change) -> Result<(), Failure> {
    if change.dry_run {
        return Ok(());
    }
    letters.commit().await.map_err(|reason| {
        Failure::Failed(format!(
            "cannot record the processed letters, so they will be listed again: {}",
            escaped(&reason)
        ))
    })
}

fn name(letter: &DeadLetter) -> String {
    format!("{}/{}", letter.record.partition, letter.record.offset)
}

fn place(text: &str) -> Result<(i32, i64), String> {
    let parts = text
        .split_once('/')
        .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    parts.ok_or_else(|| "write PARTITION/OFFSET, e.g. 3/120".into())
}
