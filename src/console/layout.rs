//! Pieces that pages share: texts, times, badges and notices. The frame and the lists are in files
//! of their own.
//!
//! Text from rows, records and servers passes through [`text`] or [`whole`], which make control
//! and reordering characters visible. The templates escape HTML.

mod frame;
mod links;
mod list;

use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

pub(super) use self::frame::{frame, page};
pub(super) use self::links::{Size, action_links, event_id};
pub(super) use self::list::{ROWS_MAX, beginning, column, number, part, range, table};
use super::error::ConsoleError;
use super::view::View;
use crate::escape::{escaped, shortened};
use crate::inspect::units::grouped;

/// Characters of a cell that a list shows.
const CELL_CHARACTERS_MAX: usize = 300;

/// Meaning of a badge, which selects its colour. The word carries the meaning by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Warning,
    Neutral,
}

/// Returns text from a row or a server for a cell: one line, escaped and shortened.
pub(super) fn text(text: &str) -> String {
    escaped(&shortened(text, CELL_CHARACTERS_MAX)).into_owned()
}

/// Returns text from a row or a server, escaped and complete.
pub(super) fn whole(text: &str) -> String {
    escaped(text).into_owned()
}

/// Returns text, or a dash if there is none.
pub(super) fn or_dash(value: Option<&str>) -> String {
    value.map_or("–".to_owned(), text)
}

pub(super) fn badge(tone: Tone, word: &str) -> Markup {
    let class = match tone {
        Tone::Good => "badge good",
        Tone::Bad => "badge bad",
        Tone::Warning => "badge warning",
        Tone::Neutral => "badge soft",
    };
    html! { span class=(class) { (word) } }
}

/// Returns a number with the singular or the plural of its unit.
pub(super) fn count(number: i64, unit: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {unit}{ending}", grouped(number))
}

/// Returns a point in time as an age, with the absolute time as a tooltip.
pub(super) fn moment(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let seconds = (now - at).num_seconds();
    let words = if seconds < 0 {
        format!("in {}", rounded(-seconds))
    } else {
        format!("{} ago", rounded(seconds))
    };
    let exact = at.format("%Y-%m-%d %H:%M:%S UTC").to_string();
    html! { time datetime=(at.to_rfc3339()) title=(exact) { (words) } }
}

/// Returns the point in time that lies `seconds` before now, as an age.
pub(super) fn ago(seconds: f64, now: DateTime<Utc>) -> Markup {
    // A range of ten years keeps the subtraction within the calendar.
    let seconds = seconds.clamp(0.0, 315_360_000.0) as i64;
    moment(now - TimeDelta::seconds(seconds), now)
}

/// Rounds a duration, so that a page does not change with every second.
pub(super) fn rounded(seconds: i64) -> String {
    match seconds {
        0..10 => "a few seconds".into(),
        10..60 => format!("{} s", seconds / 10 * 10),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 600 * 10),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Returns an id with a button that copies it.
pub(super) fn copyable(id: &str) -> Markup {
    let shown = text(id);
    html! {
        span class="id" {
            code { (shown) }
            button class="copy" type="button" data-copy=(id) aria-label={ "Copy " (shown) } {
                "Copy"
            }
        }
    }
}

/// Returns a list of names and values.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl class="facts" {
            @for (name, value) in facts {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

/// Returns the message of an empty list.
pub(super) fn empty(message: &str) -> Markup {
    html! { p class="empty soft" { (message) } }
}

/// Returns an error of a read.
pub(super) fn failure(what: &str, error: &ConsoleError) -> Markup {
    html! {
        div class="notice bad" role="alert" {
            strong { (what) " cannot be read" }
            p { (whole(&error.to_string())) }
        }
    }
}

/// Returns the confirmation of an action that was carried out. Only numbers and fixed words come
/// from the address.
pub(super) fn done(view: &View) -> Markup {
    let word = match view.params.get("done") {
        Some("retry") => "marked for another attempt",
        Some("discard") => "discarded",
        Some("replay") => "replayed",
        Some("abort") => "marked to be aborted",
        Some("cancel") => "cancelled",
        Some("pause") => "paused",
        Some("resume") => "resumed",
        _ => return html! {},
    };
    let count = view.params.parsed::<i64>("count").unwrap_or(0);
    let number = |name: &str| view.params.parsed::<i64>(name).filter(|one| *one > 0);
    html! {
        div class="notice good" role="status" {
            strong { (grouped(count)) " " (word) }
            @if let Some(kept) = number("kept") {
                p { (grouped(kept)) " were kept; the log names the reason" }
            }
            @if let Some(left) = number("left") {
                p { (grouped(left)) " were not reached; repeat the action for them" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_row_is_visible_and_never_markup() {
        let hostile = "<img src=x onerror=alert(1)>\u{202e}\"'&\n";
        let shown = html! { td title=(text(hostile)) { (text(hostile)) } }.into_string();
        assert_eq!(shown.matches('<').count(), 2, "{shown}");
        assert!(
            shown.contains("\\u{202e}") && shown.contains("\\n"),
            "{shown}"
        );
        let shown = copyable("\" onclick=\"alert(1)").into_string();
        assert!(!shown.contains("onclick=\"alert"), "{shown}");
    }

    #[test]
    fn an_age_changes_seldom_and_its_tooltip_is_exact() {
        let now = DateTime::from_timestamp(1_000_000, 0).expect("a time");
        let words = |seconds| moment(now - TimeDelta::seconds(seconds), now).into_string();
        assert!(words(3).contains("a few seconds ago"));
        assert!(words(59).contains(">50 s ago<"));
        assert!(words(3_599).contains(">59 min ago<"));
        assert!(words(86_399).contains(">23 h 50 min ago<"));
        assert!(words(200_000).contains(">2 d 7 h ago<"));
        assert!(words(-120).contains(">in 2 min<"));
        assert!(words(0).contains("title=\"1970-01-12 13:46:40 UTC\""));
        assert!(ago(f64::MAX, now).into_string().contains("d"));
    }
}
