//! `tidings where`: shows the path of one event, or lists the events of an aggregate.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{
    config::Config,
    database,
    escape::{escaped, escaped_bytes, escaped_lines, shortened},
    exit::{DONE, Failure},
    output,
    table::{self, Align, aligned},
};
use crate::inspect::{
    Database,
    aggregate::named,
    events::{self, AtRelay, Found, Payload, Range, Search},
    path::{self, Cluster, Effect, NO_BROKERS, NamedDatabase, Path, Places, Step, moment},
};
use crate::postgres::DatabaseSettings;

/// Characters of the details that a line shows.
const DETAIL_CHARACTERS_MAX: usize = 250;

/// Time limit of the searches in Kafka.
const KAFKA_TIME_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub(super) struct WhereArgs {
    /// Id of an event, or an aggregate as TYPE/ID. Defaults to the newest events
    #[arg(value_name = "ID | TYPE/ID")]
    what: Option<String>,
    /// Also print the payload of the event
    #[arg(long, conflicts_with = "json")]
    payload: bool,
    /// Database of another service that handles the event or caused it; may be repeated
    #[arg(long, value_name = "URL")]
    also_database: Vec<String>,
    /// Maximum number of events in a list
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: u32,
    /// List events before this sequence number
    #[arg(long, value_name = "SEQ", default_value_t = i64::MAX, hide_default_value = true)]
    before: i64,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// JSON output of a list.
#[derive(Serialize)]
struct Listed<'a> {
    database: &'a str,
    #[serde(flatten)]
    found: &'a Found,
}

/// Runs the command.
pub(super) async fn run(config: &Config, args: &WhereArgs) -> Result<ExitCode, Failure> {
    let places = places(config, args).await?;
    let search = match args.what.as_deref() {
        None => Search::Newest,
        Some(what) => named(what)?.into(),
    };
    match search {
        Search::Id(id) => {
            let path = path::path(&places, id).await;
            if path.event.is_none() && path.steps.is_empty() {
                return Err(no_trace(&path));
            }
            if args.json {
                output::json(&path)?;
            } else {
                output::lines(&text(&path));
            }
            if args.payload {
                payload(config, &places, id).await?;
            }
        }
        search => {
            let place = &places.databases[0];
            let found = events::search(
                &place.database,
                &search,
                Range::new(args.before, args.limit),
            )
            .await
            .map_err(|error| database::unreadable(config, error, "the outbox"))?;
            if args.json {
                output::json(&Listed {
                    database: &place.name,
                    found: &found,
                })?;
            } else {
                output::lines(&list(&found));
            }
        }
    }
    Ok(ExitCode::from(DONE))
}

/// Reports that no place contains a trace of an event, and the places that were not read.
fn no_trace(path: &Path) -> Failure {
    let mut text = format!("no trace of event {}", path.id);
    for place in &path.unread {
        text.push_str(&format!("\nnot read: {}", escaped(place)));
    }
    text.push_str(
        "\n  -> retention may have deleted its row, or it is in another database: add \
         --also-database URL",
    );
    Failure::Refused(text)
}

/// Prints the payload of an event as it is stored, from the first database that contains its row.
async fn payload(config: &Config, places: &Places, id: uuid::Uuid) -> Result<(), Failure> {
    for place in &places.databases {
        let read = events::payload(&place.database, id)
            .await
            .map_err(|error| database::unreadable(config, error, "the outbox"))?;
        let text = match read {
            None => continue,
            Some(Payload::Json(json)) => escaped_lines(&json).into_owned(),
            Some(Payload::Bytes(bytes)) => escaped_bytes(&bytes),
            Some(Payload::Tombstone) => "none: the event is a tombstone".into(),
        };
        output::lines(&format!("\npayload\n{text}\n"));
        return Ok(());
    }
    Ok(())
}

async fn places(config: &Config, args: &WhereArgs) -> Result<Places, Failure> {
    let also = args.also_database.iter().map(|url| {
        DatabaseSettings::parse(url).map_err(|error| {
            Failure::Options(format!("--also-database: {}", escaped(&error.to_string())))
        })
    });
    let also = also.collect::<Result<Vec<_>, _>>()?;
    let all: Vec<&DatabaseSettings> = std::iter::once(database::settings(config)?)
        .chain(&also)
        .collect();
    let mut databases = Vec::new();
    for settings in &all {
        let name = settings.database();
        let is_unique = all.iter().filter(|other| other.database() == name).count() == 1;
        let pool = database::connect(settings, "where")
            .await
            .map_err(|error| Failure::Failed(database::unreachable(settings, &error)))?;
        databases.push(NamedDatabase {
            name: if is_unique {
                name.to_owned()
            } else {
                settings.redacted()
            },
            database: Database::new(pool, &config.schema),
        });
    }
    Ok(Places {
        databases,
        kafka: match &config.kafka {
            Some(kafka) => Cluster::Searched {
                settings: kafka.clone(),
                time_max: KAFKA_TIME_MAX,
            },
            None => Cluster::Unread(NO_BROKERS),
        },
    })
}

