//! Events of the outbox, the newest first: all of them, or the ones of one aggregate. The records
//! of an aggregate are shown on request, because retention may have deleted its rows.

use std::time::Duration;

use chrono::TimeDelta;
use maud::{Markup, html};
use tokio::time::timeout;

use super::event;
use crate::console::error::ConsoleError;
use crate::console::layout::{
    ROWS_MAX, Tone, badge, column, empty, event_id, failure, moment, number, or_dash, table, text,
};
use crate::console::pages::Page;
use crate::console::view::View;
use crate::inspect::events::{AtRelay, Found, Range, Search, StoredEvent, search};
use crate::inspect::path::{AggregateRecord, AggregateRecords, NamedDatabase, aggregate_records};
use crate::inspect::units::grouped;

/// Time spans of a search for records, in hours.
const SPANS: [(i64, &str); 3] = [(1, "Last hour"), (24, "Last day"), (168, "Last week")];

/// Time limit of a search for records, including the reads of the database.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn content(view: &View) -> Markup {
    let words = view.params.get("q").map(str::trim).unwrap_or_default();
    let wanted = match (view.params.get("event"), words) {
        (Some(id), _) => Search::parse(id),
        (None, "") => Some(Search::Newest),
        (None, words) => Search::parse(words),
    };
    html! {
        h1 { "Events" }
        (form(view, words))
        @match wanted {
            None => (empty("This is neither an event id nor an aggregate. Write a UUID, or \
                TYPE/ID, for instance order/17.")),
            Some(Search::Id(id)) => (event::content(view, id).await),
            Some(wanted) => {
                (list(view, &wanted, words).await)
                @if let Search::Aggregate(kind, id) = &wanted {
                    (records(view, words, (kind, id)).await)
                }
            },
        }
    }
}

fn form(view: &View, words: &str) -> Markup {
    let index = view.index.to_string();
    html! {
        form class="filters" method="get" action=(Page::Events.path()) role="search" {
            @if view.shared.sources.len() > 1 {
                input type="hidden" name="db" value=(index);
            }
            label class="wide" {
                "Event id, or aggregate as TYPE/ID"
                input type="search" name="q" value=(words) autocomplete="off" spellcheck="false";
            }
            button type="submit" { "Search" }
        }
    }
}

async fn list(view: &View, wanted: &Search, words: &str) -> Markup {
    let before = view.params.parsed("before").unwrap_or(i64::MAX);
    let range = Range::of_page(before, ROWS_MAX);
    let read = view
        .read(async |database| search(database, wanted, range).await)
        .await;
    html! {
        section aria-label="Events" {
            @match read {
                Err(error) => (failure("The outbox", &error)),
                Ok(found) => {
                    @if found.events.is_empty() {
                        (empty(none(wanted, &found)))
                    } @else {
                        (event_table(view, &found.events))
                    }
                    @if *wanted != Search::Newest && found.before.is_some() {
                        p class="soft" {
                            "A search by aggregate reads up to " (grouped(range.rows_max()))
                            " rows, because the outbox has no index on aggregates. Earlier rows "
                            "were not read."
                        }
                    }
                    (pager(view, words, &found))
                },
            }
        }
    }
}

fn none(wanted: &Search, found: &Found) -> &'static str {
    match (wanted, found.before) {
        (Search::Newest, _) => "The outbox contains no event.",
        (_, None) => {
            "The outbox contains no event of this aggregate. Retention may have deleted it."
        }
        (_, Some(_)) => "The rows that were read contain no event of this aggregate.",
    }
}

fn event_table(view: &View, events: &[StoredEvent]) -> Markup {
    let row = |one: &StoredEvent| {
        let aggregate = format!("{}/{}", one.aggregate_type, one.aggregate_id);
        let of_aggregate = view.page_link(Page::Events, &[("q", &aggregate)]);
        vec![
            html! { (one.seq) },
            html! {
                (text(&one.event_type)) " " span class="soft" { "v" (one.version) }
                br; a href=(of_aggregate) { (text(&aggregate)) }
            },
            event_id(view, &one.id.to_string()),
            html! { (or_dash(one.topic.as_deref())) },
            one.occurred_at
                .map_or_else(|| html! { "–" }, |at| moment(at, view.now)),
            state(&one.relays),
        ]
    };
    let columns = [
        number("Seq"),
        column("Event"),
        column("Id"),
        column("Own topic"),
        column("Time"),
        column("State"),
    ];
    let rows: Vec<Vec<Markup>> = events.iter().map(row).collect();
    table("Events of the outbox", &columns, &rows)
}

