//! Exit codes and failures of commands.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use super::config::Faults;
use super::escape::escaped;
use crate::inspect::aggregate::NameError;
use crate::postgres::errors;

/// Success.
pub(super) const DONE: u8 = 0;
/// Failed; a retry may succeed.
pub(super) const FAILED: u8 = 1;
/// The command line or the configuration is wrong (clap uses the same code).
pub(super) const CONFIGURATION: u8 = 2;
/// Requires an action of the operator; a retry does not help.
pub(super) const REFUSED: u8 = 3;
/// Events were in flight at the end: the shutdown grace expired, or the producer failed meanwhile.
/// The next relay sends them again.
pub(super) const NOT_DRAINED: u8 = 4;
/// `verify` found a difference between the topics and the outbox.
pub(super) const DIFFERENT: u8 = 5;
/// A second signal: exited immediately. The value is 128 + SIGINT, as in shells.
pub(super) const INTERRUPTED: u8 = 130;

/// The exit codes in `--help`.
pub(super) const HELP: &str = "Exit codes:
  0    done: migrated, drained or printed; `check` found no failure
  1    failed: a service cannot be reached, or `check` found a failure; trying again may help
  2    the command line or the configuration is wrong
  3    an operator must solve the problem that the message names; trying again does not help
  4    --shutdown-grace ran out or the producer failed; the next relay sends events in flight again
  5    `verify` found that the topics differ from the outbox
  130  a second signal ended the process at once";

/// Cause of a failed command.
#[derive(Debug)]
pub(super) enum Failure {
    Configuration(Faults),
    Options(String),
    Failed(String),
    Refused(String),
    NotDrained(String),
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
            Failure::NotDrained(_) => NOT_DRAINED,
        })
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Failure::Options(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Configuration(faults) => write!(f, "{faults}"),
            Failure::Options(text)
            | Failure::Failed(text)
            | Failure::Refused(text)
            | Failure::NotDrained(text) => f.write_str(text),
        }
    }
}

/// Formats an error and its causes in one line. The text is escaped, because parts of it come from
/// servers and rows.
pub(super) fn with_causes(error: &(dyn Error + 'static)) -> String {
    escaped(&errors::with_causes(error)).into_owned()
}
