//! Relay processes with the same name, which a supervisor restarts when they exit.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::Failure;
use super::plan::Plan;
use super::process::{self, Invocation, Process, end_of, send};
use super::random::Random;
use super::schedule::Kind;
use super::stage::RelaySettings;
use super::topic::TEMPLATE;

/// The name of all relays of a history.
pub(crate) const NAME: &str = "chaos";
/// A `like` pattern for the name of their slot.
pub(crate) const SLOT: &str = "tidings_chaos%";

/// The exit codes of a relay that needs an operator: 2 for an invalid command line, 3 for other
/// causes.
const REFUSED: [i32; 2] = [2, 3];

/// Paths of the library that fakes the clock of a process (Debian: `apt-get install faketime`).
const FAKETIME: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];

/// Clock steps, in the notation of libfaketime.
const CLOCK_STEPS: [&str; 4] = ["+1h", "-1h", "+2d", "-2d"];

/// The program of the relay.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The binary `tidings`, or a program that behaves like it if the first argument is `relay`.
    pub(crate) path: PathBuf,
}

/// All relays of a history.
pub(crate) struct Relays {
    program: Program,
    settings: RelaySettings,
    source: String,
    delivery: String,
    folder: PathBuf,
    /// Whether the logs are kept after the history.
    keeps_logs: bool,
    /// Draws the limit of in-flight events for each start. A low limit slows the relay down, so
    /// that faults hit it in the middle of its work.
    windows: Random,
    slots: Vec<Option<Process>>,
    refusal: Option<String>,
    /// The library that fakes the relays' clock, if a plan needs it.
    faketime: Option<&'static str>,
}

impl Relays {
    /// Creates the set of relays without starting one.
    ///
    /// # Errors
    ///
    /// Returns an error if the log folder cannot be created.
    pub(crate) fn new(
        program: &Program,
        plan: &Plan,
        settings: RelaySettings,
    ) -> Result<Self, Failure> {
        let folder = process::log_folder()?;
        let (source, delivery) = (plan.source.clone(), plan.delivery.clone());
        let (windows, slots) = (
            Random::new(plan.seed, u64::MAX),
            (0..plan.relays).map(|_| None).collect(),
        );
        let faketime = plan
            .faults
            .contains(&Kind::ClockSteps)
            .then(faketime)
            .transpose()?;
        let relays = Self {
            program: program.clone(),
            settings,
            source,
            delivery,
            folder,
            keeps_logs: false,
            windows,
            slots,
            refusal: None,
            faketime,
        };
        relays.restore_clock()?;
        Ok(relays)
    }

    /// Writes logs to this folder and keeps it after the history. Must be called before the first
    /// start.
    ///
    /// # Errors
    ///
    /// Returns an error if the folder cannot be created.
    pub(crate) fn keep_logs_in(&mut self, folder: &Path) -> Result<(), Failure> {
        fs::create_dir_all(folder)?;
        fs::remove_dir_all(&self.folder)?;
        (self.folder, self.keeps_logs) = (folder.to_owned(), true);
        self.restore_clock()
    }

    /// Returns the folder of the logs.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts each relay that is not running.
    pub(crate) fn start_all(&mut self) -> Result<(), Failure> {
        for at in 0..self.slots.len() {
            if self.slots[at].is_none() {
                let log = self.folder.join(format!("relay-{at}.log"));
                self.slots[at] = Some(self.start(&log)?);
            }
        }
        Ok(())
    }

