//! Subscribers: pauses, instances, handlers, parked events, and the lag of one subscriber.

use std::collections::BTreeSet;

use maud::{Markup, html};

use crate::console::layout::{
    Tone, ago, badge, column, count, done, empty, failure, moment, number, table, text, whole,
};
use crate::console::pages::Page;
use crate::console::view::View;
use crate::inspect::subscriber_lag::{TopicLag, subscriber_lag};
use crate::inspect::subscribers::{InstanceState, SubscriberStatus, subscribers};
use crate::inspect::units::grouped;

/// Instances of a subscriber that are shown. Stopped ones come last.
const INSTANCES_MAX: usize = 20;

pub(super) async fn content(view: &View) -> Markup {
    let read = view
        .read(async |database| subscribers(database).await)
        .await;
    let chosen = view.params.get("subscriber");
    html! {
        h1 { "Subscribers" }
        (done(view))
        p class="soft" { "Subscribers whose inbox is in this database, with their instances of the "
            "last week." }
        @match read {
            Err(error) => (failure("Subscribers", &error)),
            Ok(found) if found.is_empty() =>
                (empty("No subscriber has its inbox in this database.")),
            Ok(found) => {
                @for one in &found {
                    (subscriber(view, one, chosen == Some(one.name.as_str())).await)
                }
            },
        }
    }
}

async fn subscriber(view: &View, one: &SubscriberStatus, is_chosen: bool) -> Markup {
    let runs = one
        .instances
        .iter()
        .any(|instance| instance.state == InstanceState::Running);
    let is_silent = one
        .instances
        .iter()
        .any(|instance| instance.state == InstanceState::Silent);
    let state = match (&one.pause, runs, is_silent) {
        (Some(_), ..) => badge(Tone::Warning, "paused"),
        (None, true, _) => badge(Tone::Good, "running"),
        (None, false, true) => badge(Tone::Bad, "silent"),
        (None, false, false) => badge(Tone::Neutral, "stopped"),
    };
    let lag = match is_chosen {
        true => lag(view, one).await,
        false => html! {},
    };
    html! {
        article class="subscriber" aria-label={ "Subscriber " (text(&one.name)) } {
            div class="relay-head" { h3 { (text(&one.name)) } (state) }
            (pause(view, one))
            (instances(view, one))
            (parked(view, one))
            @if is_chosen {
                (lag)
            } @else if view.shared.kafka.is_some() {
                p { a class="button small" aria-label={ "Lag of " (text(&one.name)) }
                    href=(view.page_link(Page::Subscribers, &[("subscriber", &one.name)])) {
                    "Lag and partitions" } }
            }
        }
    }
}

/// Shows the pause of a subscriber, and the action that begins or ends one.
fn pause(view: &View, one: &SubscriberStatus) -> Markup {
    let (operation, label) = match one.pause {
        Some(_) => ("resume-subscriber", "Resume"),
        None => ("pause-subscriber", "Pause"),
    };
    let pending = one
        .instances
        .iter()
        .filter(|instance| instance.state == InstanceState::Running)
        .filter(|instance| !instance.has_applied(one.pause.as_ref()))
        .count();
    html! {
        @if let Some(pause) = &one.pause {
            div class="notice warning" {
                p {
                    "Paused by " (text(&pause.by)) " " (moment(pause.since, view.now))
                    @if let Some(reason) = &pause.reason { ": " (whole(reason)) }
                }
                @if pending > 0 {
                    p { (count(pending as i64, "running instance"))
                        " did not confirm the pause yet" }
                }
            }
        }
        @if view.may_act() {
            p class="actions" {
                a class="button small" aria-label={ (label) " " (text(&one.name)) }
                    href=(view.action_link(operation, &[("subscriber", &one.name)])) { (label) }
            }
        }
    }
}

fn instances(view: &View, one: &SubscriberStatus) -> Markup {
    let rows: Vec<Vec<Markup>> = one
        .instances
        .iter()
        .take(INSTANCES_MAX)
        .map(|instance| {
            let state = match instance.state {
                InstanceState::Running if instance.paused_since.is_some() => {
                    badge(Tone::Warning, "paused")
                }
                InstanceState::Running => badge(Tone::Good, "running"),
                InstanceState::Silent => badge(Tone::Bad, "silent"),
                InstanceState::Stopped => badge(Tone::Neutral, "stopped"),
            };
            vec![
                html! { (text(&instance.host)) },
                state,
                html! { (text(&instance.version)) },
                html! { (text(&instance.types.join(", "))) },
                html! { (text(&instance.topics.join(", "))) },
                html! { (text(&instance.escalation)) },
                moment(instance.started_at, view.now),
                ago(instance.seen_seconds, view.now),
            ]
        })
        .collect();
    let columns = [
        column("Instance"),
        column("State"),
        column("Version"),
        column("Handles"),
        column("Topics"),
        column("Failed events"),
        column("Started"),
        column("Last seen"),
    ];
    html! {
        @if rows.is_empty() {
            (empty("No instance ran within the last week."))
        } @else {
            (table("Instances", &columns, &rows))
            @if one.instances.len() > rows.len() {
                p class="soft" { (one.instances.len() - rows.len()) " older instances are not "
                    "shown." }
            }
        }
    }
}

fn parked(view: &View, one: &SubscriberStatus) -> Markup {
    html! {
        @for topic in &one.parked {
            div class="notice warning" {
                p {
                    a href=(view.page_link(Page::Parked, &[("subscriber", &one.name)])) {
                        (count(topic.events, "parked event")) }
                    " of " (count(topic.aggregates, "aggregate")) ", topic " (text(&topic.topic))
                    @if !topic.runs { "; no instance runs, so they wait" }
                    @else if !topic.is_read { "; no running instance reads the topic" }
                }
            }
        }
    }
}

/// Shows the lag of a subscriber per topic and partition.
async fn lag(view: &View, one: &SubscriberStatus) -> Markup {
    let topics: BTreeSet<String> = one
        .instances
        .iter()
        .filter(|instance| instance.state != InstanceState::Stopped)
        .chain(one.instances.first())
        .flat_map(|instance| instance.topics.iter().cloned())
        .collect();
    let topics: Vec<String> = topics.into_iter().collect();
    let read = view
        .read_kafka(async |kafka| subscriber_lag(kafka, &one.name, topics).await)
        .await;
    match read {
        None => empty("No brokers are configured: set --brokers or KAFKA_BROKERS."),
        Some(Err(error)) => failure("The lag", &error),
        Some(Ok(lags)) if lags.is_empty() => empty("None of its topics exists."),
        Some(Ok(lags)) => html! {
            h3 { "Lag" }
            @for lag in &lags { (topic_lag(lag)) }
        },
    }
}

fn topic_lag(lag: &TopicLag) -> Markup {
    let rows: Vec<Vec<Markup>> = lag
        .partitions
        .iter()
        .map(|one| {
            vec![
                html! { (one.partition) },
                html! { (one.committed.map_or("none".to_owned(), grouped)) },
                html! { (grouped(one.end)) },
                html! { (grouped(one.left)) },
            ]
        })
        .collect();
    let columns = [
        number("Partition"),
        number("Committed"),
        number("End"),
        number("Lag"),
    ];
    html! {
        details {
            summary { (text(&lag.topic)) ": lag " (grouped(lag.left())) " in "
                (lag.partitions.len()) " partitions" }
            (table("Partitions", &columns, &rows))
        }
    }
}
