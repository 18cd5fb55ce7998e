//! Confirmation of commands whose effect cannot be undone.
//!
//! Such a command flattens [`Confirm`] into its arguments. On a terminal, it states the effect with
//! its size, and asks. Elsewhere, [`require`] refuses it before it connects to any service, unless
//! `--yes` or `--dry-run` is given.

use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command};

use super::exit::Failure;
use super::stderr;

/// Name of the argument, which [`require`] finds in every command.
pub(super) const YES: &str = "yes";

/// Name of the argument that makes a command change nothing.
const DRY_RUN: &str = "dry_run";

/// The answer that confirms.
const ANSWER: &str = "yes";

/// Time that the operator has for an answer. Sessions of the database stay open meanwhile.
const PATIENCE: Duration = Duration::from_secs(600);

/// Number of questions that were asked, plus the number that were answered. It is odd while a
/// question is open.
static QUESTIONS: AtomicU32 = AtomicU32::new(0);

/// Argument of a command whose effect cannot be undone.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Confirm {
    /// Do not ask for confirmation. Required without a terminal
    #[arg(long)]
    yes: bool,
}

/// Use of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// An operator can answer: standard input and stderr are terminals.
    Interactive,
    /// A script.
    Batch,
}

impl Use {
    /// Returns the use of this process.
    pub(super) fn of_process() -> Self {
        match io::stdin().is_terminal() && io::stderr().is_terminal() {
            true => Self::Interactive,
            false => Self::Batch,
        }
    }
}

impl Confirm {
    /// Returns `true` if the command has to ask. It then reads the size of its effect first.
    pub(super) fn must_ask(self) -> bool {
        !self.yes
    }

    /// Asks the operator, unless `--yes` is given. `effect` lists the changes, one per line.
    ///
    /// # Errors
    ///
    /// Returns a failure without any change if the operator does not confirm within ten minutes.
    pub(super) async fn ask(self, effect: &str) -> Result<(), Failure> {
        if !self.must_ask() {
            return Ok(());
        }
        stderr::lines(effect.trim_end());
        stderr::lines(&format!("Type {ANSWER} to continue; anything else ends:"));
        let question = Question::open();
        let read = tokio::task::spawn_blocking(|| {
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).map(|_| answer)
        });
        let answer = tokio::time::timeout(PATIENCE, read).await;
        drop(question);
        match answer {
            Ok(Ok(Ok(answer))) if is_confirmed(&answer) => Ok(()),
            Ok(Ok(Err(error))) => Err(Failure::failed("cannot read the answer", &error)),
            Ok(_) => Err(Failure::Failed("not confirmed; nothing was changed".into())),
            Err(_) => Err(Failure::Failed(format!(
                "no answer within {} min; nothing was changed",
                PATIENCE.as_secs() / 60
            ))),
        }
    }
}

/// An open question.
struct Question;

