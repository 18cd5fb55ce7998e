//! The process that runs a server and ensures that nothing of it outlives the owner. `keeper.sh`
//! describes the protocol.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::user::User;
use crate::{Error, process};

/// Interval between checks of files and ports while a server starts or exits.
pub(crate) const LOOK: Duration = Duration::from_millis(5);

/// A server's folder and the shell that manages both. On drop, the server is ended and the folder
/// removed.
#[derive(Debug)]
pub(crate) struct Keeper {
    folder: PathBuf,
    shell: Child,
    /// `Some` until dropped. The shell ends the server when this pipe is closed.
    words: Option<ChildStdin>,
    paused: bool,
}

/// Returns a path in the temporary folder that no other server uses.
pub(crate) fn new_folder(service: &str) -> PathBuf {
    static FOLDERS: AtomicU32 = AtomicU32::new(0);
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tidings-{service}-{}-{number}", std::process::id()))
}

impl Keeper {
    /// Creates `folder`. `start` runs `command` in it. At the end, the server receives
    /// `last_signal`, and SIGKILL if it has not exited after `patience` seconds.
    pub(crate) fn new(
        folder: PathBuf,
        user: Option<User>,
        last_signal: &str,
        patience: u32,
        command: Vec<OsString>,
    ) -> Result<Self, Error> {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", include_str!("keeper.sh"), "keeper"])
            .arg(&folder)
            .arg(last_signal)
            .arg(patience.to_string())
            .args(command);
        // A separate process group, because Ctrl-C in the terminal is meant for the owner and not
        // for the servers.
        shell
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(user) = user {
            shell.uid(user.uid).gid(user.gid);
        }
        // A process with the same id may have left the folder behind before a power cut.
        let _ = fs::remove_dir_all(&folder);
        let mut shell = shell.spawn().map_err(Error::system("run `sh`"))?;
        let words = shell.stdin.take();
        let mut keeper = Self {
            folder,
            shell,
            words,
            paused: false,
        };
        while !keeper.folder.is_dir() {
            if !matches!(keeper.shell.try_wait(), Ok(None)) {
                let doing = format!(
                    "create the folder {} (set TMPDIR to another folder)",
                    keeper.folder.display()
                );
                return Err(Error::System {
                    doing,
                    source: std::io::Error::other("`mkdir` failed"),
                });
            }
            sleep(Duration::from_millis(1));
        }
        Ok(keeper)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs the command, possibly again, and returns its process id.
    pub(crate) fn start(&mut self, service: &'static str) -> Result<u32, Error> {
        for file in ["pid", "ended"] {
            let _ = fs::remove_file(self.folder.join(file));
        }
        self.say("start")?;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match self.pid() {
                Some(pid) => return Ok(pid),
                None if Instant::now() > until => {
                    let reason = "its keeper does not respond".to_owned();
                    return Err(Error::Start {
                        service,
                        reason,
                        log: self.log_end(),
                    });
                }
                None => sleep(LOOK),
            }
        }
    }

    /// Starts the server. Returns when it responds.
    pub(crate) fn start_until(
        &mut self,
        service: &'static str,
        limit: Duration,
        answers: impl Fn() -> bool,
    ) -> Result<(), Error> {
        self.start(service)?;
        let until = Instant::now() + limit;
        while !answers() {
            self.still_starting(service, until)?;
            sleep(LOOK);
        }
        // Another process may respond on the port.
        self.still_starting(service, until)
    }

    /// Returns an error if a starting server has exited or exceeded its time limit.
    pub(crate) fn still_starting(
        &self,
        service: &'static str,
        until: Instant,
    ) -> Result<(), Error> {
        let reason = match self.ended() {
            Some(code) => format!("it exited with code {code}"),
            None if Instant::now() > until => "it does not respond".to_owned(),
            None => return Ok(()),
        };
        Err(Error::Start {
            service,
            reason,
            log: self.log_end(),
        })
    }

    /// Makes the keeper wait up to 10 s for the process `pid` to exit before it ends the server,
    /// once the owner has ended.
    pub(crate) fn outlast(&mut self, pid: u32) -> Result<(), Error> {
        self.say(&format!("after {pid}"))
    }

    fn say(&mut self, word: &str) -> Result<(), Error> {
        let words = self.words.as_mut().expect("the pipe is open until drop");
        writeln!(words, "{word}").map_err(Error::system("write to the keeper"))
    }

    /// Returns the server's process id. `None` before `start`.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.number("pid")
    }

    /// Returns the exit code of the server if it has exited since `start`.
    pub(crate) fn ended(&self) -> Option<u32> {
        self.number("ended")
    }

    fn number(&self, file: &str) -> Option<u32> {
        // Without the line end, the shell has not finished writing.
        fs::read_to_string(self.folder.join(file))
            .ok()?
            .strip_suffix('\n')?
            .parse()
            .ok()
    }

    /// Returns the last lines of the server's output.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&log))
    }

    /// Sends `signal` to the server process only and waits until it has exited.
    pub(crate) fn end_by(
        &self,
        signal: &str,
        limit: Duration,
        service: &'static str,
    ) -> Result<(), Error> {
        if let Some(pid) = self.pid().filter(|_| self.ended().is_none()) {
            process::signal(signal, &[pid])?;
        }
        self.wait_for_end(limit, service)
    }

    /// Kills the server with all its descendants. This has the effect of a power cut, except that
    /// the contents of the disk are kept.
    pub(crate) fn kill(&self, service: &'static str) -> Result<(), Error> {
        let Some(pid) = self.pid().filter(|_| self.ended().is_none()) else {
            return Ok(());
        };
        let tree = process::freeze_tree(pid)?;
        process::signal("KILL", &tree)?;
        self.wait_for_end(Duration::from_secs(10), service)?;
        process::wait_until_gone(&tree, Duration::from_secs(10));
        Ok(())
    }

    /// Pauses the server with all its descendants, as on a machine that hangs.
    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        self.paused = true;
        self.pid()
            .map_or(Ok(()), |pid| process::freeze_tree(pid).map(drop))
    }

    /// Resumes a paused server.
    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        self.paused = false;
        self.pid()
            .map_or(Ok(()), |pid| process::signal("CONT", &process::tree(pid)))
    }

    fn wait_for_end(&self, limit: Duration, service: &'static str) -> Result<(), Error> {
        let until = Instant::now() + limit;
        while self.pid().is_some() && self.ended().is_none() {
            if Instant::now() > until {
                let reason = format!(
                    "it did not exit within {} s (it may have open connections or be paused)",
                    limit.as_secs()
                );
                return Err(Error::Start {
                    service,
                    reason,
                    log: self.log_end(),
                });
            }
            sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The log is removed with the folder, and it may explain why a test fails.
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.folder.join("log").display(), self.log_end());
        }
        // A paused backend cannot exit with its postmaster, which waits 5 s before it kills the
        // backend.
        if self.paused {
            let _ = self.resume();
        }
        drop(self.words.take());
        let _ = self.shell.wait();
    }
}

/// Returns an excerpt of a log for an error message: the last lines that are not part of a Java
/// stack trace.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with("\tat "))
        .collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
