//! Parked events of relays, by reason and by aggregate, and parked events of subscribers.

mod of_subscribers;

use maud::{Markup, html};

use crate::console::layout::{
    Size, Tone, action_links, ago, badge, beginning, column, done, empty, event_id, failure,
    number, or_dash, part, range, table, text, whole,
};
use crate::console::pages::{Page, payload};
use crate::console::view::View;
use crate::inspect::aggregate::aggregate;
use crate::inspect::content::Table;
use crate::inspect::parked::{
    OtherRelay, ParkedAggregate, ParkedEvent, ParkedReason, Selection, aggregates, events,
    other_relays, reasons,
};
use crate::inspect::units::{grouped, size};

/// Undeliverable events whose reasons are counted.
const REASONS_COUNTED_MAX: u32 = 10_000;

/// Actions on a selection of parked events.
const ACTIONS: [(&str, &str); 2] = [("retry-parked", "Retry"), ("discard-parked", "Discard")];

/// Events of an aggregate that are shown.
const EVENTS_MAX: u32 = 200;

pub(super) async fn content(view: &View) -> Markup {
    html! {
        h1 { "Parked events" }
        (done(view))
        p class="soft" {
            "A parked event cannot be delivered, or waits behind such an event of its aggregate. "
            "Other aggregates continue."
        }
        @match (view.params.get("relay"), view.params.get("aggregate")) {
            (Some(relay), Some(aggregate)) => (of_aggregate(view, relay, aggregate).await),
            _ => {
                (of_relays(view).await)
                (of_subscribers::section(view).await)
            }
        }
    }
}

async fn of_relays(view: &View) -> Markup {
    let read = async |database: &_| {
        let relays = other_relays(database, "").await;
        let relays = relays.map_err(|error| database.error(error))?;
        let wanted = view.params.get("relay");
        let first = relays.first().map(|relay| relay.relay.as_str());
        let Some(relay) = wanted.or(first).map(str::to_owned) else {
            return Ok((relays, None));
        };
        let found = aggregates(database, &relay, range(view)).await;
        let found = found.map_err(|error| database.error(error))?;
        let reasons = reasons(database, &relay, REASONS_COUNTED_MAX).await?;
        Ok((relays, Some((relay, reasons, found))))
    };
    let shown = view
        .read(async |database: &crate::inspect::Database| read(database).await)
        .await;
    html! {
        section aria-labelledby="relays-title" {
            h2 id="relays-title" { "Of relays" }
            @match shown {
                Err(error) => (failure("Parked events", &error)),
                Ok((_, None)) => (empty("No relay has parked an event.")),
                Ok((relays, Some((relay, reasons, found)))) => {
                    (tabs(view, &relays, &relay))
                    (reason_table(view, &relay, &reasons))
                    (aggregate_table(view, &relay, &found))
                }
            }
        }
    }
}

fn tabs(view: &View, relays: &[OtherRelay], shown: &str) -> Markup {
    html! {
        nav class="tabs" aria-label="Relays" {
            @for one in relays {
                @let current = (one.relay == shown).then_some("true");
                a href=(view.page_link(Page::Parked, &[("relay", &one.relay)]))
                    aria-current=[current] {
                    (text(&one.relay)) " (" (grouped(one.events)) ")"
                }
            }
        }
    }
}

/// Returns links to the actions on a selection.
fn buttons(view: &View, relay: &str, selection: &[(&str, &str)], of: &str) -> Markup {
    let selection = [&[("relay", relay)], selection].concat();
    action_links(view, &ACTIONS, &selection, Size::Small, Some(of))
}

fn reason_table(view: &View, relay: &str, reasons: &[ParkedReason]) -> Markup {
    let rows: Vec<Vec<Markup>> = reasons
        .iter()
        .map(|one| {
            vec![
                html! { (text(&one.reason)) },
                html! { (grouped(one.events)) },
                ago(one.waits_seconds, view.now),
                buttons(view, relay, &[("reason", &one.reason)], &text(&one.reason)),
            ]
        })
        .collect();
    let columns = [
        column("Reason"),
        number("Events"),
        column("Oldest"),
        column(""),
    ];
    html! {
        @if reasons.is_empty() {
            (empty("No event has a reason of its own."))
        } @else {
            h3 { "Reasons" }
            (table("Reasons", &columns, &rows))
            (action_links(
                view,
                &[("retry-parked", "Retry all …"), ("discard-parked", "Discard all …")],
                &[("relay", relay), ("all", "1")],
                Size::Usual,
                None,
            ))
        }
    }
}

