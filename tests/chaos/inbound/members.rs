//! The members: processes of one group, each of a release, which a supervisor starts again when
//! they end.

use std::path::{Path, PathBuf};

use super::super::Failure;
use super::super::process::{Invocation, Process, end_of, send};
use super::member::RELEASE;

/// The exit code of a shell whose program ended by SIGTERM.
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
    /// Members that ended by themselves. None may.
    ended: Vec<String>,
}

struct Slot {
    process: Option<Process>,
    release: u32,
    log: PathBuf,
}

impl Members {
    /// No member runs yet.
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

    /// The newest release that a member has.
    pub(crate) fn release(&self) -> u32 {
        self.slots
            .iter()
            .map(|slot| slot.release)
            .max()
            .unwrap_or_default()
    }

    /// Starts each member that does not run.
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

    /// Starts members again that ended by themselves, and remembers how.
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

    /// `kill -9` of a member, and a new one in its place. Returns whether it ran.
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

    /// Stops a member in order and starts one of this release in its place.
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
            // The signal may come before the process has a handler for it.
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

    /// Members that ended by themselves or did not stop in order, each with its last words.
    pub(crate) fn ended(&self) -> Vec<String> {
        self.ended.clone()
    }

    /// The end of every log.
    pub(crate) fn log_ends(&self) -> String {
        self.slots
            .iter()
            .map(|Slot { log, .. }| format!("{}:\n{}\n", log.display(), end_of(log)))
            .collect()
    }
}
