//! `tidings dead-letters`: what subscribers could not handle, and what is done about it.

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

/// How much of a reason a list shows.
const REASON_CHARACTERS_MAX: usize = 80;

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// List the dead letters of a topic that are neither replayed nor discarded
    List(Selection),
    /// Show one dead letter with its headers
    Show {
        /// The topic, e.g. order.inventory.dlt
        topic: String,
        /// Which: its partition and offset, as `list` shows them
        #[arg(value_name = "PARTITION/OFFSET", value_parser = place)]
        letter: (i32, i64),
    },
    /// Give dead letters back to the subscriber they died in, the events of one aggregate in their order
    Replay {
        #[command(flatten)]
        change: Change,
        /// Also those that were replayed three times already
        #[arg(long)]
        again: bool,
        /// The subscriber the letters died in. Needed for a topic whose name is not TOPIC.GROUP.dlt
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
    /// Be done with dead letters: they are not listed or replayed any more
    Discard {
        #[command(flatten)]
        change: Change,
    },
}

/// Which letters.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// The topic, e.g. order.inventory.dlt
    topic: String,
    /// Died within this time, e.g. 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Of this event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The first of them only
    #[arg(long, value_name = "NUMBER")]
    max: Option<usize>,
}

/// Which letters, and whether it is meant.
#[derive(Debug, Args)]
pub(super) struct Change {
    #[command(flatten)]
    selection: Selection,
    /// These, by partition and offset as `list` shows them
    #[arg(value_name = "PARTITION/OFFSET", value_parser = place, required_unless_present = "all")]
    letters: Vec<(i32, i64)>,
    /// All that --since, --type and --max leave
    #[arg(long, conflicts_with = "letters")]
    all: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs one of the commands.
pub(super) async fn run(
    config: &Config,
    command: &DeadLettersCommand,
) -> Result<ExitCode, Failure> {
    let settings = config.kafka.as_ref().ok_or_else(|| {
        Failure::Failed("no brokers are configured: give --brokers or KAFKA_BROKERS".into())
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
            "letter", "type", "key", "died", "attempts", "replays", "reason",
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
            "there is no dead letter {}/{} in {}",
            place.0,
            place.1,
            escaped(topic)
        ))
    })?;
    output::lines(&whole(topic, letter));
    Ok(())
}

/// One letter with its headers. All of it but numbers was written by somebody else.
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
                "{name} was replayed {} times and died each time: --again replays it once more",
                letter.replays
            ));
        } else {
            match letter.target(group) {
                Err(reason) => output::line(format_args!("{name} {}; it stays", escaped(&reason))),
                Ok(target) if change.dry_run => output::line(format_args!(
                    "{name} would be replayed to {}",
                    escaped(&target)
                )),
                Ok(target) => {
                    let shown = escaped(&target).into_owned();
                    if let Err(error) = letters.replay(&bus, at, target).await {
                        failure = Some(Failure::failed("a dead letter cannot be replayed", &error));
                        break;
                    }
                    output::line(format_args!("{name} is replayed to {shown}"));
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
            "the dead letters cannot be read: {}",
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
            "what was done is not remembered, and is listed again: {}",
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
