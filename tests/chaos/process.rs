//! A process under test, which is killed, stopped and resumed with signals and never outlives the
//! test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Failure;

/// A shell script that prints the process id of the program and exits with the program's exit code.
/// It kills the program when standard input is closed, which also happens when the test is killed.
const KEEPER: &str = r#"
exec 3<&0
"$@" </dev/null >&2 & program=$!
echo $program
{ read -r _ <&3; kill -KILL $program 2>/dev/null; } & leash=$!
wait $program; code=$?
kill $leash 2>/dev/null
exit $code
"#;

/// The time limit for an orderly stop: a relay drains for up to 10 s, and a member for up to 20 s.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The number of log lines in a report.
const LOG_END_LINES: usize = 15;

/// A command line with its environment.
pub(crate) struct Invocation(Command);

impl Invocation {
    /// Starts the program through the shell script [`KEEPER`].
    pub(crate) fn new(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut keeper = Command::new("sh");
        keeper
            .args(["-c", KEEPER, "keeper"])
            .args(words)
            .env("NO_COLOR", "1");
        Self(keeper)
    }

    pub(crate) fn args(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.0.args(words);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Starts the program. Its output is appended to `log`.
    ///
    /// # Errors
    ///
    /// Returns an error if the program cannot be started.
    pub(crate) fn start(mut self, log: &Path) -> Result<Process, Failure> {
        let log_file = File::options().create(true).append(true).open(log)?;
        let mut keeper = self
            .0
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()?;
        let leash = keeper.stdin.take();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        Ok(Process {
            keeper,
            leash,
            pid: line.trim().parse()?,
            log: log.to_owned(),
        })
    }
}

/// A program that is running or has exited.
pub(crate) struct Process {
    keeper: Child,
    leash: Option<ChildStdin>,
    pid: u32,
    log: PathBuf,
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the exit status, or `None` while the program is running.
    ///
    /// # Errors
    ///
    /// Returns an error if the system cannot be queried.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.keeper.try_wait()?)
    }

    /// Kills the program rather than the shell, which exits with it.
    pub(crate) fn kill(mut self) {
        let _ = send("KILL", self.pid);
        let _ = self.keeper.wait();
    }

    /// Sends SIGTERM and waits until the program exits. Kills the program and returns `None` if it
    /// is still running after the limit.
    ///
    /// # Errors
    ///
    /// Returns an error if no signal can be sent.
    pub(crate) fn stop(mut self) -> Result<Option<ExitStatus>, Failure> {
        send("TERM", self.pid)?;
        let until = Instant::now() + STOP_LIMIT;
        while Instant::now() < until {
            if let Some(status) = self.keeper.try_wait()? {
                return Ok(Some(status));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(None)
    }

    /// Returns the last line of the log.
    pub(crate) fn last_words(&self) -> String {
        end_of(&self.log)
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned()
    }
}

// === impl Drop ===

impl Drop for Process {
    fn drop(&mut self) {
        // Closing standard input makes the shell kill a program that is still running or stopped.
        drop(self.leash.take());
        let _ = self.keeper.wait();
    }
}

/// Returns the last lines of a log.
pub(crate) fn end_of(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_END_LINES)..].join("\n")
}

/// Sends a signal.
///
/// # Errors
///
/// Returns an error if the shell cannot be started.
pub(crate) fn send(signal: &str, pid: u32) -> Result<(), Failure> {
    // It is not an error if the process has just exited.
    Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status()?;
    Ok(())
}

/// Creates a folder for the logs of one history.
///
/// # Errors
///
/// Returns an error if it cannot be created.
pub(crate) fn log_folder() -> Result<PathBuf, Failure> {
    static HISTORIES: AtomicU32 = AtomicU32::new(0);
    let number = HISTORIES.fetch_add(1, Ordering::Relaxed);
    let folder =
        std::env::temp_dir().join(format!("tidings-chaos-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
