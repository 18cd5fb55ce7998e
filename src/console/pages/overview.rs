//! Overview: problems with their remedies, and every relay with its lag and its charts.

use maud::{Markup, html};

use crate::console::chart::Chart;
use crate::console::layout::{
    Tone, ago, badge, column, count, empty, facts, moment, number, or_dash, table, text, whole,
};
use crate::console::pages::Page;
use crate::console::sampler::{Reading, rates};
use crate::console::source::Source;
use crate::console::view::View;
use crate::inspect::advice::{Advice, advice, overdue};
use crate::inspect::relays::{COUNTED_MAX, RelayStatus, Status};
use crate::inspect::units::{grouped, size, time};

/// Lag in seconds above which it is highlighted.
const LAG_SECONDS_MAX: f64 = 30.0;

pub(super) fn content(view: &View) -> Markup {
    let sources = &view.shared.sources;
    html! {
        h1 { "Overview" }
        @for (index, source) in sources.iter().enumerate() {
            (database(&View { index, ..view.clone() }, source))
        }
    }
}

fn database(view: &View, source: &Source) -> Markup {
    let sample = view.sample(source);
    html! {
        section class="database" aria-label={ "Database " (text(&source.label)) } {
            h2 { (text(&source.label)) }
            @if let Some(error) = &sample.error {
                div class="notice bad" role="alert" {
                    strong { "The database cannot be read" }
                    p { (whole(&error.to_string())) }
                    @if let Some(reading) = &sample.read {
                        p { "The values below are from " (moment(reading.at, view.now)) "." }
                    }
                }
            }
            @match &sample.read {
                Some(reading) => (state(view, source, reading)),
                None if sample.error.is_none() => (empty("Reading the database …")),
                None => {},
            }
        }
    }
}

fn state(view: &View, source: &Source, reading: &Reading) -> Markup {
    let status = &reading.status;
    html! {
        (problems(status))
        (totals(view, reading))
        @if status.relays.is_empty() { (no_relay(status)) }
        div class="relays" {
            @for one in &status.relays { (relay(view, source, reading, one)) }
        }
    }
}

/// Lists the problems, each with the recommended next step.
fn problems(status: &Status) -> Markup {
    let mut problems: Vec<Advice> = status.relays.iter().flat_map(advice).collect();
    problems.extend(overdue(&status.scheduled));
    html! {
        @if problems.is_empty() {
            @if !status.relays.is_empty() { p class="calm good" { "No problems." } }
        } @else {
            ul class="problems" aria-label="Problems" {
                @for problem in &problems {
                    li class="notice warning" {
                        p {
                            @if !problem.relay.is_empty() {
                                strong { (text(&problem.relay)) } ": "
                            }
                            (code_in(&problem.problem))
                        }
                        p class="remedy" { span class="soft" { "Next step: " }
                            (code_in(&problem.remedy)) }
                    }
                }
            }
        }
    }
}