fn list(found: &Found) -> String {
    let mut text = if found.events.is_empty() {
        "no such event in the rows that were read\n".to_owned()
    } else {
        let mut rows = vec![
            ["seq", "event", "type", "aggregate", "time", "state"]
                .map(String::from)
                .to_vec(),
        ];
        rows.extend(found.events.iter().map(|event| {
            vec![
                event.seq.to_string(),
                event.id.to_string(),
                format!("{} v{}", event.event_type, event.version),
                format!("{}/{}", event.aggregate_type, event.aggregate_id),
                event.occurred_at.map_or("-".into(), moment),
                state(&event.relays),
            ]
        }));
        use Align::{Left, Right, Text};
        table::list(&[Right, Left, Left, Left, Left, Text], &rows)
    };
    if let Some(before) = found.before {
        text.push_str(&format!(
            "earlier rows were not read\n  -> add --before {before}\n"
        ));
    }
    text
}

/// Summarizes the state of an event in all relays.
fn state(relays: &[AtRelay]) -> String {
    if relays.is_empty() {
        return "no relay has run".into();
    }
    let words: Vec<String> = relays.iter().map(AtRelay::words).collect();
    words.join(", ")
}

fn text(path: &Path) -> String {
    let mut text = match &path.event {
        Some(event) => format!(
            "event {}: {} version {} of {}/{}\n\n",
            event.id,
            escaped(&event.event_type),
            event.version,
            escaped(&event.aggregate_type),
            escaped(&event.aggregate_id)
        ),
        None => format!("event {}: no database contains its row\n\n", path.id),
    };
    let rows: Vec<Vec<String>> = path.steps.iter().map(row).collect();
    text.push_str(&aligned(&[Align::Left, Align::Left, Align::Text], &rows));
    if !path.causes.is_empty() {
        text.push_str("\ncaused by\n");
        for (depth, cause) in path.causes.iter().enumerate() {
            let indent = "  ".repeat(depth + 1);
            text.push_str(&format!(
                "{indent}{}\n",
                name_of(&cause.event, &cause.database)
            ));
        }
    }
    if !path.effects.is_empty() {
        text.push_str("\nled to\n");
        effects(&path.effects, 1, &mut text);
    }
    if !path.unread.is_empty() {
        text.push_str("\nnot read\n");
        for place in &path.unread {
            text.push_str(&format!("  {}\n", escaped(place)));
        }
    }
    text
}

fn effects(all: &[Effect], depth: usize, text: &mut String) {
    for effect in all {
        let handled = match effect.handled_by.as_slice() {
            [] => "not handled in these databases".to_owned(),
            subscribers => format!("handled by {}", subscribers.join(", ")),
        };
        text.push_str(&format!(
            "{}{}, by {}; {}\n",
            "  ".repeat(depth),
            name_of(&effect.event, &effect.database),
            escaped(&effect.published_by),
            escaped(&handled)
        ));
        effects(&effect.effects, depth + 1, text);
    }
}

fn name_of(event: &path::EventName, database: &str) -> String {
    format!(
        "{} of {}/{} ({}, in {})",
        escaped(&event.event_type),
        escaped(&event.aggregate_type),
        escaped(&event.aggregate_id),
        escaped(&event.id),
        escaped(database)
    )
}

fn row(step: &Step) -> Vec<String> {
    let detail = step.kind.detail();
    let detail = shortened(&detail, DETAIL_CHARACTERS_MAX);
    let detail = match &step.database {
        Some(database) => format!("{detail} (in {database})"),
        None => detail.into_owned(),
    };
    let at = step.at.map_or("-".into(), moment);
    vec![at, step.kind.word().into(), detail]
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;

    use crate::inspect::path::{EventName, StepKind};

    fn name(id: &str, event_type: &str) -> EventName {
        EventName {
            id: id.into(),
            event_type: event_type.into(),
            aggregate_type: "order".into(),
            aggregate_id: "7".into(),
        }
    }

    #[test]
    fn a_path_shows_each_step_the_events_that_follow_and_the_places_that_were_not_read() {
        let step = |kind| Step {
            at: Some(DateTime::UNIX_EPOCH),
            database: None,
            kind,
        };
        let path = Path {
            id: uuid::Uuid::nil(),
            event: None,
            steps: vec![
                step(StepKind::Record {
                    topic: "order".into(),
                    partition: 3,
                    offset: 9,
                }),
                step(StepKind::Handled {
                    subscriber: "stock\u{1b}[2J".into(),
                }),
            ],
            causes: Vec::new(),
            effects: vec![Effect {
                event: name("e-2", "Reserved"),
                database: "shop".into(),
                published_by: "stock".into(),
                handled_by: vec!["billing".into()],
                effects: Vec::new(),
            }],
            unread: vec!["Kafka: no brokers are configured (--brokers)".into()],
        };
        let expected = "\
event 00000000-0000-0000-0000-000000000000: no database contains its row

1970-01-01 00:00:00.000Z  in Kafka  order, partition 3, offset 9
1970-01-01 00:00:00.000Z  handled   by stock\\u{1b}[2J

led to
  Reserved of order/7 (e-2, in shop), by stock; handled by billing

not read
  Kafka: no brokers are configured (--brokers)
";
        assert_eq!(text(&path), expected);
    }
}
