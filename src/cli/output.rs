//! Everything that commands print: results to stdout, failures to stderr.
//!
//! Printing never fails and never panics, so a reader that closes its pipe cannot interrupt a command that changes
//! something. [`finish`] turns a result that could not be written into an exit code.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::escape::{escaped, escaped_json, escaped_lines};
use super::exit::{FAILED, Failure};
use super::stderr;

/// The first error of stdout. Nothing is written after it.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints one line. A line break within it is escaped, too.
pub(super) fn line(text: impl Display) {
    write(&format!("{}\n", escaped(&text.to_string())));
}

/// Prints lines. Text from rows and records must have passed through [`escaped`], so that its line breaks forge no line.
pub(super) fn lines(text: &str) {
    write(&escaped_lines(text));
}

/// Prints a value as JSON.
///
/// # Errors
/// When the value cannot be written as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed("cannot write JSON", &error))?;
    write(&format!("{}\n", escaped_json(&text)));
    Ok(())
}

/// Prints text of the program itself, which may hold colors.
pub(super) fn own(text: &str) {
    write(text);
}

/// Prints why a command failed.
pub(super) fn failure(failure: &Failure) {
    stderr::lines(&format!("error: {failure}"));
}

/// Returns the code to exit with. A closed pipe is no failure: its reader has read enough.
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
