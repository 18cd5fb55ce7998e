//! Dead letters: their number per topic, and the letters of one topic with headers and payload.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::console::layout::{
    Size, action_links, beginning, column, done, empty, facts, failure, moment, number, or_dash,
    table, text, whole,
};
use crate::console::pages::{Page, payload};
use crate::console::view::View;
use crate::escape::escaped_bytes;
use crate::inspect::dead_letters::{LetterTopic, letters, place as letter_place, topics};
use crate::inspect::units::grouped;
use crate::subscriber::failure::redrive::{DeadLetter, Filter};

/// Letters of a topic that are read. The largest topics are better handled by the command line.
const LETTERS_MAX: u32 = 500;

/// Actions on a selection of letters.
const ACTIONS: [(&str, &str); 2] = [("replay-letters", "Replay"), ("discard-letters", "Discard")];

pub(super) async fn content(view: &View) -> Markup {
    let topic = view.params.get("topic");
    html! {
        h1 { "Dead letters" }
        (done(view))
        @match topic {
            Some(topic) => (of_topic(view, topic).await),
            None => (all(view).await),
        }
    }
}

async fn all(view: &View) -> Markup {
    let read = view.read_kafka(async |kafka| topics(kafka).await).await;
    html! {
        p class="soft" {
            "A dead letter is an event that a subscriber has given up. A replay sends it back to "
            "that subscriber alone."
        }
        @match read {
            None => div class="notice" {
                strong { "No brokers are configured" }
                p { "Start the console with " code { "--brokers HOST:PORT" } " or set "
                    code { "KAFKA_BROKERS" } " to see dead letters." }
            },
            Some(Err(error)) => (failure("Dead letter topics", &error)),
            Some(Ok(topics)) if topics.is_empty() =>
                (empty("The cluster has no topic whose name ends with .dlt.")),
            Some(Ok(topics)) => (topic_table(view, &topics)),
        }
    }
}

fn topic_table(view: &View, topics: &[LetterTopic]) -> Markup {
    let rows: Vec<Vec<Markup>> = topics
        .iter()
        .map(|one| {
            let link = view.page_link(Page::DeadLetters, &[("topic", &one.topic)]);
            let count = match one.letters_max {
                0 => "0".to_owned(),
                count => format!("≤ {}", grouped(count)),
            };
            vec![
                html! { a href=(link) { (text(&one.topic)) } },
                html! { (count) },
            ]
        })
        .collect();
    let columns = [column("Topic"), number("Letters")];
    html! {
        section aria-label="Topics" {
            (table("Dead letter topics", &columns, &rows))
            p class="soft" {
                "The numbers come from offsets, which transaction markers occupy too. Open a topic "
                "to count its letters."
            }
            p { a class="button" href=(view.page_link(Page::DeadLetters, &[])) { "Refresh" } }
        }
    }
}

async fn of_topic(view: &View, topic: &str) -> Markup {
    let place = view.params.get("letter");
    let place = place.and_then(|text| letter_place(text).ok());
    let filter = Filter {
        // One more shows whether the topic has further letters.
        max: Some(LETTERS_MAX as usize + 1),
        reason: view.params.get("reason").map(str::to_owned),
        places: place.into_iter().collect(),
        ..Filter::default()
    };
    let read = view
        .read_kafka(async |kafka| letters(kafka, topic, filter).await)
        .await;
    let back = view.page_link(Page::DeadLetters, &[]);
    let list = view.page_link(Page::DeadLetters, &[("topic", topic)]);
    html! {
        p {
            a href=(back) { "← All topics" }
            @if place.is_some() { " · " a href=(list) { "All letters of the topic" } }
        }
        section aria-labelledby="topic-title" {
            h2 id="topic-title" { (text(topic)) }
            @match (read, place) {
                (None, _) => (empty("No brokers are configured.")),
                (Some(Err(error)), _) => (failure("The dead letters", &error)),
                (Some(Ok(letters)), _) if letters.is_empty() =>
                    (empty("No letter is left: each was replayed or discarded.")),
                (Some(Ok(letters)), Some(_)) => (letter(view, topic, &letters[0])),
                (Some(Ok(letters)), None) => {
                    (reasons(view, topic, &letters))
                    (letter_table(view, topic, &letters))
                },
            }
        }
    }
}