/// Shows the state of an event in all relays.
fn state(relays: &[AtRelay]) -> Markup {
    let tone = |relay: &AtRelay| match (&relay.parked, relay.published) {
        (Some(_), _) => Tone::Bad,
        (None, true) => Tone::Good,
        (None, false) => Tone::Neutral,
    };
    html! {
        @if relays.is_empty() { span class="soft" { "no relay has run" } }
        @for relay in relays { (badge(tone(relay), &text(&relay.words()))) " " }
    }
}

fn pager(view: &View, words: &str, found: &Found) -> Markup {
    let is_first = view.params.get("before").is_none();
    let mut newest = Vec::new();
    if !words.is_empty() {
        newest.push(("q", words));
    }
    let before = found.before.map(|before| before.to_string());
    html! {
        @if !is_first || before.is_some() {
            nav class="pager" aria-label="Parts of the list" {
                @if !is_first {
                    a class="button" href=(view.page_link(Page::Events, &newest)) { "← Newest" }
                }
                @if let Some(before) = &before {
                    @let earlier = [&newest[..], &[("before", before.as_str())]].concat();
                    a class="button" href=(view.page_link(Page::Events, &earlier)) {
                        "Earlier →" }
                }
            }
        }
    }
}

/// Shows the records of an aggregate, once a time span is chosen.
async fn records(view: &View, words: &str, aggregate: (&str, &str)) -> Markup {
    let chosen = view.params.parsed::<i64>("records");
    let chosen = SPANS.iter().find(|(hours, _)| Some(*hours) == chosen);
    let read = match chosen {
        None => None,
        Some((hours, _)) => Some(read_records(view, aggregate, *hours).await),
    };
    html! {
        section aria-labelledby="records-title" {
            h2 id="records-title" { "Records in Kafka" }
            nav class="tabs" aria-label="Time spans" {
                @for (hours, name) in SPANS {
                    @let current = chosen.is_some_and(|(one, _)| *one == hours).then_some("true");
                    @let hours = hours.to_string();
                    a href=(view.page_link(Page::Events, &[("q", words), ("records", &hours)]))
                        aria-current=[current] { (name) }
                }
            }
            @match read {
                None => p class="soft" { "Choose a time span to search the topics of the relays." },
                Some(Err(error)) => (failure("The records", &error)),
                Some(Ok(found)) => {
                    (event::unread(&found.unread))
                    @if found.newest_first.is_empty() {
                        (empty("The part of Kafka that was read has no record of this aggregate."))
                    } @else {
                        (record_table(view, &found))
                    }
                },
            }
        }
    }
}

async fn read_records(
    view: &View,
    aggregate: (&str, &str),
    hours: i64,
) -> Result<AggregateRecords, ConsoleError> {
    let source = view.source();
    let place = NamedDatabase {
        name: source.label.clone(),
        database: source.database().await?,
    };
    let (cluster, _permit) = view.cluster().await;
    let since = view.now - TimeDelta::hours(hours);
    let read = aggregate_records(&place, &cluster, aggregate, since, ROWS_MAX as usize);
    match timeout(RECORDS_TIMEOUT, read).await {
        Ok(read) => Ok(read?),
        Err(_) => Err(ConsoleError::new(format!(
            "the brokers did not respond within {} s; choose a shorter time span",
            RECORDS_TIMEOUT.as_secs()
        ))),
    }
}

fn record_table(view: &View, found: &AggregateRecords) -> Markup {
    let row = |one: &AggregateRecord| {
        vec![
            one.at
                .map_or_else(|| html! { "–" }, |at| moment(at, view.now)),
            html! {
                (or_dash(one.event_type.as_deref()))
                @if one.is_tombstone { " " (badge(Tone::Neutral, "tombstone")) }
            },
            html! {
                @match &one.id {
                    Some(id) => (event_id(view, id)),
                    None => span class="soft" { "not an event" },
                }
            },
            html! { (text(&one.topic)) " " span class="soft" { (one.partition) "/" (one.offset) } },
        ]
    };
    let columns = [
        column("Time"),
        column("Event"),
        column("Id"),
        column("Record"),
    ];
    let rows: Vec<Vec<Markup>> = found.newest_first.iter().map(row).collect();
    html! {
        (table("Records of the aggregate", &columns, &rows))
        @if found.has_more {
            p class="soft" { "Only the newest " (ROWS_MAX) " records are shown." }
        }
    }
}
