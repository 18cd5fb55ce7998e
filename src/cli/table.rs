//! Aligned columns, and human-readable numbers, sizes and times.

use super::escape::{escaped, shortened};

/// Characters of a cell that a list shows: a reason or any sensible key, but not a whole payload.
const CELL_CHARACTERS_MAX: usize = 300;

/// Alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Formats rows in columns that are two spaces apart, without trailing spaces. Escapes and shortens
/// the cells.
pub(super) fn aligned(columns: &[Align], rows: &[Vec<String>]) -> String {
    aligned_to(columns, rows, CELL_CHARACTERS_MAX)
}

/// Formats rows as [`aligned`] does, but does not shorten the cells.
pub(super) fn aligned_whole(columns: &[Align], rows: &[Vec<String>]) -> String {
    aligned_to(columns, rows, usize::MAX)
}

fn aligned_to(columns: &[Align], rows: &[Vec<String>], characters_max: usize) -> String {
    let cell = |cell: &String| escaped(&shortened(cell, characters_max)).into_owned();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(cell).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells =
            row.iter()
                .zip(columns)
                .zip(&widths)
                .map(|((cell, align), width)| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Formats a number as `1,234,567`.
pub(super) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    format!("{}{}", if number < 0 { "-" } else { "" }, groups.join(","))
}

/// Formats a size as `16.0 MiB`.
pub(super) fn size(bytes: i64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount.abs() < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{amount:.1} {unit}")
            };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

/// Formats a duration as `0.3 s`, `4 min 10 s` or `3 h 2 min`.
pub(super) fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{:.1} s", seconds.max(0.0)),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".into(), "1".into(), "x".into()],
            vec!["längst".into(), "100".into(), String::new()],
        ];
        assert_eq!(
            aligned(&[Align::Left, Align::Right, Align::Left], &rows),
            "a         1  x\nlängst  100\n"
        );
    }

    #[test]
    fn a_cell_cannot_forge_a_row_or_control_the_terminal() {
        let rows = [
            vec!["a\nb".into(), "\u{1b}[2J".into()],
            vec!["x".repeat(400), "1".into()],
        ];
        let text = aligned(&[Align::Left; 2], &rows);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains("a\\nb ") && text.contains("\\u{1b}[2J") && text.contains("x…  1"),
            "{text}"
        );
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567, -1_000].map(grouped),
            ["0", "999", "1,000", "1,234,567", "-1,000"]
        );
        assert_eq!(
            [0, 1_023, 1_536, 16 << 20, 5 << 40].map(size),
            ["0 B", "1023 B", "1.5 KiB", "16.0 MiB", "5.0 TiB"]
        );
        assert_eq!(
            [0.0, 0.34, 250.0, 10_920.0].map(time),
            ["0.0 s", "0.3 s", "4 min 10 s", "3 h 2 min"]
        );
    }
}
