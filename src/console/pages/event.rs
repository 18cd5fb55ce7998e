//! Path of one event: its steps in the order of time, the events that led to it, and the ones that
//! follow from it.

use std::time::Duration;

use futures_util::future::join_all;
use maud::{Markup, html};
use tokio::time::timeout;
use uuid::Uuid;

use crate::console::error::ConsoleError;
use crate::console::layout::{
    Tone, badge, column, copyable, empty, facts, failure, or_dash, table, text, whole,
};
use crate::console::pages::{Page, payload};
use crate::console::source::Source;
use crate::console::view::View;
use crate::inspect::content::Table;
use crate::inspect::path::{
    Effect, EventName, NamedDatabase, Path, Places, Step, StepKind, moment, path,
};
use crate::inspect::units::size;

/// Time limit of all reads.
const PATH_TIMEOUT: Duration = Duration::from_secs(75);

pub(super) async fn content(view: &View, id: Uuid) -> Markup {
    let back = view.page_link(Page::Events, &[]);
    let name = id.to_string();
    let read = read(view, id).await;
    html! {
        p { a href=(back) { "← All events" } }
        section aria-labelledby="event-title" {
            @match read {
                Err(error) => {
                    h2 id="event-title" { "Event " (name) }
                    (failure("The path of the event", &error))
                },
                Ok(path) => {
                    h2 id="event-title" {
                        (path.event.as_ref().map_or_else(
                            || format!("Event {name}"), |event| text(&event.event_type)))
                    }
                    (about(view, &path, &name))
                    (buttons(view, &path, &name))
                    (content_of(view, &path).await)
                    (steps(view, &path))
                    (unread(&path.unread))
                    (causes(view, &path))
                    @if !path.effects.is_empty() {
                        h3 { "Led to" }
                        (effects(view, &path.effects))
                    }
                },
            }
        }
    }
}

/// Follows the event through all databases of the console and Kafka.
async fn read(view: &View, id: Uuid) -> Result<Path, ConsoleError> {
    let (databases, unread) = databases(view).await;
    let (kafka, _permit) = view.cluster().await;
    let places = Places { databases, kafka };
    let read = timeout(PATH_TIMEOUT, path(&places, id)).await;
    let mut path = read.map_err(|_| {
        let seconds = PATH_TIMEOUT.as_secs();
        ConsoleError::new(format!(
            "databases and brokers did not respond within {seconds} s; `tidings where {id}` waits \
             longer"
        ))
    })?;
    path.unread.extend(unread);
    Ok(path)
}

/// Opens the databases, the selected one first. Returns also the ones that cannot be read.
async fn databases(view: &View) -> (Vec<NamedDatabase>, Vec<String>) {
    let selected = view.source();
    let is_other = |source: &&std::sync::Arc<Source>| !std::sync::Arc::ptr_eq(source, selected);
    let others = view.shared.sources.iter().filter(is_other);
    let opening = std::iter::once(selected).chain(others).map(async |source| {
        // A database that does not respond to its reader would only delay the page.
        let known = view.sample(source).error;
        match known {
            Some(error) => Err(error),
            None => source.database().await,
        }
        .map(|database| NamedDatabase {
            name: source.label.clone(),
            database,
        })
        .map_err(|error| format!("database {}: {error}", source.label))
    });
    let (mut opened, mut unread) = (Vec::new(), Vec::new());
    for result in join_all(opening).await {
        match result {
            Ok(database) => opened.push(database),
            Err(text) => unread.push(text),
        }
    }
    (opened, unread)
}

fn about(view: &View, path: &Path, name: &str) -> Markup {
    let mut list = vec![("Id", copyable(name))];
    if let Some(event) = &path.event {
        let aggregate = format!("{}/{}", event.aggregate_type, event.aggregate_id);
        let link = view.page_link(Page::Events, &[("q", &aggregate)]);
        list.extend([
            ("Version", html! { (event.version) }),
            ("Aggregate", html! { a href=(link) { (whole(&aggregate)) } }),
            ("Own topic", html! { (or_dash(event.topic.as_deref())) }),
            (
                "Payload",
                html! { (event.payload_bytes.map_or("none: a tombstone".into(), size)) },
            ),
        ]);
    }
    facts(&list)
}

fn buttons(view: &View, path: &Path, name: &str) -> Markup {
    html! {
        p class="actions" {
            a class="button small" href=(view.page_link(Page::Events, &[("event", name)])) {
                "Refresh" }
            @if home(path).is_some() {
                (payload::link(view, Page::Events, &[("event", name), ("payload", "1")]))
            }
        }
    }
}

/// Returns the table that contains the event, and its database.
fn home(path: &Path) -> Option<(Table, Option<&str>)> {
    path.steps.iter().find_map(|step| {
        let table = match step.kind {
            StepKind::Inserted { .. } => Table::Outbox,
            StepKind::Scheduled { .. } => Table::Scheduled,
            _ => return None,
        };
        Some((table, step.database.as_deref()))
    })
}

