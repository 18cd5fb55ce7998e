//! Frame of a page: head, navigation and footer.

use maud::{DOCTYPE, Markup, html};

use super::text;
use crate::console::live;
use crate::console::pages::Page;
use crate::console::params::link;
use crate::console::view::View;

/// Returns a page of the navigation with its content.
pub(in crate::console) fn page(view: &View, content: &Markup) -> Markup {
    let live = live_link(view, &content.0);
    frame(view, view.page.title(), live, content)
}

/// Returns a whole page. It updates by itself if `live` is the address of its stream.
pub(in crate::console) fn frame(
    view: &View,
    title: &str,
    live: Option<String>,
    content: &Markup,
) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · Tidings" }
                link rel="icon" href="/console/icon.svg";
                link rel="stylesheet" href="/console/style.css";
                script src="/console/live.js" defer {}
            }
            body data-live=[live] {
                a class="skip" href="#content" { "Skip to the content" }
                (header(view))
                main id="content" tabindex="-1" { (content) }
                (footer(view))
            }
        }
    }
}

/// Returns the address of the page's stream, or `None` if the page does not update by itself.
fn live_link(view: &View, content: &str) -> Option<String> {
    if !view.page.is_live(&view.params) {
        return None;
    }
    let version = live::version(content);
    let mut parameters = vec![("page", view.page.slug()), ("version", version.as_str())];
    parameters.extend(view.params.without(&["page", "version"]));
    Some(link("/console/live", &parameters))
}

fn header(view: &View) -> Markup {
    let sources = &view.shared.sources;
    html! {
        header class="top" {
            a class="brand" href="/console" { "Tidings" }
            nav aria-label="Pages" {
                @for page in Page::ALL.into_iter().filter(|page| page.is_listed(view.may_act())) {
                    @let current = (page == view.page).then_some("page");
                    a href=(view.page_link(page, &[])) aria-current=[current] { (page.title()) }
                }
            }
        }
        @if sources.len() > 1 && view.page.is_of_one_database() {
            nav class="databases" aria-label="Databases" {
                @for (index, source) in sources.iter().enumerate() {
                    @let current = (index == view.index).then_some("true");
                    a href=(link(&view.page.path(), &[("db", &index.to_string())]))
                        aria-current=[current] { (text(&source.label)) }
                }
            }
        }
    }
}

fn footer(view: &View) -> Markup {
    html! {
        footer class="soft" {
            span { "tidings " (env!("CARGO_PKG_VERSION")) }
            @if view.may_act() {
                span { "signed in as " (text(view.user.name())) }
            } @else {
                span { "read-only; start with " code { "--allow-actions" } " to act" }
            }
            span id="live-state" role="status" {}
        }
    }
}
