//! `--watch`: repeats a command that reads, until a signal.
//!
//! On a terminal, each round replaces the text of the last one. Elsewhere, and with `--json`, the
//! rounds follow one another.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use unicode_width::UnicodeWidthChar as _;

use super::escape::escaped_lines;
use super::exit::{DONE, Failure};
use super::output;

/// Size of a terminal whose size is unknown.
const SIZE: Size = Size {
    width: 80,
    height: 24,
};

/// Size of a terminal in columns and rows.
#[derive(Clone, Copy, Debug)]
struct Size {
    width: usize,
    height: usize,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct WatchArgs {
    /// Repeat every SECONDS until Ctrl-C [default: 2]
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3_600)
    )]
    watch: Option<u64>,
}

/// Rounds of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rounds {
    pause: Duration,
    /// The output is JSON, which is never replaced.
    json: bool,
}

impl WatchArgs {
    /// Returns the rounds, if the command is to be repeated.
    pub(super) fn rounds(self, json: bool) -> Option<Rounds> {
        self.watch.map(|seconds| Rounds {
            pause: Duration::from_secs(seconds),
            json,
        })
    }
}

/// Repeats a command until SIGINT or SIGTERM. The pause follows each round, so that a slow server
/// is not asked without a break.
///
/// # Errors
///
/// Returns the error of the first round. Later errors are shown, because a server may return.
pub(super) async fn repeat(
    rounds: Rounds,
    once: impl AsyncFn() -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let listening =
        |kind| signal(kind).map_err(|error| Failure::failed("cannot listen for signals", &error));
    let mut interrupt = listening(SignalKind::interrupt())?;
    let mut terminate = listening(SignalKind::terminate())?;
    let in_place = !rounds.json && std::io::stdout().is_terminal();
    let mut is_first = true;
    while !output::is_closed() {
        output::hold();
        let ended = tokio::select! {
            ended = once() => ended,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        let mut text = output::held();
        if let Err(failure) = ended {
            if is_first {
                return Err(failure);
            }
            text = format!("error: {}\n", escaped_lines(&failure.to_string()));
        }
        output::own(&match in_place {
            true => frame(&headed(rounds.pause, &text), size(), is_first),
            false if is_first || rounds.json => text,
            false => format!("\n{text}"),
        });
        is_first = false;
        tokio::select! {
            () = tokio::time::sleep(rounds.pause) => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    output::held();
    Ok(ExitCode::from(DONE))
}

/// Returns the text below a line with the time.
fn headed(pause: Duration, text: &str) -> String {
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    format!("{now}, every {} s; Ctrl-C ends\n\n{text}", pause.as_secs())
}

/// Returns the size of the terminal.
fn size() -> Size {
    terminal_size::terminal_size().map_or(SIZE, |(width, height)| Size {
        width: usize::from(width.0),
        height: usize::from(height.0),
    })
}

/// Returns the text of a round with the sequences that replace the last round. A text that is
/// higher than the terminal is cut, because a line that has scrolled away cannot be replaced.
fn frame(text: &str, size: Size, is_first: bool) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let room = size.height.saturating_sub(1).max(1);
    let mut out = String::from(if is_first {
        "\u{1b}[2J\u{1b}[H"
    } else {
        "\u{1b}[H"
    });
    let shown = fitting(&lines, room, size.width);
    lines
        .iter()
        .take(shown)
        .for_each(|line| put(&mut out, line, size.width));
    if shown < lines.len() {
        let left = format!("({} more lines)", lines.len() - shown);
        put(&mut out, &left, size.width);
    }
    out.push_str("\u{1b}[J");
    out
}

/// Returns the number of lines that fit into `room` rows. If not all fit, one row stays free.
fn fitting(lines: &[&str], room: usize, width: usize) -> usize {
    let rows = lines.iter().scan(0, |rows, line| {
        *rows += Extent::of(line, width).rows;
        Some(*rows)
    });
    let rows: Vec<usize> = rows.take_while(|rows| *rows <= room).collect();
    match rows.len() == lines.len() {
        true => lines.len(),
        false => rows.iter().filter(|rows| **rows < room).count(),
    }
}

/// Appends a line. Clears the rest of its last row, rather than the screen, so that nothing
/// flickers.
fn put(out: &mut String, line: &str, width: usize) {
    out.push_str(line);
    // The cursor stays on the last column of a full row, so clearing would remove a character.
    if Extent::of(line, width).last < width {
        out.push_str("\u{1b}[K");
    }
    out.push('\n');
}

/// Space that a line takes on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    rows: usize,
    /// Columns in the last row.
    last: usize,
}

impl Extent {
    /// Measures a line, which wraps at `width`. Sequences for colors take no space.
    fn of(line: &str, width: usize) -> Self {
        let (mut rows, mut last) = (1, 0);
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            if character == '\u{1b}' {
                // The sequences of colors end with the first letter.
                characters.find(char::is_ascii_alphabetic);
                continue;
            }
            let columns = character.width().unwrap_or(0);
            if last + columns > width {
                (rows, last) = (rows + 1, 0);
            }
            last += columns;
        }
        Self { rows, last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_replaces_the_last_one_line_by_line() {
        let first = frame("a\nb\n", SIZE, true);
        assert_eq!(first, "\u{1b}[2J\u{1b}[Ha\u{1b}[K\nb\u{1b}[K\n\u{1b}[J");
        assert_eq!(frame("c\n", SIZE, false), "\u{1b}[Hc\u{1b}[K\n\u{1b}[J");
    }

    #[test]
    fn a_round_never_scrolls() {
        let text: String = (0..100).map(|line| format!("{line}\n")).collect();
        for height in [2, 10, 100] {
            let frame = frame(&text, Size { height, ..SIZE }, false);
            assert!(frame.matches('\n').count() < height, "{height}: {frame}");
            assert!(frame.contains(" more lines)"), "{height}: {frame}");
        }
        let high = Size {
            height: 101,
            ..SIZE
        };
        assert!(!frame(&text, high, false).contains("more lines"));
    }

    #[test]
    fn a_line_that_wraps_takes_as_many_rows_as_the_terminal_gives_it() {
        let extent = |rows, last| Extent { rows, last };
        for (line, expected) in [
            ("", extent(1, 0)),
            ("0123456789", extent(1, 10)),
            ("0123456789a", extent(2, 1)),
            ("\u{1b}[31m0123456789\u{1b}[0m", extent(1, 10)),
            // A character of two columns does not fit into the last one.
            ("012345678注", extent(2, 2)),
            ("e\u{301}123456789", extent(1, 10)),
        ] {
            assert_eq!(Extent::of(line, 10), expected, "{line}");
        }
        let narrow = Size {
            width: 10,
            height: 5,
        };
        let wide = "x".repeat(25);
        let text = format!("a\n{wide}\nb\nc\n");
        let frame = frame(&text, narrow, false);
        assert!(frame.contains("(3 more lines)"), "{frame}");
        assert!(!frame.contains('x'), "{frame}");
        let full = "0123456789\n";
        assert!(!super::frame(full, narrow, false).contains("9\u{1b}[K"));
    }
}