/// Returns links to the actions on a selection.
fn buttons(view: &View, topic: &str, selection: &[(&str, &str)], of: &str) -> Markup {
    let selection = [&[("topic", topic)], selection].concat();
    action_links(view, &ACTIONS, &selection, Size::Small, Some(of))
}

fn reasons(view: &View, topic: &str, letters: &[DeadLetter]) -> Markup {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    for letter in letters.iter().take(LETTERS_MAX as usize) {
        *counts.entry(letter.reason.as_str()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| -count);
    let rows: Vec<Vec<Markup>> = counts
        .iter()
        .map(|(reason, count)| {
            let shown = if reason.is_empty() {
                "no reason"
            } else {
                reason
            };
            vec![
                html! { (text(shown)) },
                html! { (grouped(*count)) },
                match reason.is_empty() {
                    true => html! {},
                    false => buttons(view, topic, &[("reason", reason)], &text(shown)),
                },
            ]
        })
        .collect();
    let columns = [column("Reason"), number("Letters"), column("")];
    html! {
        h3 { "Reasons" }
        (table("Reasons", &columns, &rows))
        (action_links(
            view,
            &[("replay-letters", "Replay all …"), ("discard-letters", "Discard all …")],
            &[("topic", topic), ("all", "1")],
            Size::Usual,
            None,
        ))
        @if letters.len() > LETTERS_MAX as usize {
            p class="soft" { "Only the first " (LETTERS_MAX) " letters are counted." }
        }
    }
}

fn letter_table(view: &View, topic: &str, letters: &[DeadLetter]) -> Markup {
    let row = |one: &DeadLetter| {
        let name = format!("{}/{}", one.record.partition, one.record.offset);
        let link = view.page_link(Page::DeadLetters, &[("topic", topic), ("letter", &name)]);
        vec![
            html! { a href=(link) aria-label={ "Letter " (name) } { (name) } },
            html! {
                (or_dash(Some(one.event_type.as_str()).filter(|name| !name.is_empty())))
                br; span class="soft" { "key " (text(&one.key)) }
            },
            html! { (text(&one.reason)) },
            html! { (one.attempts) },
            html! { (one.replays) },
            moment(one.failed_at, view.now),
            buttons(view, topic, &[("letter", &name)], &name),
        ]
    };
    let columns = [
        column("Letter"),
        column("Event"),
        column("Reason"),
        number("Attempts"),
        number("Replays"),
        column("Failed"),
        column(""),
    ];
    html! {
        h3 { "Letters" }
        (beginning("Dead letters", &columns, letters, LETTERS_MAX, row))
    }
}

/// Shows one letter with its headers and its payload.
fn letter(view: &View, topic: &str, letter: &DeadLetter) -> Markup {
    let name = format!("{}/{}", letter.record.partition, letter.record.offset);
    let origin = match &letter.origin {
        Some(origin) => html! {
            (origin.partition) "/" (origin.offset) " of " (text(&origin.topic)) ", in "
            (text(&origin.group))
        },
        None => html! { "unknown" },
    };
    let list = [
        ("Letter", html! { (name) }),
        ("Type", html! { (or_dash(Some(&letter.event_type))) }),
        ("Key", html! { (whole(&letter.key)) }),
        ("Reason", html! { (whole(&letter.reason)) }),
        ("Attempts", html! { (letter.attempts) }),
        ("Replays", html! { (letter.replays) }),
        ("Failed", moment(letter.failed_at, view.now)),
        ("Original record", origin),
    ];
    let headers: Vec<(String, String)> = letter
        .record
        .headers()
        .map(|(name, value)| (escaped_bytes(name), escaped_bytes(value)))
        .collect();
    html! {
        (buttons(view, topic, &[("letter", &name)], &name))
        (facts(&list))
        @if view.shared.hide_payloads {
            p class="soft" { "The console hides headers and payloads." }
        } @else {
            h3 { "Headers" }
            (payload::header_list(&headers))
            h3 { "Payload" }
            @match letter.record.value() {
                Some(value) => (payload::record_value(value)),
                None => p class="soft" { "Tombstone: no payload." },
            }
        }
    }
}