impl Question {
    fn open() -> Self {
        QUESTIONS.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

// === impl Drop ===

impl Drop for Question {
    fn drop(&mut self) {
        QUESTIONS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns a number that changes when a question is asked or answered.
pub(super) fn questions() -> u32 {
    QUESTIONS.load(Ordering::Relaxed)
}

/// Returns `true` while a question is open.
pub(super) fn is_asking() -> bool {
    questions() % 2 == 1
}

fn is_confirmed(answer: &str) -> bool {
    answer.trim() == ANSWER
}

/// Refuses a command that would have to ask where no operator can answer.
///
/// # Errors
///
/// Returns the usage error.
pub(super) fn require(
    command: &mut Command,
    matches: &ArgMatches,
    usage: Use,
) -> Result<(), clap::Error> {
    let (mut leaf, mut path) = (matches, String::new());
    while let Some((name, inner)) = leaf.subcommand() {
        leaf = inner;
        path.push_str(name);
        path.push(' ');
    }
    let is_set = |id: &str| {
        let flag = leaf.try_get_one::<bool>(id).ok().flatten();
        flag.copied()
    };
    let must_ask = is_set(YES) == Some(false) && is_set(DRY_RUN) != Some(true);
    if must_ask && usage == Use::Batch {
        let rehearsal = match is_set(DRY_RUN) {
            Some(_) => ", or --dry-run to print the effect",
            None => "",
        };
        let text = format!(
            "`tidings {}` cannot be undone, and asks for confirmation only on a terminal\n  \
             -> add --yes to confirm{rehearsal}",
            path.trim_end()
        );
        return Err(command.error(ErrorKind::MissingRequiredArgument, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::help::{command, parse_for};

    /// Commands whose effect cannot be undone.
    const CONFIRMED: [&str; 10] = [
        "relay forget orders",
        "relay rewind --all",
        "relay adopt",
        "relay skip --all",
        "topics grow order --partitions 12",
        "dead-letters discard order.inventory.dlt --all",
        "parked discard --all",
        "subscribers parked discard --group inventory --all",
        "sagas abort 0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10",
        "sagas disown checkout --subscriber orders",
    ];

    /// Commands that read, run a service, add something, or repeat an attempt that failed.
    const UNCONFIRMED: [&str; 37] = [
        "try",
        "migrate",
        "relay",
        "relay list",
        "topics list",
        "check",
        "status",
        "where",
        "verify",
        "tail",
        "publish",
        "console",
        "dead-letters list",
        "dead-letters show",
        "dead-letters replay",
        "parked list",
        "parked show",
        "parked retry",
        "subscribers list",
        "subscribers pause",
        "subscribers resume",
        "subscribers parked list",
        "subscribers parked show",
        "subscribers parked retry",
        "sagas list",
        "sagas show",
        "sagas retry",
        "health",
        "grants migrator",
        "grants publisher",
        "grants relay",
        "grants subscriber",
        "grants operator",
        "init",
        "config schema",
        "completions",
        "man",
    ];

    fn collect(command: &Command, path: &str, all: &mut Vec<(String, bool)>) {
        let mut inner = command
            .get_subcommands()
            .filter(|inner| inner.get_name() != "help")
            .peekable();
        let runs = inner.peek().is_none() || !command.is_subcommand_required_set();
        if runs && !path.is_empty() {
            let has_flag = command.get_arguments().any(|arg| arg.get_id() == YES);
            all.push((path.to_owned(), has_flag));
        }
        for inner in inner {
            let path = format!("{path} {}", inner.get_name());
            collect(inner, path.trim_start(), all);
        }
    }

    #[test]
    fn each_command_is_known_to_ask_or_not_to() {
        let mut all = Vec::new();
        collect(&command(), "", &mut all);
        for (path, has_flag) in &all {
            let is_in = |list: &[&str]| {
                let starts = |line: &&str| *line == path || line.starts_with(&format!("{path} "));
                list.iter().any(starts)
            };
            let asks = CONFIRMED.iter().any(|line| {
                line.starts_with(path.as_str()) && !UNCONFIRMED.contains(&path.as_str())
            });
            assert!(
                is_in(&CONFIRMED) || is_in(&UNCONFIRMED),
                "{path}: add it to CONFIRMED if its effect cannot be undone, else to UNCONFIRMED"
            );
            assert_eq!(
                *has_flag, asks,
                "{path}: flatten Confirm into its arguments"
            );
        }
    }

    #[test]
    fn a_script_must_confirm_and_a_rehearsal_need_not() {
        for line in CONFIRMED {
            let parsed = |extra: &str, usage| {
                let line = format!("tidings {line} {extra}");
                parse_for(line.split_whitespace(), usage)
            };
            let refusal = parsed("", Use::Batch).expect_err(line);
            assert_eq!(refusal.exit_code(), 2, "{line}");
            let text = refusal.to_string();
            assert!(text.contains("-> add --yes"), "{line}: {text}");
            assert!(parsed("--yes", Use::Batch).is_ok(), "{line}");
            assert!(parsed("", Use::Interactive).is_ok(), "{line}");
            if text.contains("--dry-run") {
                assert!(parsed("--dry-run", Use::Batch).is_ok(), "{line}");
            }
        }
    }

    #[test]
    fn only_the_whole_word_confirms() {
        assert!(is_confirmed("yes\n") && is_confirmed(" yes\r\n"));
        for answer in ["", "\n", "y\n", "YES\n", "yes please\n", "no\n"] {
            assert!(!is_confirmed(answer), "{answer:?}");
        }
    }
}
