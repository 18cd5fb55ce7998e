//! `tidings tail`: prints the events of topics as they arrive.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use super::config::Config;
use super::escape::{escaped, escaped_bytes};
use super::exit::{DONE, Failure};
use super::printer::Printer;
use super::{brokers, database, output, stderr};
use crate::inspect::{Database, aggregate::aggregate, topics::topics};
use crate::kafka::{Incoming, Isolation, Message, Partition, Settings, extents, follow, watched};

/// Maximum time without a sign of life from the client.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// Topics. Defaults to all topics that the database's relays publish to
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,
    /// Start with the first event that Kafka keeps, rather than with the next one
    #[arg(long)]
    from_beginning: bool,
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only events of this aggregate, e.g. order/7
    #[arg(long, value_name = "TYPE/ID", value_parser = aggregate)]
    aggregate: Option<(String, String)>,
    /// End after this number of events
    #[arg(long, value_name = "NUMBER")]
    max: Option<u64>,
    /// Print one line of JSON per event
    #[arg(long)]
    json: bool,
}

/// Filter of events.
#[derive(Clone, Debug, Default)]
pub(super) struct EventFilter {
    event_type: Option<String>,
    aggregate: Option<(String, String)>,
}

/// An event as JSON.
#[derive(Serialize)]
struct Event<'m> {
    topic: &'m str,
    partition: i32,
    offset: i64,
    timestamp: String,
    id: Option<String>,
    r#type: Option<&'m str>,
    source: Option<String>,
    aggregate_type: Option<&'m str>,
    aggregate_id: String,
    time: Option<&'m str>,
    headers: BTreeMap<String, String>,
    /// The payload if it is JSON.
    payload: Option<&'m RawValue>,
    /// The payload if it is not JSON.
    payload_base64: Option<String>,
    /// Reason why the record is not an event.
    malformed: Option<String>,
}

impl TailArgs {
    /// Returns `true` if the topics are read from the database.
    pub(super) fn needs_database(&self) -> bool {
        self.topics.is_empty()
    }
}

