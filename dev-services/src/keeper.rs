//! The process that keeps a server, and lets nothing of it outlive us. The protocol is told in `keeper.sh`.

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

/// How often files and ports are looked at while a server starts or ends.
pub(crate) const LOOK: Duration = Duration::from_millis(5);

/// A server's folder and the shell that keeps both. Dropped: the server is ended and the folder removed.
#[derive(Debug)]
pub(crate) struct Keeper {
    folder: PathBuf,
    shell: Child,
    /// `Some` until dropped. The end of this pipe is what the shell waits for.
    words: Option<ChildStdin>,
    paused: bool,
}

/// A name in the temporary folder that no other server has.
pub(crate) fn new_folder(service: &str) -> PathBuf {
    static FOLDERS: AtomicU32 = AtomicU32::new(0);
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tidings-{service}-{}-{number}", std::process::id()))
}

impl Keeper {
    /// Makes `folder` and keeps it. `start` runs `command`; `last_signal` ends it when its data are not
    /// needed any more, and SIGKILL when it has not ended `patience` seconds later.
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
        // A group of its own: Ctrl-C in the terminal is for our owner, not for the servers.
        shell
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(user) = user {
            shell.uid(user.uid).gid(user.gid);
        }
        // Left behind by a process of the same number, before a power cut.
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
                    "create the folder {} (set TMPDIR to another place)",
                    keeper.folder.display()
                );
                return Err(Error::System {
                    doing,
                    source: std::io::Error::other("`mkdir` refuses"),
                });
            }
            sleep(Duration::from_millis(1));
        }
        Ok(keeper)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs the command (again) and returns once it has a process id.
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
                    let reason = "its keeper does not answer".to_owned();
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

    /// Starts the server and returns once it answers.
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
        // Somebody else may answer on the port.
        self.still_starting(service, until)
    }

    /// An error once a server that is being started has ended, or took too long.
    pub(crate) fn still_starting(
        &self,
        service: &'static str,
        until: Instant,
    ) -> Result<(), Error> {
        let reason = match self.ended() {
            Some(code) => format!("it ended with code {code}"),
            None if Instant::now() > until => "it does not answer".to_owned(),
            None => return Ok(()),
        };
        Err(Error::Start {
            service,
            reason,
            log: self.log_end(),
        })
    }

    /// Lets the process `pid` end before the server, for at most 10 s, once we are gone.
    pub(crate) fn outlast(&mut self, pid: u32) -> Result<(), Error> {
        self.say(&format!("after {pid}"))
    }

    fn say(&mut self, word: &str) -> Result<(), Error> {
        let words = self.words.as_mut().expect("the pipe is open until drop");
        writeln!(words, "{word}").map_err(Error::system("talk to the keeper"))
    }

    /// The server's process id, from `start` on.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.number("pid")
    }

    /// The exit code of the server if it has ended since `start`.
    pub(crate) fn ended(&self) -> Option<u32> {
        self.number("ended")
    }

    fn number(&self, file: &str) -> Option<u32> {
        // Without its line end the shell is not done writing.
        fs::read_to_string(self.folder.join(file))
            .ok()?
            .strip_suffix('\n')?
            .parse()
            .ok()
    }

    /// The last lines that the server printed.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&log))
    }

    /// Sends `signal` to the server alone and waits until it has ended.
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

    /// Kills the server with every process it has started: what a power cut would do to it, except that the disk is kept.
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

    /// Stops the server with every process it has started, as a machine that hangs does.
    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        self.paused = true;
        self.pid()
            .map_or(Ok(()), |pid| process::freeze_tree(pid).map(drop))
    }

    /// Lets a paused server go on.
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
                    "it does not end within {} s (open connections, or paused?)",
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
        // A backend that is stopped cannot follow its postmaster, who waits 5 s before it kills it.
        if self.paused {
            let _ = self.resume();
        }
        drop(self.words.take());
        let _ = self.shell.wait();
    }
}

/// As much of a log as fits an error message: the last lines that are not a Java stack trace.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with("\tat "))
        .collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
