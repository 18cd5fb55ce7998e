//! Member processes, each of one release, which a supervisor restarts when they exit.

use std::path::{Path, PathBuf};

use super::super::Failure;
use super::super::process::{Invocation, Process, end_of, send};
use super::member::RELEASE;

/// The exit code of a shell whose program was terminated by SIGTERM.
const TERMINATED: i32 = 143;

/// The command line of a member.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) words: Vec<String>,
}

/// All members.
pub(crate) struct Members {
    program: Program,
    database_url: String,
    brokers: String,
    slots: Vec<Slot>,
    /// Descriptions of members that exited by themselves or did not stop in order. Each is a fault.
    ended: Vec<String>,
}

struct Slot {
    process: Option<Process>,
    release: u32,
    log: PathBuf,
}

impl Members {
    /// Creates the set of members without starting one.
    pub(crate) fn new(
        program: &Program,
        count: usize,
        database_url: String,
        brokers: String,
        folder: &Path,
    ) -> Self {
        let slot = |at| Slot {
            process: None,
            release: 0,
            log: folder.join(format!("member-{at}.log")),
        };
        let slots = (0..count).map(slot).collect();
        Self {
            program: program.clone(),
            database_url,
            brokers,
            slots,
            ended: Vec::new(),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Returns the newest release of all members.
    pub(crate) fn release(&self) -> u32 {
        self.slots
            .iter()
            .map(|slot| slot.release)
            .max()
            .unwrap_or_default()
    }

    /// Starts each member that is not running.
    ///
    /// # Errors
    ///
    /// Returns an error if a process cannot be started.
    pub(crate) fn start_all(&mut self) -> Result<(), Failure> {
        (0..self.slots.len()).try_for_each(|at| self.start(at))
    }

    fn start(&mut self, at: usize) -> Result<(), Failure> {
        let slot = &mut self.slots[at];
        if slot.process.is_none() {
            let member = Invocation::new([&self.program.path])
                .args(&self.program.words)
                .env("DATABASE_URL", &self.database_url);
            let member = member
                .env("KAFKA_BROKERS", &self.brokers)
                .env(RELEASE, slot.release.to_string());
            slot.process = Some(member.start(&slot.log)?);
        }
        Ok(())
    }

    /// Restarts members that exited by themselves, and records their exit.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`start_all`](Self::start_all).
    pub(crate) fn revive(&mut self) -> Result<(), Failure> {
        for slot in &mut self.slots {
            let Some(status) = slot
                .process
                .as_mut()
                .map(Process::ended)
                .transpose()?
                .flatten()
            else {
                continue;
            };
            let last_words = slot
                .process
                .take()
                .map(|process| process.last_words())
                .unwrap_or_default();
            self.ended.push(format!(
                "a member of release {} ended by itself ({status}): {last_words}",
                slot.release
            ));
        }
        self.start_all()
    }

    /// Kills a member with `kill -9` and starts another one in its place. Returns whether it was
    /// running.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`start_all`](Self::start_all).
    pub(crate) fn kill(&mut self, which: usize) -> Result<bool, Failure> {
        let at = which % self.slots.len();
        let killed = self.slots[at].process.take().map(Process::kill).is_some();
        self.start(at)?;
        Ok(killed)
    }

    /// Sends SIGSTOP or SIGCONT to a member.
    ///
    /// # Errors
    ///
    /// Returns an error if no signal can be sent.
    pub(crate) fn signal(&self, which: usize, signal: &str) -> Result<(), Failure> {
        let process = self.slots[which % self.slots.len()].process.as_ref();
        process.map_or(Ok(()), |process| send(signal, process.pid()))
    }

    /// Stops a member in order and starts it again.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`start_all`](Self::start_all).
    pub(crate) fn restart(&mut self, which: usize) -> Result<(), Failure> {
        let at = which % self.slots.len();
        self.stop(at)?;
        self.start(at)
    }

    /// Stops a member in order and starts one of the given release in its place.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`start_all`](Self::start_all).
    pub(crate) fn deploy(&mut self, at: usize, release: u32) -> Result<(), Failure> {
        self.stop(at)?;
        self.slots[at].release = release;
        self.start(at)
    }

    /// Stops all members in order.
    ///
    /// # Errors
    ///
    /// Returns an error if no signal can be sent.
    pub(crate) fn stop_all(&mut self) -> Result<(), Failure> {
        for slot in &self.slots {
            slot.process
                .as_ref()
                .map_or(Ok(()), |process| send("TERM", process.pid()))?;
        }
        (0..self.slots.len()).try_for_each(|at| self.stop(at))
    }

    fn stop(&mut self, at: usize) -> Result<(), Failure> {
        let slot = &mut self.slots[at];
        let Some(process) = slot.process.take() else {
            return Ok(());
        };
        match process.stop()? {
            // The signal may arrive before the process has installed its handler.
            Some(status) if status.success() || status.code() == Some(TERMINATED) => {}
            Some(status) => {
                let last_words = end_of(&slot.log);
                let last_words = last_words.lines().last().unwrap_or_default();
                self.ended.push(format!(
                    "a member of release {} did not stop in order ({status}): {last_words}",
                    slot.release
                ));
            }
            None => self.ended.push(format!(
                "a member of release {} did not stop in time",
                slot.release
            )),
        }
        Ok(())
    }

    /// Returns the members that exited by themselves or did not stop in order, each with the last
    /// line of its log.
    pub(crate) fn ended(&self) -> Vec<String> {
        self.ended.clone()
    }

    /// Returns the last lines of every log.
    pub(crate) fn log_ends(&self) -> String {
        self.slots
            .iter()
            .map(|Slot { log, .. }| format!("{}:\n{}\n", log.display(), end_of(log)))
            .collect()
    }
}
