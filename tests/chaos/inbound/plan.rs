//! Parameters of a history, with the command that replays it.

use std::path::PathBuf;
use std::time::Duration;

use super::super::plan::seed_of_the_clock;
use super::super::words::{self, Unusable, number, number_in};
use super::schedule::Kind;

/// The parameters of one history.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// The time for which faults are injected.
    pub(crate) length: Duration,
    /// The number of member processes.
    pub(crate) members: usize,
    pub(crate) writers: u64,
    pub(crate) faults: Vec<Kind>,
    /// The folder for logs. If `None`, the logs are removed after the history.
    pub(crate) logs: Option<PathBuf>,
}

const USAGE: &str = "\
inbound                     subscribers and sagas; without this word, the relay
--minutes N | --seconds N   time for which faults are injected [5 minutes]
--seed N                    determines the transactions and the sequence of faults [the clock]
--members N                 member processes, 1 to 6 [3]
--writers N                 2 to 20; one in three places orders [4]
--faults all | WORD,…       faults to inject; see inbound/schedule.rs [all]
--logs FOLDER               folder for the logs of relay and members [removed at the end]";

impl Plan {
    fn of_the_clock() -> Self {
        Self {
            seed: seed_of_the_clock(),
            length: Duration::from_secs(300),
            members: 3,
            writers: 4,
            faults: Kind::all(),
            logs: None,
        }
    }

    /// Parses the words that [`command`](Self::command) prints after `inbound`.
    ///
    /// # Errors
    ///
    /// Returns a message with the usage if a word is invalid.
    pub(crate) fn parse<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<Self, Unusable> {
        let mut plan = Self::of_the_clock();
        words::read(words, USAGE, |option, value| plan.set(option, value))?;
        Ok(plan)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), Unusable> {
        match option {
            "--seed" => self.seed = number(value)?,
            "--minutes" => self.length = Duration::from_secs_f64(60.0 * number::<f64>(value)?),
            "--seconds" => self.length = Duration::from_secs(number(value)?),
            "--members" => {
                self.members = number_in(value, "1 to 6", |members| (1..=6).contains(members))?
            }
            "--writers" => {
                self.writers = number_in(value, "2 to 20", |writers| (2..=20).contains(writers))?
            }
            "--faults" if value == "all" => self.faults = Kind::all(),
            "--faults" => self.faults = words::faults(value)?,
            "--logs" => self.logs = Some(value.into()),
            _ => return Err(Unusable::new("no such option")),
        }
        Ok(())
    }

    /// Returns the command that replays this history.
    pub(crate) fn command(&self) -> String {
        let Self {
            seed,
            members,
            writers,
            ..
        } = self;
        let faults = if self.faults == Kind::all() {
            "all".to_owned()
        } else {
            words::of_faults(&self.faults)
        };
        let seconds = self.length.as_secs();
        format!(
            "cargo run --release --example chaos -- inbound --seed {seed} --seconds {seconds} \
             --members {members} --writers {writers} \
             --faults {faults}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_is_printed_replays_the_plan() {
        for line in [
            "--seconds 30 --seed 7 --members 2 --writers 3 --faults kill,read-only",
            "--seconds 9 --seed 8 --faults all",
        ] {
            let plan = Plan::parse(line.split(' ')).expect("good words");
            let command = plan.command();
            let (_, words) = command
                .split_once(" inbound ")
                .expect("words for the example");
            assert_eq!(Plan::parse(words.split(' ')), Ok(plan));
        }
    }

    #[test]
    fn a_wrong_word_is_named() {
        for (line, reported) in [
            ("--members 7", "1 to 6"),
            ("--faults rain", "rain"),
            ("--seed", "needs a value"),
            ("--speed 1", "no such option"),
        ] {
            let error = Plan::parse(line.split(' ')).expect_err("refused");
            assert!(error.to_string().contains(reported), "{error}");
        }
    }
}
