//! Lists: tables, and the parts of longer lists.

use maud::{Markup, html};

use super::empty;
use crate::console::view::View;

/// Rows of a list on one page.
pub(in crate::console) const ROWS_MAX: u32 = 50;

/// Column of a table.
pub(in crate::console) struct Column {
    title: &'static str,
    is_number: bool,
}

impl Column {
    /// Returns the class of the cells. A column without a title contains buttons.
    fn class(&self) -> Option<&'static str> {
        match (self.is_number, self.title) {
            (true, _) => Some("number"),
            (false, "") => Some("tools"),
            (false, _) => None,
        }
    }
}

/// Returns a column of text.
pub(in crate::console) const fn column(title: &'static str) -> Column {
    Column {
        title,
        is_number: false,
    }
}

/// Returns a column of numbers, aligned to the right.
pub(in crate::console) const fn number(title: &'static str) -> Column {
    Column {
        title,
        is_number: true,
    }
}

/// Returns a table. In narrow windows, each row becomes a card with the titles of the columns.
pub(in crate::console) fn table(caption: &str, columns: &[Column], rows: &[Vec<Markup>]) -> Markup {
    html! {
        table {
            caption class="unseen" { (caption) }
            thead { tr {
                @for column in columns {
                    th scope="col" class=[column.class()] { (column.title) }
                }
            } }
            tbody {
                @for row in rows {
                    tr {
                        @for (column, cell) in columns.iter().zip(row) {
                            td data-title=(column.title) class=[column.class()] {
                                div { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the rows that a part of a list reads: the number of skipped rows, and one row more than
/// the part shows.
pub(in crate::console) fn range(view: &View) -> (u32, u32) {
    (offset(view), ROWS_MAX + 1)
}

/// Returns one part of a list as a table, with links to the other parts. `found` are the rows of
/// [`range`].
pub(in crate::console) fn part<T>(
    view: &View,
    caption: &str,
    columns: &[Column],
    found: &[T],
    row: impl Fn(&T) -> Vec<Markup>,
    none: &str,
) -> Markup {
    let shown = &found[..found.len().min(ROWS_MAX as usize)];
    let rows: Vec<Vec<Markup>> = shown.iter().map(row).collect();
    html! {
        @if rows.is_empty() { (empty(none)) } @else { (table(caption, columns, &rows)) }
        (pager(view, rows.len(), found.len() > rows.len()))
    }
}

/// Returns the beginning of a list as a table. `found` has one row more than `max` if there are
/// further rows.
pub(in crate::console) fn beginning<T>(
    caption: &str,
    columns: &[Column],
    found: &[T],
    max: u32,
    row: impl Fn(&T) -> Vec<Markup>,
) -> Markup {
    let shown = &found[..found.len().min(max as usize)];
    let rows: Vec<Vec<Markup>> = shown.iter().map(row).collect();
    html! {
        (table(caption, columns, &rows))
        @if found.len() > rows.len() {
            p class="soft" { "Only the first " (max) " rows are shown." }
        }
    }
}

/// Returns links to the previous and the next part of a list.
fn pager(view: &View, rows: usize, total_is_more: bool) -> Markup {
    let offset = offset(view);
    let keep = view
        .params
        .without(&["db", "from", "done", "count", "kept", "left"]);
    let at = |offset: u32| {
        let from = offset.to_string();
        view.page_link(view.page, &[&keep[..], &[("from", from.as_str())]].concat())
    };
    html! {
        @if offset > 0 || total_is_more {
            nav class="pager" aria-label="Parts of the list" {
                @if offset > 0 {
                    a class="button" href=(at(offset.saturating_sub(ROWS_MAX))) { "← Previous" }
                }
                @if rows > 0 { span class="soft" { (offset + 1) "–" (offset as usize + rows) } }
                @if total_is_more {
                    a class="button" href=(at(offset + ROWS_MAX)) { "Next →" }
                }
            }
        }
    }
}

/// Returns the number of rows that a request skips.
fn offset(view: &View) -> u32 {
    // Skipped rows are read too, so the bound limits the cost.
    view.params.parsed::<u32>("from").unwrap_or(0).min(10_000)
}
