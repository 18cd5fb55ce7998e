//! A process under test: killed, stopped and resumed by signals, and ended with the test itself.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Failure;

/// Prints the program's process id, ends with its exit code, and kills it once standard input ends:
/// also when the test was killed.
const KEEPER: &str = r#"
exec 3<&0
"$@" </dev/null >&2 & program=$!
echo $program
{ read -r _ <&3; kill -KILL $program 2>/dev/null; } & leash=$!
wait $program; code=$?
kill $leash 2>/dev/null
exit $code
"#;

/// A relay drains for up to 10 s, and a member for up to 20 s.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Lines of a log that a report shows.
const LOG_END_LINES: usize = 15;

/// A command line with its environment.
pub(crate) struct Invocation(Command);

impl Invocation {
    /// Starts the program through a shell that keeps it.
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

    /// Starts it; its output is appended to `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
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

/// A program that runs, or has ended.
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

    /// Its status, once it has ended.
    ///
    /// # Errors
    /// When the system cannot be queried.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.keeper.try_wait()?)
    }

    /// Kills the program rather than its keeper, which ends with it.
    pub(crate) fn kill(mut self) {
        let _ = send("KILL", self.pid);
        let _ = self.keeper.wait();
    }

    /// Sends SIGTERM and waits for the end. Returns `None` if the program was still running at the
    /// limit; it is killed then.
    ///
    /// # Errors
    /// When no signal can be sent.
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

    /// The last line of its log.
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
        // The end of the leash kills a program that still runs, stopped or not.
        drop(self.leash.take());
        let _ = self.keeper.wait();
    }
}

/// The end of a log.
pub(crate) fn end_of(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_END_LINES)..].join("\n")
}

/// Sends a signal.
///
/// # Errors
/// When there is no shell.
pub(crate) fn send(signal: &str, pid: u32) -> Result<(), Failure> {
    // A process that has just ended is no error.
    Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status()?;
    Ok(())
}

/// A folder for the logs of one history.
///
/// # Errors
/// When it cannot be created.
pub(crate) fn log_folder() -> Result<PathBuf, Failure> {
    static HISTORIES: AtomicU32 = AtomicU32::new(0);
    let number = HISTORIES.fetch_add(1, Ordering::Relaxed);
    let folder =
        std::env::temp_dir().join(format!("tidings-chaos-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
