//! Tables that fit the width of the output.
//!
//! A list that is too wide wraps its columns of free text. If that does not suffice, each row
//! becomes a record: a line per column, as psql's expanded display shows it.

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::escape::{escaped, shortened};
use super::terminal::{self, Style, styled};

/// Characters of a cell that a list shows: a reason or any sensible key, but not a whole payload.
const CELL_CHARACTERS_MAX: usize = 300;

/// Space between two columns.
const GAP: usize = 2;

/// Width below which a column of free text is not readable.
const TEXT_WIDTH_MIN: usize = 16;

/// Content of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
    /// Free text, which may wrap.
    Text,
    /// A word for a state, which may be colored.
    Status,
}

/// Formats a list, whose first row is the header. Escapes and shortens the cells.
pub(super) fn list(columns: &[Align], rows: &[Vec<String>]) -> String {
    list_within(columns, rows, terminal::width())
}

/// Formats rows without a header in columns that are two spaces apart. Escapes and shortens the
/// cells.
pub(super) fn aligned(columns: &[Align], rows: &[Vec<String>]) -> String {
    let rows = cells(rows, CELL_CHARACTERS_MAX);
    grid(columns, &rows, Fit::of(columns, &rows, terminal::width()))
}

/// Formats rows as [`aligned`] does, but does not shorten the cells.
pub(super) fn aligned_whole(columns: &[Align], rows: &[Vec<String>]) -> String {
    let rows = cells(rows, usize::MAX);
    grid(columns, &rows, Fit::of(columns, &rows, terminal::width()))
}

/// Formats a list for an output of this width.
pub(super) fn list_within(columns: &[Align], rows: &[Vec<String>], width: usize) -> String {
    let mut rows = cells(rows, CELL_CHARACTERS_MAX);
    let fit = Fit::of(columns, &rows, width);
    if fit == Fit::TooNarrow {
        return records(columns, &rows, width);
    }
    for row in rows.iter_mut().skip(1) {
        paint(columns, row);
    }
    if let Some(header) = rows.first_mut() {
        for cell in header.iter_mut().filter(|cell| !cell.is_empty()) {
            *cell = styled(cell, Style::Heading);
        }
    }
    grid(columns, &rows, fit)
}

/// Breaks a line between words, so that it fits `width` columns. Its text begins at the column
/// `indent`, as do the later lines. A word that is longer than such a line is broken too.
pub(super) fn wrapped(line: &str, indent: usize, width: usize) -> String {
    let mut out = String::with_capacity(line.len());
    let mut column = 0;
    let next_line = |out: &mut String| {
        out.truncate(out.trim_end_matches(' ').len());
        out.push_str(&format!("\n{:indent$}", ""));
        indent
    };
    for part in line.split_inclusive(' ') {
        let word = part.trim_end_matches(' ');
        if column > indent && column + word.width() > width {
            column = next_line(&mut out);
        }
        for character in part.chars() {
            let columns = character.width().unwrap_or(0);
            if character != ' ' && column > indent && column + columns > width {
                column = next_line(&mut out);
            }
            out.push(character);
            column += columns;
        }
    }
    out
}

/// How rows fit into a width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Whole,
    /// The columns of free text wrap within this width of the table.
    Wrapped(usize),
    TooNarrow,
}