/// Shows the content of the event on request.
async fn content_of(view: &View, path: &Path) -> Markup {
    let (Some(_), Some((table, database))) = (view.params.get("payload"), home(path)) else {
        return html! {};
    };
    let view = view.at(database);
    let read = view
        .read(async |database| payload::chosen(&view, database, table).await)
        .await;
    match read {
        Ok(chosen) => payload::shown(&chosen),
        Err(error) => failure("The payload", &error),
    }
}

fn steps(view: &View, path: &Path) -> Markup {
    if path.steps.is_empty() {
        return empty(
            "No place that was read contains a trace of the event. Retention may have deleted its \
             row and its records.",
        );
    }
    let rows: Vec<Vec<Markup>> = path
        .steps
        .iter()
        .map(|step| row(view, path, step))
        .collect();
    let columns = [
        column("Time"),
        column("Step"),
        column("Details"),
        column("Database"),
    ];
    html! {
        h3 { "Path" }
        (table("Steps of the event", &columns, &rows))
    }
}

fn row(view: &View, path: &Path, step: &Step) -> Vec<Markup> {
    let tone = match step.kind {
        StepKind::Parked { .. }
        | StepKind::SubscriberParked { .. }
        | StepKind::DeadLetter { .. } => Tone::Bad,
        StepKind::Waits { .. } | StepKind::Scheduled { .. } => Tone::Warning,
        StepKind::Published { .. } | StepKind::Handled { .. } => Tone::Good,
        _ => Tone::Neutral,
    };
    vec![
        step.at.map_or_else(
            || html! { "–" },
            |at| html! { time datetime=(at.to_rfc3339()) { (moment(at)) } },
        ),
        badge(tone, step.kind.word()),
        html! {
            (text(&step.kind.detail()))
            @if let Some(link) = link(view, path, step) { " " a href=(link) { "Open" } }
        },
        html! { (or_dash(step.database.as_deref())) },
    ]
}

/// Returns the link to the page of a step's row, record or saga.
fn link(view: &View, path: &Path, step: &Step) -> Option<String> {
    let view = view.at(step.database.as_deref());
    match &step.kind {
        StepKind::Parked { relay, .. } => {
            let event = path.event.as_ref()?;
            let aggregate = format!("{}/{}", event.aggregate_type, event.aggregate_id);
            let parameters = [("relay", relay.as_str()), ("aggregate", &aggregate)];
            Some(view.page_link(Page::Parked, &parameters))
        }
        StepKind::SubscriberParked { subscriber, .. } => {
            Some(view.page_link(Page::Parked, &[("subscriber", subscriber)]))
        }
        StepKind::DeadLetter {
            topic,
            partition,
            offset,
            ..
        } => {
            let letter = format!("{partition}/{offset}");
            let parameters = [("topic", topic.as_str()), ("letter", &letter)];
            Some(view.page_link(Page::DeadLetters, &parameters))
        }
        StepKind::Saga { id, .. } => {
            Some(view.page_link(Page::Sagas, &[("saga", &id.to_string())]))
        }
        _ => None,
    }
}

/// Lists the places that were not read. The page may be incomplete there.
pub(super) fn unread(places: &[String]) -> Markup {
    html! {
        @if !places.is_empty() {
            div class="notice warning" {
                strong { "Not read" }
                ul { @for place in places { li { (whole(place)) } } }
            }
        }
    }
}

fn causes(view: &View, path: &Path) -> Markup {
    html! {
        @if !path.causes.is_empty() {
            h3 { "Caused by" }
            ol class="causes" {
                @for cause in &path.causes {
                    li { (named(view, &cause.event, &cause.database)) }
                }
            }
        }
    }
}

fn effects(view: &View, all: &[Effect]) -> Markup {
    html! {
        ul class="effects" {
            @for effect in all {
                li {
                    (named(view, &effect.event, &effect.database))
                    span class="soft" {
                        " published by " (text(&effect.published_by)) ", "
                        @if effect.handled_by.is_empty() { "not handled in these databases" }
                        @else { "handled by " (text(&effect.handled_by.join(", "))) }
                    }
                    @if !effect.effects.is_empty() { (effects(view, &effect.effects)) }
                }
            }
        }
    }
}

/// Returns a link to an event of the causation tree.
fn named(view: &View, event: &EventName, database: &str) -> Markup {
    let link = view
        .at(Some(database))
        .page_link(Page::Events, &[("event", &event.id)]);
    html! {
        a href=(link) { (text(&event.event_type)) }
        " of " (text(&event.aggregate_type)) "/" (text(&event.aggregate_id))
        @if view.shared.sources.len() > 1 {
            span class="soft" { " in " (text(database)) }
        }
    }
}