/// Formats the parts between backticks as code.
fn code_in(message: &str) -> Markup {
    let message = whole(message);
    html! {
        @for (index, part) in message.split('`').enumerate() {
            @if index % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Shows the numbers that lead to other pages.
fn totals(view: &View, reading: &Reading) -> Markup {
    let status = &reading.status;
    let parked: i64 = status.relays.iter().map(|relay| relay.parked.events).sum();
    let of_subscribers: i64 = reading
        .subscribers
        .iter()
        .map(|(_, topic)| topic.events)
        .sum();
    let tile = |page: Page, number: String, label: &str, is_bad: bool| {
        html! {
            a class={ "tile" @if is_bad { " attention" } } href=(view.page_link(page, &[])) {
                span class="tile-number" { (number) }
                span class="soft" { (label) }
            }
        }
    };
    html! {
        div class="tiles" {
            (tile(Page::Parked, grouped(parked), "parked by relays", parked > 0))
            (tile(Page::Parked, grouped(of_subscribers), "parked by subscribers",
                of_subscribers > 0))
            (tile(Page::Scheduled, bounded(status.scheduled.events), "scheduled",
                overdue(&status.scheduled).is_some()))
        }
    }
}

fn no_relay(status: &Status) -> Markup {
    let waiting = bounded(status.waiting_events.unwrap_or_default());
    html! {
        div class="notice warning" {
            strong { "No relay has run on schema " (text(&status.schema)) " yet" }
            p { "Events in the outbox: " (waiting) "." }
            p class="remedy" { span class="soft" { "Next step: " } "run " code { "tidings relay" } }
        }
    }
}

fn relay(view: &View, source: &Source, reading: &Reading, relay: &RelayStatus) -> Markup {
    let points = view.history(source, &relay.name);
    let last = points.last().map_or(0, |point| point.slot);
    let throughput = rates(&points);
    let lag_events: Vec<(i64, f64)> = points
        .iter()
        .filter_map(|point| Some((point.slot, point.lag_events? as f64)))
        .collect();
    let lag_seconds: Vec<(i64, f64)> = points
        .iter()
        .filter_map(|point| Some((point.slot, point.lag_seconds?)))
        .collect();
    let chart = |title, values, format| {
        Chart {
            title,
            values,
            last,
            format,
        }
        .draw()
    };
    html! {
        article class="relay" aria-label={ "Relay " (text(&relay.name)) } {
            div class="relay-head" {
                h3 { (text(&relay.name)) }
                (running(relay))
                @if let Some(delivery) = &relay.delivery {
                    (badge(Tone::Neutral, &text(delivery)))
                }
                (source_badge(relay))
            }
            div class="relay-body" {
                (relay_facts(view, reading, relay))
                div class="charts" {
                    (chart("Throughput", &throughput, |value| format!("{} events/s",
                        short(value))))
                    (chart("Lag in events", &lag_events, |value| grouped(value as i64)))
                    (chart("Lag in seconds", &lag_seconds, time))
                }
            }
            (topics(relay))
        }
    }
}

fn running(relay: &RelayStatus) -> Markup {
    let is_alive = relay.heartbeat_age_seconds.is_some_and(|age| age < 15.0);
    match (is_alive || relay.slot.active, &relay.lock_held_by) {
        (_, Some(_)) => badge(Tone::Bad, "blocked"),
        (true, None) => badge(Tone::Good, "running"),
        (false, None) => badge(Tone::Bad, "not running"),
    }
}

fn source_badge(relay: &RelayStatus) -> Markup {
    match relay.source.as_deref() {
        Some("wal") => badge(Tone::Neutral, "reads the log"),
        Some("table") => badge(Tone::Warning, "reads the table"),
        Some(other) => badge(Tone::Neutral, &text(other)),
        None => html! {},
    }
}

fn relay_facts(view: &View, reading: &Reading, relay: &RelayStatus) -> Markup {
    let (lag, slot) = (&relay.lag, &relay.slot);
    let bytes = |bytes: Option<i64>| bytes.map_or("–".to_owned(), size);
    let is_late = lag.seconds.is_some_and(|seconds| seconds > LAG_SECONDS_MAX);
    let lag_class = if is_late { "lag attention" } else { "lag" };
    let standbys = match relay.standbys.is_empty() {
        true => html! { "none" },
        false => html! { (text(&relay.standbys.join(", "))) },
    };
    let heartbeat = match relay.heartbeat_age_seconds {
        Some(age) => html! { ", seen " (ago(age, reading.at)) },
        None => html! {},
    };
    let position = match &relay.position.log {
        Some(log) => html! {
            code { (text(log)) } " "
            span class="soft" { "stored " (ago(relay.position_age_seconds, reading.at)) }
        },
        None => html! { "none yet" },
    };
    let read = html! {
        (relay.source_reason.as_deref().filter(|reason| !reason.is_empty()).map_or_else(
            || or_dash(relay.source.as_deref()), text))
    };
    let list = vec![
        (
            "Leader",
            html! { (or_dash(relay.leader.as_deref())) (heartbeat) },
        ),
        ("Standbys", standbys),
        (
            "Lag",
            html! {
                span class=(lag_class) {
                    strong { (lag.text()) } " events, "
                    (bytes(lag.bytes)) ", "
                    (lag.seconds.map_or("–".to_owned(), time))
                }
            },
        ),
        ("Published", html! { (grouped(relay.published)) " events" }),
        ("Position", position),
        ("Source", read),
        ("Slot", slot_text(relay)),
        (
            "Retained WAL",
            html! { (bytes(slot.retained_bytes)) (safe(slot.safe_wal_size)) },
        ),
        (
            "Parked",
            match relay.parked.events {
                0 => html! { "none" },
                events => html! {
                    a href=(view.page_link(Page::Parked, &[("relay", &relay.name)])) {
                        (count(events, "event")) " of "
                        (count(relay.parked.aggregates, "aggregate"))
                    }
                },
            },
        ),
        (
            "Kafka cluster",
            html! { (or_dash(relay.kafka_cluster_id.as_deref())) },
        ),
    ];
    facts(&list)
}

fn slot_text(relay: &RelayStatus) -> Markup {
    let slot = &relay.slot;
    if !slot.exists {
        return html! { "none" };
    }
    let (tone, word) = match (slot.active, slot.wal_status.as_deref()) {
        (_, Some("lost")) => (Tone::Bad, "lost"),
        (_, Some("unreserved")) => (Tone::Bad, "about to be lost"),
        (true, _) => (Tone::Good, "active"),
        (false, _) => (Tone::Warning, "inactive"),
    };
    html! { code { (text(&slot.name)) } " " (badge(tone, word)) }
}

fn safe(bytes: Option<i64>) -> Markup {
    html! {
        @if let Some(bytes) = bytes {
            span class="soft" { ", " (size(bytes)) " until the slot is lost" }
        }
    }
}

fn topics(relay: &RelayStatus) -> Markup {
    if relay.topics.is_empty() {
        return html! {};
    }
    let rows: Vec<Vec<Markup>> = relay
        .topics
        .iter()
        .map(|topic| {
            let held = topic
                .held_seconds
                .map(|seconds| badge(Tone::Warning, &format!("held for {}", time(seconds))));
            vec![
                html! { (text(&topic.topic)) " " @if let Some(held) = held { (held) } },
                html! { (topic.partitions) },
                html! { (grouped(topic.published)) },
            ]
        })
        .collect();
    let columns = [column("Topic"), number("Partitions"), number("Published")];
    html! {
        details {
            summary { "Topics (" (relay.topics.len()) ")" }
            (table("Topics of the relay", &columns, &rows))
        }
    }
}

/// Formats a count that stops at one more than [`COUNTED_MAX`].
fn bounded(events: i64) -> String {
    match events > COUNTED_MAX {
        true => format!("> {}", grouped(COUNTED_MAX)),
        false => grouped(events),
    }
}

/// Formats a rate: with a decimal if it is small.
fn short(value: f64) -> String {
    match value < 10.0 && value > 0.0 {
        true => format!("{value:.1}"),
        false => grouped(value as i64),
    }
}
