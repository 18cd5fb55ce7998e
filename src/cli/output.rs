//! Output of commands: results on stdout, failures on stderr.
//!
//! Printing never fails or panics, so a reader that closes its pipe cannot interrupt a command that
//! changes something. [`finish`] returns an exit code for a result that could not be written.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::escape::{escaped, escaped_json, escaped_lines};
use super::exit::{FAILED, Failure};
use super::{progress, stderr, terminal};

/// The first error of stdout. After it, nothing is written.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Output of a round of `--watch`, which is written as a whole.
static HELD: Mutex<Option<String>> = Mutex::new(None);

/// Keeps all following output back, for [`held`].
pub(super) fn hold() {
    *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(String::new());
}

/// Returns the output since [`hold`]. Later output is written again.
pub(super) fn held() -> String {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.take().unwrap_or_default()
}

/// Prints one line. A line break in the text is escaped too.
pub(super) fn line(text: impl Display) {
    write(&format!("{}\n", escaped(&text.to_string())));
}

/// Prints lines. Text from rows and records must be [`escaped`] before, so that it cannot forge
/// lines.
pub(super) fn lines(text: &str) {
    if !terminal::has_color() {
        return write(&escaped_lines(text));
    }
    // The marks of colors are the only unprintable characters of a table.
    let parts = text.split_inclusive(terminal::is_mark).map(|part| {
        let mark = part
            .chars()
            .next_back()
            .filter(|last| terminal::is_mark(*last));
        let plain = part.trim_end_matches(terminal::is_mark);
        let mark = mark.map_or_else(String::new, String::from);
        format!("{}{mark}", escaped_lines(plain))
    });
    write(&terminal::painted(&parts.collect::<String>()));
}

/// Prints a value as JSON.
///
/// # Errors
///
/// Returns an error if the value cannot be serialized.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed("cannot write JSON", &error))?;
    write(&format!("{}\n", escaped_json(&text)));
    Ok(())
}

/// Prints a value as one line of JSON.
///
/// # Errors
///
/// Returns an error if the value cannot be serialized.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::failed("cannot write JSON", &error))?;
    write(&format!("{}\n", escaped_json(&text)));
    Ok(())
}

/// Returns `true` if nothing can be written any more, for instance because the reader of a pipe has
/// ended.
pub(super) fn is_closed() -> bool {
    LOST.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .is_some()
}

/// Prints text that is escaped already, or of the program itself, which may contain colors.
pub(super) fn own(text: &str) {
    write(text);
}

/// Prints the cause of a failed command.
pub(super) fn failure(failure: &Failure) {
    stderr::lines(&format!("error: {failure}"));
}

/// Returns the exit code of the process. A closed pipe is not a failure, because its reader has
/// stopped reading.
pub(super) fn finish(code: ExitCode) -> ExitCode {
    match LOST.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            stderr::lines(&format!(
                "error: cannot write the result to stdout: {error}"
            ));
            ExitCode::from(FAILED)
        }
        _ => code,
    }
}

fn write(text: &str) {
    if let Some(held) = &mut *HELD.lock().unwrap_or_else(PoisonError::into_inner) {
        return held.push_str(text);
    }
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    if lost.is_none() {
        let mut out = io::stdout().lock();
        let is_terminal = out.is_terminal();
        let mut put = || {
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .err()
        };
        // A pipe or a file does not wait for a terminal that its operator has stopped.
        *lost = match is_terminal {
            true => progress::beside(put),
            false => put(),
        };
    }
}
