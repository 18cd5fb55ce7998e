//! Links to the confirmation of an action, and to the page of an event.

use maud::{Markup, html};
use uuid::Uuid;

use super::{copyable, text};
use crate::console::pages::Page;
use crate::console::view::View;

/// Size of a link that looks like a button.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::console) enum Size {
    Small,
    Usual,
}

/// Returns a link to the confirmation of an operation, for instance `discard-parked`. Without `of`,
/// the label itself names the selection.
fn action_link(
    view: &View,
    (operation, label): (&str, &str),
    selection: &[(&str, &str)],
    size: Size,
    of: Option<&str>,
) -> Markup {
    let word = operation.split('-').next().unwrap_or_default();
    let is_destructive = matches!(word, "discard" | "abort" | "cancel");
    let name = of.map(|of| format!("{label} {of}"));
    html! {
        a class={
            "button"
            @if size == Size::Small { " small" }
            @if is_destructive { " danger" }
        } href=(view.action_link(operation, selection)) aria-label=[name] { (label) }
    }
}

/// Returns links to the confirmations of operations on one selection, or nothing if the console is
/// read-only.
pub(in crate::console) fn action_links(
    view: &View,
    operations: &[(&str, &str)],
    selection: &[(&str, &str)],
    size: Size,
    of: Option<&str>,
) -> Markup {
    html! {
        @if view.may_act() && !operations.is_empty() {
            span class="actions" {
                @for operation in operations {
                    (action_link(view, *operation, selection, size, of))
                }
            }
        }
    }
}

/// Returns an id that can be copied. If it can be the id of an event, a link leads to the event.
pub(in crate::console) fn event_id(view: &View, id: &str) -> Markup {
    html! {
        (copyable(id))
        @if id.parse::<Uuid>().is_ok() {
            " "
            a class="button small" aria-label={ "Path of " (text(id)) }
                href=(view.page_link(Page::Events, &[("event", id)])) { "Path" }
        }
    }
}
