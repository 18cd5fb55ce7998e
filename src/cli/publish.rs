//! `tidings publish`: inserts one event into the outbox.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;

use super::config::{Config, parse_duration};
use super::exit::{DONE, Failure};
use super::{database, output};
use crate::Outbox;
use crate::event::{AggregateId, Envelope, Payload};
use crate::inspect::aggregate::aggregate;
use crate::outbox::PublishError;
use crate::postgres::begin;

/// Maximum size of a payload that is read. The table accepts no larger one.
const PAYLOAD_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// Type of the event, e.g. OrderPlaced
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// Type and id of the aggregate, e.g. order/7
    #[arg(long, value_name = "TYPE/ID", value_parser = aggregate)]
    aggregate: (String, String),
    /// Payload as JSON. Defaults to standard input
    #[arg(long, value_name = "JSON", conflicts_with = "payload_file")]
    payload: Option<String>,
    /// File with the payload as JSON
    #[arg(long, value_name = "FILE")]
    payload_file: Option<PathBuf>,
    /// Header; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Topic of this event. The relay's --topic is a template for all events
    #[arg(long, value_name = "TOPIC")]
    to_topic: Option<String>,
    /// Version of the payload's schema
    #[arg(long = "payload-version", value_name = "NUMBER", default_value_t = 1)]
    version: u32,
    /// Publish the event later: at a time, 2026-11-24T18:00:00Z, or after a duration, 2h
    #[arg(long, value_name = "TIME", value_parser = when)]
    at: Option<When>,
}

/// Time of a scheduled event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    At(DateTime<Utc>),
    After(Duration),
}

/// Runs the command.
pub(super) async fn run(config: &Config, args: &PublishArgs) -> Result<ExitCode, Failure> {
    let envelope = envelope(args)?;
    let settings = database::settings(config)?;
    let unreachable = |error: sqlx::Error| Failure::Failed(database::unreachable(settings, &error));
    let pool = database::open(config, "publish").await?.pool;
    // The advisory lock keeps the order of writers that use it too.
    let outbox = Outbox::new().schema(&config.schema).serialize_aggregates();
    let mut tx = begin(&pool).await.map_err(unreachable)?;
    let draft = outbox.draft(envelope);
    let published = match args.at {
        None => draft.publish(&mut tx).await,
        Some(When::At(time)) => draft.publish_at(&mut tx, time).await,
        Some(When::After(delay)) => draft.publish_after(&mut tx, delay).await,
    };
    let id = published.map_err(|error| failure(&error))?;
    tx.commit()
        .await
        .map_err(|error| Failure::failed("cannot commit the event", &error))?;
    output::line(id);
    Ok(ExitCode::from(DONE))
}

fn envelope(args: &PublishArgs) -> Result<Envelope, Failure> {
    let (kind, id) = args.aggregate.clone();
    let wrong = |text: String| Failure::Options(text);
    let id = AggregateId::new(id).map_err(|error| wrong(format!("--aggregate: {error}")))?;
    let text = payload(args)?;
    let payload = Payload::json_text(text.trim()).map_err(|error| {
        wrong(format!(
            "the payload is not JSON: {error}\n  -> write one JSON value"
        ))
    })?;
    let mut envelope = Envelope::new(kind, id, args.event_type.clone(), payload);
    envelope.version = args.version;
    envelope.topic.clone_from(&args.to_topic);
    for (name, value) in &args.headers {
        envelope.headers.insert(name, value);
    }
    Ok(envelope)
}

/// Returns the payload's text from the argument, the file or standard input.
fn payload(args: &PublishArgs) -> Result<String, Failure> {
    if let Some(text) = &args.payload {
        return Ok(text.clone());
    }
    let (name, source): (String, Box<dyn std::io::Read>) = match &args.payload_file {
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|error| {
                Failure::Options(format!("--payload-file {}: {error}", path.display()))
            })?;
            (path.display().to_string(), Box::new(file))
        }
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::Options(
                "the event has no payload\n  -> set --payload or --payload-file, or write JSON to \
                 standard input"
                    .into(),
            ));
        }
        None => ("standard input".into(), Box::new(std::io::stdin())),
    };
    let mut text = String::new();
    source
        .take(PAYLOAD_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::Options(format!("cannot read {name}: {error}")))?;
    Ok(text)
}

/// An event that could never be delivered is an error of the command line.
fn failure(error: &PublishError) -> Failure {
    let text = super::exit::with_causes(error);
    match error {
        PublishError::Database { .. } => Failure::Failed(text),
        PublishError::MissingTable { .. } => Failure::Refused(text),
        _ => Failure::Options(text),
    }
}

/// Error of an argument. The text is the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct ArgumentError(&'static str);

fn header(text: &str) -> Result<(String, String), ArgumentError> {
    let (name, value) = text
        .split_once('=')
        .ok_or(ArgumentError("write NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn when(text: &str) -> Result<When, ArgumentError> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(When::At(time.to_utc()));
    }
    let remedy = "write a time with its zone, 2026-11-24T18:00:00Z, or a duration, 90m";
    parse_duration(text)
        .map(When::After)
        .map_err(|_| ArgumentError(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_explained() {
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(header("a").is_err());
        assert_eq!(when("90m"), Ok(When::After(Duration::from_secs(5_400))));
        assert!(matches!(when("2026-11-24T18:00:00Z"), Ok(When::At(_))));
        assert!(when("tomorrow").is_err());
    }
}
