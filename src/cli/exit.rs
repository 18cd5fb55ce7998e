//! Exit codes and failures of commands.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use super::config::Faults;
use super::escape::escaped;
use crate::postgres::errors;

/// Success.
pub(super) const DONE: u8 = 0;
/// Failed; a retry may succeed.
pub(super) const FAILED: u8 = 1;
/// The command line or the configuration is wrong (clap uses the same code).
pub(super) const CONFIGURATION: u8 = 2;
/// Requires an action of the operator; a retry does not help.
pub(super) const REFUSED: u8 = 3;
/// The shutdown grace expired; the next relay sends the events in flight again.
pub(super) const GRACE_EXCEEDED: u8 = 4;
/// A second signal: exited immediately. The value is 128 + SIGINT, as in shells.
pub(super) const INTERRUPTED: u8 = 130;

/// The exit codes in `--help`.
pub(super) const HELP: &str = "Exit codes:
  0    done: migrated, drained or printed; `check` found no failure
  1    failed: a service cannot be reached, or `check` found a failure; trying again may help
  2    the command line or the configuration is wrong
  3    an operator must solve the problem that the message names; trying again does not help
  4    --shutdown-grace ran out; the next relay sends the events in flight again
  130  a second signal ended the process at once";

/// Cause of a failed command.
#[derive(Debug)]
pub(super) enum Failure {
    Configuration(Faults),
    Options(String),
    Failed(String),
    Refused(String),
    GraceExceeded(String),
}

impl Failure {
    /// Returns a failure with the failed operation, the error and all its causes.
    pub(super) fn failed(doing: &str, error: &(dyn Error + 'static)) -> Self {
        Failure::Failed(format!("{doing}: {}", with_causes(error)))
    }

    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Configuration(_) | Failure::Options(_) => CONFIGURATION,
            Failure::Failed(_) => FAILED,
            Failure::Refused(_) => REFUSED,
            Failure::GraceExceeded(_) => GRACE_EXCEEDED,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Configuration(faults) => write!(f, "{faults}"),
            Failure::Options(text)
            | Failure::Failed(text)
            | Failure::Refused(text)
            | Failure::GraceExceeded(text) => f.write_str(text),
        }
    }
}

/// Formats an error and its causes in one line. The text is escaped, because parts of it come from
/// servers and rows.
pub(super) fn with_causes(error: &(dyn Error + 'static)) -> String {
    escaped(&errors::with_causes(error)).into_owned()
}
