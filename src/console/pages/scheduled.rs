//! Scheduled events: the list in the order of their due times, and the payload on request.

use maud::{Markup, html};

use crate::console::layout::{
    Size, action_links, column, done, event_id, failure, moment, number, or_dash, part, range, text,
};
use crate::console::pages::{Page, payload};
use crate::console::view::View;
use crate::inspect::content::Table;
use crate::inspect::scheduled::{ScheduledEvent, scheduled};
use crate::inspect::units::size;

pub(super) async fn content(view: &View) -> Markup {
    let read = view
        .read(async |database| {
            let found = scheduled(database, range(view)).await?;
            Ok((
                found,
                payload::chosen(view, database, Table::Scheduled).await?,
            ))
        })
        .await;
    html! {
        h1 { "Scheduled events" }
        (done(view))
        p class="soft" {
            "A relay moves a scheduled event to the outbox when it is due. Until then it can be "
            "cancelled."
        }
        @match read {
            Err(error) => (failure("Scheduled events", &error)),
            Ok((found, content)) => {
                (payload::shown(&content))
                (event_table(view, &found))
            },
        }
    }
}

fn event_table(view: &View, found: &[ScheduledEvent]) -> Markup {
    let row = |one: &ScheduledEvent| {
        let id = one.id.to_string();
        let aggregate = format!("{}/{}", one.aggregate_type, one.aggregate_id);
        vec![
            moment(one.due_at, view.now),
            html! { (text(&one.event_type)) br; span class="soft" { (text(&aggregate)) } },
            event_id(view, &id),
            html! { (or_dash(one.topic.as_deref())) },
            html! { (size(one.payload_bytes)) },
            html! {
                (payload::link(view, Page::Scheduled, &[("event", &id)]))
                (action_links(view, &[("cancel-scheduled", "Cancel")], &[("event", &id)],
                    Size::Small, Some(&id)))
            },
        ]
    };
    let columns = [
        column("Due"),
        column("Event"),
        column("Id"),
        column("Topic"),
        number("Payload"),
        column(""),
    ];
    html! {
        section aria-label="Scheduled events" {
            (part(view, "Scheduled events", &columns, found, row, "No event is scheduled."))
        }
    }
}