/// Runs the command until `--max` events are printed, or a signal.
pub(super) async fn run(config: &Config, args: &TailArgs) -> Result<ExitCode, Failure> {
    let kafka = brokers::settings(config)?;
    let names = match args.topics.as_slice() {
        [] => topics_of_relays(config).await?,
        names => names.to_vec(),
    };
    let failed = |error| Failure::failed("cannot read the topics", &error);
    let partitions = extents(kafka, names.clone(), Isolation::Committed)
        .await
        .map_err(failed)?;
    for name in &names {
        if !partitions
            .iter()
            .any(|extent| *extent.partition.topic == **name)
        {
            stderr::lines(&format!("topic {} does not exist", escaped(name)));
        }
    }
    if partitions.is_empty() {
        return Err(Failure::Refused(
            "none of the topics exists\n  -> publish an event, or name another topic".into(),
        ));
    }
    let from = partitions
        .into_iter()
        .map(|extent| match args.from_beginning {
            true => (extent.partition, extent.low),
            false => (extent.partition, extent.high),
        })
        .collect();
    let filter = EventFilter {
        event_type: args.event_type.clone(),
        aggregate: args.aggregate.clone(),
    };
    let max = args.max;
    print_records(kafka, from, filter, args.json, move |printed| {
        match max.is_some_and(|max| printed >= max) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
    .await?;
    Ok(ExitCode::from(DONE))
}

/// Returns the topics of all relays of the database.
async fn topics_of_relays(config: &Config) -> Result<Vec<String>, Failure> {
    let settings = database::settings(config)?;
    let unreachable = |error: sqlx::Error| Failure::Failed(database::unreachable(settings, &error));
    let pool = database::connect(settings, "tail")
        .await
        .map_err(unreachable)?;
    let mut session = pool.acquire().await.map_err(unreachable)?;
    let database = Database::new(pool.clone(), &config.schema);
    let pinned = topics(&mut session, &config.schema)
        .await
        .map_err(|error| database::unreadable(config, database.error(error), "the topics"))?;
    let mut names: Vec<String> = pinned.into_iter().map(|pinned| pinned.topic).collect();
    names.dedup();
    match names.is_empty() {
        true => Err(Failure::Refused(
            "no relay of this database has published an event yet\n  -> run `tidings relay`, or \
             name the topics: tidings tail TOPIC"
                .into(),
        )),
        false => Ok(names),
    }
}

/// Prints the records of partitions from these offsets on, until `is_enough` breaks or the reader
/// of the output has ended. `is_enough` receives the number of printed events after each record and
/// at least every 100 ms.
///
/// # Errors
///
/// Returns a failure if the topics cannot be read. Everything that was read before it is printed.
pub(super) async fn print_records(
    kafka: &Settings,
    from: Vec<(Partition, i64)>,
    filter: EventFilter,
    json: bool,
    mut is_enough: impl FnMut(u64) -> ControlFlow<()> + Send + 'static,
) -> Result<(), Failure> {
    let settings = kafka.clone();
    let (printer, printing) = Printer::start(|text| {
        output::own(text);
        match output::is_closed() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
    .map_err(|error| Failure::failed("cannot start a thread", &error))?;
    let tailing = watched("consumer_poll", SILENCE_MAX, move |beat| {
        let mut printed = 0;
        follow(&settings, &from, beat, |record| {
            if let Some(text) = record.and_then(|record| shown(record, &filter, json)) {
                // The client fetches little ahead, so a slow reader only slows it down.
                printer.print(text, || beat.touch())?;
                printed += 1;
            }
            match printer.is_closed() {
                true => ControlFlow::Break(()),
                false => is_enough(printed),
            }
        })
    });
    let ended = tailing.await;
    // The last texts may wait for a slow reader. They are printed before an error that ends the
    // command.
    let finished = tokio::task::spawn_blocking(|| printing.finish()).await;
    let finished = finished.map_err(|error| Failure::failed("cannot print the events", &error))?;
    if finished.is_break() {
        return Ok(());
    }
    let unreadable =
        |error: &(dyn Error + 'static)| Failure::failed("cannot read the topics", error);
    ended
        .map_err(|error| unreadable(&error))?
        .map_err(|error| unreadable(&error))
}

/// Returns the text of a record that matches the filter.
fn shown(record: Incoming, filter: &EventFilter, json: bool) -> Option<String> {
    let (message, malformed) = match Message::read(record, None) {
        Ok(message) => (Ok(message), None),
        Err((reason, record)) => (Err(record), Some(reason.to_string())),
    };
    let record = match &message {
        Ok(message) => message.as_it_came(),
        Err(record) => record,
    };
    let event = event(record, message.as_ref().ok(), malformed);
    if !matches(&event, filter) {
        return None;
    }
    match json {
        true => {
            let text = serde_json::to_string(&event).ok()?;
            Some(super::escape::escaped_json(&text).into_owned() + "\n")
        }
        false => Some(text(&event)),
    }
}

fn event<'m>(
    record: &'m Incoming,
    message: Option<&'m Message>,
    malformed: Option<String>,
) -> Event<'m> {
    let data = message.map_or_else(|| record.value(), Message::data);
    let payload = data
        .and_then(|data| std::str::from_utf8(data).ok())
        .and_then(|text| serde_json::from_str::<&RawValue>(text.trim()).ok());
    let headers = record.headers().map(|(name, value)| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(name), text(value))
    });
    let time = DateTime::from_timestamp_millis(record.timestamp).unwrap_or_default();
    Event {
        topic: &record.topic,
        partition: record.partition,
        offset: record.offset,
        timestamp: time.to_rfc3339_opts(SecondsFormat::Millis, true),
        id: message.map(|message| message.id().into_owned()),
        r#type: message.map(Message::event_type),
        source: message.map(|message| message.source().into_owned()),
        aggregate_type: message.and_then(Message::aggregate_type),
        aggregate_id: match message {
            Some(message) => message.aggregate_id().into_owned(),
            None => String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned(),
        },
        time: message.and_then(Message::time),
        headers: headers.collect(),
        payload,
        payload_base64: data.filter(|_| payload.is_none()).map(|data| {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(data)
        }),
        malformed,
    }
}

/// Returns `true` if the event matches. A record without an aggregate type matches by its key.
fn matches(event: &Event<'_>, filter: &EventFilter) -> bool {
    let is_type = filter
        .event_type
        .as_deref()
        .is_none_or(|wanted| event.r#type == Some(wanted));
    let is_aggregate = filter.aggregate.as_ref().is_none_or(|(kind, id)| {
        event.aggregate_id == *id && event.aggregate_type.is_none_or(|found| found == kind)
    });
    is_type && is_aggregate
}

/// Headers that the first line shows in another form.
fn is_attribute(name: &str) -> bool {
    name.starts_with("ce_") || name == "content-type" || name == "id"
}

/// Formats an event: a line with its time, type, aggregate and place, then the payload.
fn text(event: &Event<'_>) -> String {
    let kind = event.aggregate_type.unwrap_or(event.topic);
    let mut out = format!(
        "{}  {}  {}/{}  {}/{}/{}\n",
        event.time.map_or(escaped(&event.timestamp), escaped),
        escaped(event.r#type.unwrap_or("-")),
        escaped(kind),
        escaped(&event.aggregate_id),
        escaped(event.topic),
        event.partition,
        event.offset
    );
    let mut line = |text: &str| {
        out.push_str("    ");
        out.push_str(text);
        out.push('\n');
    };
    if let Some(reason) = &event.malformed {
        line(&format!("not an event: {}", escaped(reason)));
    }
    for (name, value) in event.headers.iter().filter(|(name, _)| !is_attribute(name)) {
        line(&format!("{}: {}", escaped(name), escaped(value)));
    }
    match (event.payload, &event.payload_base64) {
        (Some(payload), _) => {
            let pretty = serde_json::from_str::<serde_json::Value>(payload.get())
                .and_then(|value| serde_json::to_string_pretty(&value));
            let pretty = pretty.unwrap_or_else(|_| payload.get().to_owned());
            super::escape::escaped_json(&pretty).lines().for_each(line);
        }
        (None, Some(encoded)) => {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded);
            line(&escaped_bytes(&bytes.unwrap_or_default()));
        }
        (None, None) => line("null"),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Place;

    fn record(value: Option<&[u8]>) -> Incoming {
        let headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", "e-1"),
            ("ce_type", "OrderPlaced"),
            ("ce_source", "/tidings/shop"),
            ("ce_aggregatetype", "order"),
            ("ce_time", "2026-01-02T03:04:05.678901Z"),
            ("tenant", "a\u{1b}[2Jb"),
        ];
        let place = Place {
            topic: "orders".into(),
            partition: 3,
            offset: 42,
            timestamp: 0,
        };
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, Some(value.as_bytes())));
        Incoming::new(place, Some(b"7"), value, headers)
    }

    #[test]
    fn an_event_is_readable_and_cannot_control_the_terminal() {
        let value = br#"{"total_cents":1999}"#;
        let text = shown(record(Some(value)), &EventFilter::default(), false).expect("shown");
        let expected = "2026-01-02T03:04:05.678901Z  OrderPlaced  order/7  orders/3/42\n    \
                        tenant: a\\u{1b}[2Jb\n    {\n      \"total_cents\": 1999\n    }\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_payload_of_bytes_and_a_tombstone_are_shown() {
        let bytes = shown(record(Some(&[0xff, 1])), &EventFilter::default(), true);
        assert!(bytes.expect("shown").contains(r#""payload_base64":"/wE=""#));
        let tombstone = shown(record(None), &EventFilter::default(), false);
        assert!(tombstone.expect("shown").ends_with("    null\n"));
    }

    #[test]
    fn the_filters_select_by_type_and_aggregate() {
        let is_shown = |event_type: Option<&str>, aggregate: Option<(&str, &str)>| {
            let filter = EventFilter {
                event_type: event_type.map(str::to_owned),
                aggregate: aggregate.map(|(kind, id)| (kind.to_owned(), id.to_owned())),
            };
            shown(record(Some(b"1")), &filter, true).is_some()
        };
        assert!(is_shown(None, None) && is_shown(Some("OrderPlaced"), Some(("order", "7"))));
        assert!(!is_shown(Some("OrderPaid"), None));
        assert!(!is_shown(None, Some(("order", "8"))) && !is_shown(None, Some(("stock", "7"))));
    }
}
