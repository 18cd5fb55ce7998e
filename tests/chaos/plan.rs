//! Parameters of a history, with the command that replays it.

use std::time::{Duration, SystemTime};

use super::schedule::Kind;
use super::words::{self, Unusable, number, number_in};

/// The parameters of one history.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) length: Length,
    /// Passed to the relay, as is `delivery`.
    pub(crate) source: String,
    pub(crate) delivery: String,
    /// The number of relay processes with the same name, one of which leads.
    pub(crate) relays: usize,
    /// The number of brokers, 1 or 3.
    pub(crate) brokers: usize,
    pub(crate) partitions: i32,
    pub(crate) writers: u64,
    pub(crate) faults: Vec<Kind>,
}

/// The condition that ends the nemesis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Length {
    Time(Duration),
    /// Ends after this number of kills of relays with `kill -9`.
    Kills(usize),
}

const USAGE: &str = "\
--minutes N | --seconds N   time for which faults are injected [5 minutes]
--kills N                   inject faults until relays were killed N times with kill -9
--seed N                    determines the transactions and the sequence of faults [the clock]
--source WORD               source of the relay [auto]
--delivery WORD             delivery of the relay [exactly-once]
--relays N                  relay processes with the same name, 1 to 3 [2]
--brokers N                 Kafka brokers, 1 or 3 [1]
--writers N                 writers, at least 2 [6]
--faults WORD,…             faults to inject; see schedule.rs [those that any relay must survive]";

impl Plan {
    /// A history of five minutes with the faults that every relay must survive, and a seed from the
    /// clock.
    fn of_the_clock() -> Self {
        Self {
            seed: seed_of_the_clock(),
            length: Length::Time(Duration::from_secs(300)),
            source: "auto".to_owned(),
            delivery: "exactly-once".to_owned(),
            relays: 2,
            brokers: 1,
            partitions: 5,
            writers: 6,
            faults: Kind::SURVIVABLE.to_vec(),
        }
    }

    /// A single relay without faults, for the histories of subscribers.
    pub(crate) fn of_one_relay(seed: u64) -> Self {
        Self {
            seed,
            relays: 1,
            faults: Vec::new(),
            ..Self::of_the_clock()
        }
    }

    /// Parses the words that [`command`](Self::command) prints after `--`.
    ///
    /// # Errors
    ///
    /// Returns a message with the usage if a word is invalid.
    pub(crate) fn parse<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<Self, Unusable> {
        let (mut plan, mut chosen) = (Self::of_the_clock(), false);
        words::read(words, USAGE, |option, value| {
            chosen |= option == "--faults";
            plan.set(option, value)
        })?;
        if !chosen {
            plan.faults.retain(|kind| kind.suits(plan.brokers));
        }
        match plan.faults.iter().find(|kind| !kind.suits(plan.brokers)) {
            Some(kind) => Err(Unusable::new(format!(
                "--faults {kind} cannot be injected with --brokers {}\n{USAGE}",
                plan.brokers
            ))),
            None => Ok(plan),
        }
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), Unusable> {
        match option {
            "--seed" => self.seed = number(value)?,
            "--minutes" => {
                self.length = Length::Time(Duration::from_secs_f64(60.0 * number::<f64>(value)?))
            }
            "--seconds" => self.length = Length::Time(Duration::from_secs(number(value)?)),
            "--kills" => self.length = Length::Kills(number(value)?),
            "--source" => value.clone_into(&mut self.source),
            "--delivery" => value.clone_into(&mut self.delivery),
            "--relays" => {
                self.relays = number_in(value, "1 to 3", |relays| (1..=3).contains(relays))?
            }
            "--brokers" => {
                self.brokers = number_in(value, "1 or 3", |brokers| matches!(brokers, 1 | 3))?
            }
            "--writers" => self.writers = number(value)?,
            "--faults" => self.faults = words::faults(value)?,
            _ => return Err(Unusable::new("no such option")),
        }
        Ok(())
    }

    /// Returns the command that replays this history.
    pub(crate) fn command(&self) -> String {
        let length = match self.length {
            Length::Time(time) => format!("--seconds {}", time.as_secs()),
            Length::Kills(kills) => format!("--kills {kills}"),
        };
        let Self {
            seed,
            source,
            delivery,
            relays,
            brokers,
            writers,
            ..
        } = self;
        let faults = words::of_faults(&self.faults);
        format!(
            "cargo run --release --example chaos -- --seed {seed} {length} --source {source} \
             --delivery {delivery} --relays {relays} \
             --brokers {brokers} --writers {writers} --faults {faults}"
        )
    }

    /// Returns whether a consumer may read an event twice, and a stalled leader may send events
    /// after its successor.
    pub(crate) fn repeats(&self) -> bool {
        self.delivery == "at-least-once"
    }
}

/// Returns a seed from the clock, for a command without `--seed`.
pub(crate) fn seed_of_the_clock() -> u64 {
    let clock = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::from(clock.subsec_nanos()) ^ clock.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_is_printed_replays_the_plan() {
        let line = "--kills 500 --seed 7 --source auto --delivery exactly-once --relays 3 \
                    --brokers 3 --writers 2 --faults kill,cut-postgres";
        let plan = Plan::parse(line.split(' ')).expect("good words");
        assert_eq!(plan.length, Length::Kills(500));
        let command = plan.command();
        let (_, words) = command.split_once(" -- ").expect("words for the example");
        assert_eq!(Plan::parse(words.split(' ')), Ok(plan));
    }

    #[test]
    fn a_wrong_word_is_named() {
        for (line, said) in [
            ("--relays 4", "1 to 3"),
            ("--faults rain", "rain"),
            ("--seed", "needs a value"),
            ("--speed 1", "no such option"),
            ("--faults kill-two-brokers", "--brokers 1"),
        ] {
            let error = Plan::parse(line.split(' ')).expect_err("refused");
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
