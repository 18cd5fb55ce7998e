//! Output of commands: results on stdout, failures on stderr.
//!
//! Printing never fails or panics, so a reader that closes its pipe cannot interrupt a command that
//! changes something. [`finish`] returns an exit code for a result that could not be written.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::escape::{escaped, escaped_json, escaped_lines};
use super::exit::{FAILED, Failure};
use super::stderr;

/// The first error of stdout. After it, nothing is written.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints one line. A line break in the text is escaped too.
pub(super) fn line(text: impl Display) {
    write(&format!("{}\n", escaped(&text.to_string())));
}

/// Prints lines. Text from rows and records must be [`escaped`] before, so that it cannot forge
/// lines.
pub(super) fn lines(text: &str) {
    write(&escaped_lines(text));
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

/// Prints text of the program itself, which may contain colors.
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
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    if lost.is_none() {
        let mut out = io::stdout().lock();
        *lost = out
            .write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .err();
    }
}