impl Fit {
    fn of(columns: &[Align], rows: &[Vec<String>], width: usize) -> Self {
        let of_column = |at: usize| {
            let cells = rows.iter().filter_map(|row| row.get(at));
            cells.map(|cell| cell.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns.len()).map(of_column).collect();
        let gaps = GAP * columns.len().saturating_sub(1);
        if widths.iter().sum::<usize>() + gaps <= width {
            return Self::Whole;
        }
        let is_text = |at: usize| columns[at] == Align::Text;
        let least = widths
            .iter()
            .enumerate()
            .map(|(at, width)| match is_text(at) {
                true => TEXT_WIDTH_MIN.min(*width),
                false => *width,
            });
        match least.sum::<usize>() + gaps <= width {
            true => Self::Wrapped(width),
            false => Self::TooNarrow,
        }
    }
}

/// Returns the cells as one line each, so that no cell can forge a row or control the terminal.
fn cells(rows: &[Vec<String>], characters_max: usize) -> Vec<Vec<String>> {
    let cell = |cell: &String| escaped(&shortened(cell, characters_max)).into_owned();
    rows.iter()
        .map(|row| row.iter().map(cell).collect())
        .collect()
}

/// Formats cells in columns, without trailing spaces.
fn grid(columns: &[Align], rows: &[Vec<String>], fit: Fit) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING);
    if let Fit::Wrapped(width) = fit {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        // The gap after the last column is not printed.
        table.set_width(u16::try_from(width + GAP).unwrap_or(u16::MAX));
    }
    for row in rows {
        table.add_row(row.iter().map(Cell::new));
    }
    for (column, align) in table.column_iter_mut().zip(columns.iter().copied()) {
        column.set_padding((0, GAP as u16));
        column.set_cell_alignment(match align {
            Align::Right => CellAlignment::Right,
            Align::Left | Align::Text | Align::Status => CellAlignment::Left,
        });
        if align != Align::Text {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Formats each row after the header as a block of lines with the name and the value of a column.
fn records(columns: &[Align], rows: &[Vec<String>], width: usize) -> String {
    let [header, rows @ ..] = rows else {
        return String::new();
    };
    let block = |row: &Vec<String>| {
        let mut row = row.clone();
        paint(columns, &mut row);
        let lines: Vec<Vec<String>> = header
            .iter()
            .zip(row)
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| vec![styled(name, Style::Heading), value])
            .collect();
        let columns = [Align::Left, Align::Text];
        grid(&columns, &lines, Fit::of(&columns, &lines, width))
    };
    rows.iter().map(block).collect::<Vec<_>>().join("\n")
}

/// Colors the words for states.
fn paint(columns: &[Align], row: &mut [String]) {
    let states = row.iter_mut().zip(columns);
    for (cell, _) in states.filter(|(_, column)| **column == Align::Status) {
        if let Some(style) = style_of(cell) {
            *cell = styled(cell, style);
        }
    }
}

/// Returns the style of a word for a state.
fn style_of(word: &str) -> Option<Style> {
    match word {
        "active" | "running" | "completed" | "reserved" => Some(Style::Good),
        "inactive" | "silent" | "stopped" | "compensating" | "extended" | "waiting" | "marked" => {
            Some(Style::Warning)
        }
        "missing" | "failed" | "lost" | "unreserved" | "repeated" | "reordered"
        | "never committed" => Some(Style::Bad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter()
            .map(|row| row.iter().map(|cell| (*cell).to_owned()).collect())
            .collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = rows(&[&["a", "1", "x"], &["längst", "100", ""]]);
        assert_eq!(
            aligned(&[Align::Left, Align::Right, Align::Left], &rows),
            "a         1  x\nlängst  100\n"
        );
    }

    #[test]
    fn a_character_of_two_columns_counts_as_two() {
        let rows = rows(&[&["name", "n"], &["注文", "1"], &["order", "2"]]);
        assert_eq!(
            list_within(&[Align::Left, Align::Right], &rows, 80),
            "name   n\n注文   1\norder  2\n"
        );
    }

    #[test]
    fn a_list_is_too_wide_by_its_columns_and_not_by_its_characters() {
        let rows = rows(&[&["name", "topic"], &["注文注文注文", "注文注文注文"]]);
        let list = list_within(&[Align::Left, Align::Left], &rows, 24);
        assert!(list.lines().all(|line| line.width() <= 24), "{list}");
    }

    #[test]
    fn a_cell_cannot_forge_a_row_or_control_the_terminal() {
        let rows = vec![
            vec!["a\nb".into(), "\u{1b}[2J".into()],
            vec!["x".repeat(400), "1".into()],
        ];
        let text = list_within(&[Align::Left; 2], &rows, 1_000);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains("a\\nb ") && text.contains("\\u{1b}[2J") && text.contains("x…  1"),
            "{text}"
        );
    }

    #[test]
    fn free_text_wraps_and_nothing_else_does() {
        let rows = rows(&[
            &["id", "reason"],
            &["0199e6f0", "the record is larger than the topic accepts"],
        ]);
        assert_eq!(
            list_within(&[Align::Left, Align::Text], &rows, 32),
            "id        reason\n\
             0199e6f0  the record is larger\n\
             \u{20}         than the topic accepts\n"
        );
    }

    #[test]
    fn a_line_breaks_between_words_and_within_a_word_that_does_not_fit() {
        assert_eq!(wrapped("  ok  a b", 6, 80), "  ok  a b");
        assert_eq!(
            wrapped("  ok  one two three 注文 four", 6, 15),
            "  ok  one two\n      three\n      注文 four"
        );
        let long = "x".repeat(30);
        assert_eq!(
            wrapped(&format!("  -> run {long} now"), 5, 20),
            format!(
                "  -> run\n     {}\n     {}\n     now",
                "x".repeat(15),
                "x".repeat(15)
            )
        );
        // The first column of the text has a name before it.
        assert_eq!(
            wrapped("  ok  xxxxxxxxxx", 6, 12),
            "  ok  xxxxxx\n      xxxx"
        );
    }

    #[test]
    fn a_list_that_is_too_wide_becomes_a_record_per_row() {
        let rows = rows(&[
            &["relay", "leader", "lag", ""],
            &["orders", "host-a:7", "12", "note"],
            &["billing", "host-b:8", "0", ""],
        ]);
        let columns = [Align::Left, Align::Left, Align::Right, Align::Left];
        assert_eq!(
            list_within(&columns, &rows, 27),
            "relay   orders\nleader  host-a:7\nlag     12\n        note\n\n\
             relay   billing\nleader  host-b:8\nlag     0\n"
        );
        assert_eq!(list_within(&columns, &rows, 28).lines().count(), 3);
    }

    #[test]
    fn no_line_is_wider_than_the_output() {
        let wide = "an error of a server 注文 ".repeat(9);
        let id = "0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10";
        let rows = rows(&[&["saga", "name", "error"], &[id, "checkout", &wide]]);
        for width in [44, 60, 80, 120] {
            let columns = [Align::Left, Align::Left, Align::Text];
            let text = list_within(&columns, &rows, width);
            assert!(text.contains(id), "{width}: {text}");
            assert!(
                text.lines().all(|line| line.width() <= width),
                "{width}: {text}"
            );
        }
    }
}
