//! The terminal of stdout: its width, and whether text is colored.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use clap::ValueEnum;

/// Width of the output where it is unknown.
const WIDTH: usize = 80;

/// Bounds of a width that is used. A narrower terminal cannot show a table.
const WIDTHS: std::ops::RangeInclusive<usize> = 40..=1_000;

static COLOR: AtomicBool = AtomicBool::new(false);
static COLUMNS: AtomicUsize = AtomicUsize::new(WIDTH);

/// When to color text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

/// A color of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Heading,
    Good,
    Warning,
    Bad,
}

/// Marks around styled text, and their escape sequences. The marks have no width, and text from
/// rows and records cannot contain them, because it is escaped.
const MARKS: [(char, &str); 5] = [
    ('\u{2061}', "\u{1b}[1m"),
    ('\u{2062}', "\u{1b}[32m"),
    ('\u{2063}', "\u{1b}[33m"),
    ('\u{2064}', "\u{1b}[31m"),
    (END, "\u{1b}[0m"),
];

/// Mark of the end of styled text.
const END: char = '\u{2060}';

impl Color {
    /// Returns `true` if text on a stream is colored.
    pub(super) fn is_on(self, is_terminal: bool) -> bool {
        self.decides(is_terminal, std::env::var_os("NO_COLOR").as_deref())
    }

    fn decides(self, is_terminal: bool, no_color: Option<&std::ffi::OsStr>) -> bool {
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => is_terminal && no_color.is_none_or(|value| value.is_empty()),
        }
    }

    /// Returns the choice on a command line that could not be parsed.
    pub(super) fn of_arguments(arguments: &[String]) -> Self {
        let values = arguments.iter().enumerate().filter_map(|(at, argument)| {
            match argument.strip_prefix("--color")? {
                "" => arguments.get(at + 1).map(String::as_str),
                value => value.strip_prefix('='),
            }
        });
        let mut choices = values.filter_map(|value| Self::from_str(value, false).ok());
        choices.next_back().unwrap_or_default()
    }
}

impl Style {
    fn mark(self) -> char {
        let at = match self {
            Style::Heading => 0,
            Style::Good => 1,
            Style::Warning => 2,
            Style::Bad => 3,
        };
        MARKS[at].0
    }
}

/// Determines the width and the colors of stdout.
pub(super) fn start(color: Color) {
    let out = std::io::stdout();
    COLOR.store(color.is_on(out.is_terminal()), Ordering::Relaxed);
    let given = std::env::var("COLUMNS").ok();
    let given = given.and_then(|columns| columns.parse().ok());
    let size = out.is_terminal().then(terminal_size::terminal_size);
    let actual = size.flatten().map(|(width, _)| usize::from(width.0));
    COLUMNS.store(width_of(given, actual), Ordering::Relaxed);
}

/// Returns the width of a terminal, or the one that an operator has set for other outputs.
fn width_of(given: Option<usize>, actual: Option<usize>) -> usize {
    let usable = |width: &usize| WIDTHS.contains(width);
    actual
        .filter(usable)
        .or(given.filter(usable))
        .unwrap_or(WIDTH)
}

/// Returns the width of stdout in columns.
pub(super) fn width() -> usize {
    COLUMNS.load(Ordering::Relaxed)
}

/// Marks text with a style if stdout is colored.
pub(super) fn styled(text: &str, style: Style) -> String {
    match COLOR.load(Ordering::Relaxed) {
        true => marked(text, style),
        false => text.to_owned(),
    }
}

fn marked(text: &str, style: Style) -> String {
    format!("{}{text}{END}", style.mark())
}

/// Returns `true` for the marks.
pub(super) fn is_mark(character: char) -> bool {
    MARKS.iter().any(|(mark, _)| *mark == character)
}

/// Returns `true` if stdout is colored.
pub(super) fn has_color() -> bool {
    COLOR.load(Ordering::Relaxed)
}

/// Replaces the marks in escaped text with escape sequences.
pub(super) fn painted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match MARKS.iter().find(|(mark, _)| *mark == character) {
            Some((_, sequence)) => out.push_str(sequence),
            None => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn color_depends_on_the_flag_the_terminal_and_the_variable() {
        use Color::{Always, Auto, Never};
        let set = Some(std::ffi::OsStr::new("1"));
        let empty = Some(std::ffi::OsStr::new(""));
        for (color, is_terminal, variable, expected) in [
            (Auto, true, None, true),
            (Auto, true, empty, true),
            (Auto, true, set, false),
            (Auto, false, None, false),
            (Always, false, set, true),
            (Never, true, None, false),
        ] {
            let seen = color.decides(is_terminal, variable);
            assert_eq!(seen, expected, "{color:?} {is_terminal} {variable:?}");
        }
        let arguments = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (line, expected) in [
            ("tidings -h", Auto),
            ("tidings --color never -h", Never),
            ("tidings --color=never --color=always -h", Always),
            ("tidings -h --color", Auto),
        ] {
            assert_eq!(Color::of_arguments(&arguments(line)), expected, "{line}");
        }
    }

    #[test]
    fn the_width_is_that_of_the_terminal_or_the_one_that_is_set_or_80() {
        assert_eq!(width_of(Some(120), Some(200)), 200);
        assert_eq!(width_of(Some(120), None), 120);
        assert_eq!(width_of(None, None), 80);
        assert_eq!(width_of(Some(0), Some(3)), 80);
    }

    #[test]
    fn marks_become_escape_sequences_and_only_marks() {
        let text = format!("a {} b\n", marked("down", Style::Bad));
        assert_eq!(painted(&text), "a \u{1b}[31mdown\u{1b}[0m b\n");
        let hostile = "\u{2061}x\u{2060}";
        let shown = crate::escape::escaped(hostile);
        assert_eq!(painted(&shown), "\\u{2061}x\\u{2060}");
    }
}
