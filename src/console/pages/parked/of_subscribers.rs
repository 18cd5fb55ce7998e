//! Parked events of subscribers.

use maud::{Markup, html};

use super::decision;
use crate::console::layout::{
    ROWS_MAX, Size, action_links, beginning, column, empty, event_id, failure, moment, number, text,
};
use crate::console::view::View;
use crate::escape::escaped_bytes;
use crate::inspect::parked_by_subscribers::{
    ParkedFilter, SubscriberParkedEvent, parked_by_subscribers,
};

pub(super) async fn section(view: &View) -> Markup {
    let consumer = view.params.get("subscriber");
    let filter = ParkedFilter {
        consumer: consumer.map(str::to_owned),
        ..ParkedFilter::default()
    };
    let range = (0, ROWS_MAX + 1);
    let read = view
        .read(async |database| parked_by_subscribers(database, &filter, range).await)
        .await;
    html! {
        section aria-labelledby="subscribers-title" {
            h2 id="subscribers-title" { "Of subscribers"
                @if let Some(consumer) = consumer { ": " (text(consumer)) } }
            @match read {
                Err(error) => (failure("Parked events", &error)),
                Ok(found) if found.is_empty() => (empty("No subscriber has parked an event.")),
                Ok(found) => {
                    (subscriber_table(view, &found))
                    @if let Some(consumer) = consumer { (all_buttons(view, consumer)) }
                },
            }
        }
    }
}

fn subscriber_table(view: &View, found: &[SubscriberParkedEvent]) -> Markup {
    let bytes = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(escaped_bytes);
    let row = |one: &SubscriberParkedEvent| {
        vec![
            html! {
                (text(&one.consumer))
                br; span class="soft" { (text(&one.topic)) ", key "
                    (text(&escaped_bytes(&one.key))) }
            },
            html! {
                (bytes(&one.event_type).map_or("–".to_owned(), |name| text(&name)))
                br;
                @match bytes(&one.event_id) {
                    Some(id) => (event_id(view, &id)),
                    None => span class="soft" { (one.partition) "/" (one.record_offset) },
                }
            },
            html! {
                @match &one.error {
                    Some(error) => (text(error)),
                    None => span class="soft" { "waits behind an earlier event" },
                }
            },
            html! { (one.attempts) },
            match one.error.is_some() {
                true => moment(one.next_attempt_at, view.now),
                false => html! { "–" },
            },
            moment(one.parked_at, view.now),
            html! {
                @if one.action.is_some() { (decision(one.action.as_deref())) }
                (buttons(view, one))
            },
        ]
    };
    let columns = [
        column("Subscriber"),
        column("Event"),
        column("Error"),
        number("Attempts"),
        column("Next attempt"),
        column("Since"),
        column(""),
    ];
    beginning(
        "Parked events of subscribers",
        &columns,
        found,
        ROWS_MAX,
        row,
    )
}

/// Returns links to the actions on one event.
fn buttons(view: &View, one: &SubscriberParkedEvent) -> Markup {
    let seq = one.seq.to_string();
    let selection = [("subscriber", one.consumer.as_str()), ("number", &seq)];
    let of = format!("event number {seq}");
    let operations = [
        ("retry-subscriber-parked", "Retry"),
        ("discard-subscriber-parked", "Discard"),
    ];
    action_links(view, &operations, &selection, Size::Small, Some(&of))
}

/// Returns links to the actions on all parked events of a subscriber.
fn all_buttons(view: &View, consumer: &str) -> Markup {
    let operations = [
        ("retry-subscriber-parked", "Retry all …"),
        ("discard-subscriber-parked", "Discard all …"),
    ];
    let selection = [("subscriber", consumer), ("all", "1")];
    action_links(view, &operations, &selection, Size::Usual, None)
}