    fn start(&mut self, log: &Path) -> Result<Process, Failure> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(library) = self.faketime {
            // `env` executes the relay in place, so the process id stays the same.
            let preload = [
                format!("LD_PRELOAD={library}"),
                format!("FAKETIME_TIMESTAMP_FILE={}", self.clock().display()),
            ];
            words.push("env".into());
            words.extend(preload.map(OsString::from));
            words.extend(["FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"].map(OsString::from));
        }
        words.push(self.program.path.clone().into());
        let relay =
            Invocation::new(words).args(["relay", "--listen", "off", "--log-level", "info"]);
        let relay = relay.args([
            "--name",
            NAME,
            "--topic",
            TEMPLATE,
            "--source",
            &self.source,
            "--delivery",
            &self.delivery,
        ]);
        let relay = relay.args([
            "--in-flight-events",
            *self.windows.pick(&["8192", "8192", "1000", "30"]),
        ]);
        // Half of all changes belong to one account. While a topic refuses one of its events for
        // some seconds, more of its events wait than the default allows.
        let relay = relay.args([
            "--parked-events-per-aggregate",
            "1000000",
            "--parked-events",
            "1000000",
        ]);
        relay
            .env("DATABASE_URL", &self.settings.database_url)
            .env("KAFKA_BROKERS", &self.settings.brokers)
            .start(log)
    }

    /// Restarts relays that have exited, as a supervisor does, unless one of them needs an
    /// operator.
    pub(crate) fn revive(&mut self) -> Result<(), Failure> {
        for slot in &mut self.slots {
            let Some(status) = slot.as_mut().map(Process::ended).transpose()?.flatten() else {
                continue;
            };
            let ended = slot.take().expect("it has just been looked at");
            if status.code().is_some_and(|code| REFUSED.contains(&code)) && self.refusal.is_none() {
                self.refusal = Some(format!(
                    "a relay stopped and needs an operator: {}",
                    ended.last_words()
                ));
            }
        }
        if self.refusal.is_none() {
            self.start_all()
        } else {
            Ok(())
        }
    }

    /// Returns the description of a relay that stopped permanently, with the last line of its log.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.clone()
    }

    /// Steps the clock of all relays.
    ///
    /// # Errors
    ///
    /// Returns an error if the file that controls the clock cannot be written.
    pub(crate) fn step_clock(&self, which: usize) -> Result<(), Failure> {
        self.set_clock(CLOCK_STEPS[which % CLOCK_STEPS.len()])
    }

    /// Steps the clock back to the true time.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`step_clock`](Self::step_clock).
    pub(crate) fn restore_clock(&self) -> Result<(), Failure> {
        self.set_clock("+0")
    }

    fn set_clock(&self, offset: &str) -> Result<(), Failure> {
        let next = self.folder.join("clock.next");
        fs::write(&next, format!("{offset}\n"))?;
        Ok(fs::rename(next, self.clock())?)
    }

    fn clock(&self) -> PathBuf {
        self.folder.join("clock")
    }

    /// Sets the source of relays that are started from now on.
    pub(crate) fn set_source(&mut self, source: &str) {
        source.clone_into(&mut self.source);
    }

    /// Returns the index of the relay with this process id. Defaults to the relay with the number
    /// `which`.
    fn choose(&self, pid: Option<u32>, which: usize) -> usize {
        let named = self
            .slots
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|relay| Some(relay.pid()) == pid));
        named.unwrap_or(which % self.slots.len())
    }

    /// Kills a relay with `kill -9` and starts another one in its place. Returns whether a relay
    /// was running.
    pub(crate) fn kill(&mut self, pid: Option<u32>, which: usize) -> Result<bool, Failure> {
        let at = self.choose(pid, which);
        let killed = self.slots[at].take().map(Process::kill).is_some();
        self.start_all()?;
        Ok(killed)
    }

    /// Sends SIGSTOP or SIGCONT to a relay. Returns its process id.
    pub(crate) fn signal(
        &self,
        pid: Option<u32>,
        which: usize,
        signal: &str,
    ) -> Result<Option<u32>, Failure> {
        let relay = self.slots[self.choose(pid, which)].as_ref();
        relay
            .map(|relay| send(signal, relay.pid()).map(|()| relay.pid()))
            .transpose()
    }

    /// Sends SIGTERM to a relay, waits until it has drained, and starts another one in its place.
    pub(crate) fn restart(&mut self, which: usize) -> Result<(), Failure> {
        let at = self.choose(None, which);
        if let Some(relay) = self.slots[at].take() {
            relay.stop()?;
        }
        self.start_all()
    }

    /// Sends SIGTERM to all relays and kills those that do not exit.
    pub(crate) fn stop_all(&mut self) {
        for slot in &self.slots {
            let _ = slot.as_ref().map(|relay| send("TERM", relay.pid()));
        }
        for relay in self.slots.iter_mut().filter_map(Option::take) {
            let _ = relay.stop();
        }
    }

    /// Returns the last lines of every log.
    pub(crate) fn log_ends(&self) -> String {
        let logs = (0..self.slots.len()).map(|at| self.folder.join(format!("relay-{at}.log")));
        logs.map(|log| format!("{}:\n{}\n", log.display(), end_of(&log)))
            .collect()
    }
}

// === impl Drop ===

impl Drop for Relays {
    fn drop(&mut self) {
        self.slots.clear();
        if !self.keeps_logs {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn faketime() -> Result<&'static str, Failure> {
    let found = FAKETIME
        .into_iter()
        .find(|library| Path::new(library).exists());
    found.ok_or_else(|| "clock-steps needs libfaketime (Debian: apt-get install faketime)".into())
}