fn aggregate_table(view: &View, relay: &str, found: &[ParkedAggregate]) -> Markup {
    let row = |one: &ParkedAggregate| {
        let name = format!("{}/{}", one.aggregate_type, one.aggregate_id);
        let link = view.page_link(Page::Parked, &[("relay", relay), ("aggregate", &name)]);
        vec![
            html! { a href=(link) { (text(&name)) } },
            html! { (grouped(one.events)) },
            html! {
                (one.reason.as_deref().map_or("waits for its topic".to_owned(), text))
                @if let Some(topic) = &one.topic {
                    br; span class="soft" { "topic " (text(topic)) }
                }
            },
            ago(one.waits_seconds, view.now),
            decision(one.action.as_deref()),
            buttons(view, relay, &[("aggregate", &name)], &text(&name)),
        ]
    };
    let columns = [
        column("Aggregate"),
        number("Events"),
        column("First reason"),
        column("Since"),
        column("Decision"),
        column(""),
    ];
    html! {
        h3 { "Aggregates" }
        (part(view, "Aggregates with parked events", &columns, found, row,
            "No aggregate has parked events here."))
    }
}

pub(super) fn decision(action: Option<&str>) -> Markup {
    match action {
        None => html! { span class="soft" { "none" } },
        Some("retry") => badge(Tone::Warning, "retry marked"),
        Some(_) => badge(Tone::Warning, "discard marked"),
    }
}

/// Shows the events of one aggregate, and the content of one of them on request.
async fn of_aggregate(view: &View, relay: &str, name: &str) -> Markup {
    let back = view.page_link(Page::Parked, &[("relay", relay)]);
    let Ok((kind, id)) = aggregate(name) else {
        return empty("An aggregate is written as TYPE/ID.");
    };
    let selection = Selection::Aggregate(kind, id);
    let read = view
        .read(async |database| {
            let found = events(database, relay, &selection, EVENTS_MAX + 1).await;
            let found = found.map_err(|error| database.error(error))?;
            Ok((found, payload::chosen(view, database, Table::Outbox).await?))
        })
        .await;
    html! {
        p { a href=(back) { "← All parked events" } }
        section aria-labelledby="aggregate-title" {
            h2 id="aggregate-title" { (text(name)) }
            (buttons(view, relay, &[("aggregate", name)], "the events of the aggregate"))
            @match read {
                Err(error) => (failure("The events", &error)),
                Ok((found, _)) if found.is_empty() =>
                    (empty("The aggregate has no parked events. They may have been published.")),
                Ok((found, content)) => {
                    (event_table(view, relay, name, &found))
                    (payload::shown(&content))
                }
            }
        }
    }
}

fn event_table(view: &View, relay: &str, name: &str, found: &[ParkedEvent]) -> Markup {
    let row = |one: &ParkedEvent| {
        let id = one.id.to_string();
        let is_range = one.to_seq.is_some();
        vec![
            html! {
                (event_id(view, &id))
                @if is_range { br; "and later ones: " (grouped(one.events)) " in all" }
            },
            html! {
                @match (&one.reason, &one.waits_for) {
                    (Some(reason), _) => (whole(reason)),
                    (None, Some(topic)) => { "waits for topic " (text(topic)) },
                    (None, None) => span class="soft" { "waits behind an earlier event" },
                }
            },
            html! { (or_dash(one.topic.as_deref())) },
            html! { (one.tries) },
            html! { (one.payload_bytes.map_or("missing".into(), size)) },
            ago(one.waits_seconds, view.now),
            html! {
                @if one.action.is_some() { (decision(one.action.as_deref())) }
                @if one.payload_bytes.is_some() {
                    (payload::link(view, Page::Parked,
                        &[("relay", relay), ("aggregate", name), ("event", &id)]))
                }
                @if !is_range {
                    (action_links(view, &ACTIONS[1..], &[("relay", relay), ("event", &id)],
                        Size::Small, Some(&id)))
                }
            },
        ]
    };
    let columns = [
        column("Event"),
        column("Reason"),
        column("Topic"),
        number("Tries"),
        number("Payload"),
        column("Since"),
        column(""),
    ];
    beginning(
        "Parked events of the aggregate",
        &columns,
        found,
        EVENTS_MAX,
        row,
    )
}
