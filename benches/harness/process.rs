//! A relay as a child process that never outlives the benchmark, and its cost (Linux: `/proc`).

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use super::Outcome;

/// Starts the program, prints its process id, and kills it when standard input is closed.
///
/// Standard input is closed even if the benchmark itself was killed.
const KEEPER: &str = r#""$@" </dev/null >&2 & child=$!; echo $child
read -r _; kill -KILL $child 2>/dev/null; wait"#;

/// Time that a relay has to exit after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Unit of the CPU times in `/proc/PID/stat` (USER_HZ, a constant of the Linux interface).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running relay.
pub(crate) struct Process {
    keeper: Child,
    leash: Option<ChildStdin>,
    pid: u32,
    log: PathBuf,
}

/// Cost of a process so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_megabytes: f64,
}

impl Process {
    /// Starts `program`. Its output goes to the file `log`.
    pub(crate) fn start(program: &Path, arguments: &[String], log: &Path) -> Outcome<Self> {
        let mut keeper = Command::new("sh");
        keeper
            .args(["-c", KEEPER, "keeper"])
            .arg(program)
            .args(arguments);
        let mut keeper = keeper
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(log)?)
            .spawn()?;
        let leash = keeper.stdin.take();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        Ok(Self {
            keeper,
            leash,
            pid: line.trim().parse()?,
            log: log.to_owned(),
        })
    }

    /// Verifies that the process is still running.
    ///
    /// # Errors
    ///
    /// Returns the end of the log if the process has exited.
    pub(crate) fn still_runs(&self) -> Outcome<()> {
        if !has_ended(self.pid) {
            return Ok(());
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        Err(format!(
            "the relay exited unexpectedly:\n{}",
            lines[lines.len().saturating_sub(15)..].join("\n")
        )
        .into())
    }

    /// Returns the cost of the process since its start.
    pub(crate) fn cost(&self) -> Cost {
        Cost {
            cpu_seconds: cpu_seconds(self.pid),
            peak_megabytes: status_megabytes(self.pid, "VmHWM:"),
        }
    }

    /// Sends SIGTERM and waits until the process has exited. Kills it after [`STOP_LIMIT`].
    pub(crate) fn stop(mut self) -> Outcome<()> {
        Command::new("kill")
            .args(["-TERM", &self.pid.to_string()])
            .status()?;
        let until = Instant::now() + STOP_LIMIT;
        while !has_ended(self.pid) && Instant::now() < until {
            sleep(Duration::from_millis(20));
        }
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        drop(self.leash.take());
        let _ = self.keeper.wait();
    }
}

// === impl Drop ===

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// CPU seconds of a process, user and system.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may contain spaces. Fields 14 and 15 of proc_pid_stat(5).
    let fields = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').collect::<Vec<_>>())
        .unwrap_or_default();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|ticks| ticks.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

fn status_megabytes(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| {
        line.strip_prefix(field)?
            .split_ascii_whitespace()
            .next()?
            .parse::<f64>()
            .ok()
    });
    kilobytes.unwrap_or(0.0) / 1024.0
}
