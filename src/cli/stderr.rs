//! Output to stderr from a dedicated thread.
//!
//! A full disk, a closed pipe and a reader that hangs must not stop or delay the relay. Lines wait
//! in a bounded queue. A line that does not fit or cannot be written is dropped and counted. Once a
//! line can be written again, the number of dropped lines is reported after it.
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::escape::{escaped, escaped_json, escaped_lines};
use super::progress;

/// Size limit of the queue: minutes of log lines of a busy relay, and little compared to its other
/// memory.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// Time that the exit of the process waits for a reader that hangs.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Pause after a non-blocking pipe has refused a write.
const FULL_PIPE: Duration = Duration::from_millis(10);

static QUEUE: LazyLock<Queue> = LazyLock::new(Queue::start);

/// `true` if lines of this module are written as JSON objects, as the log is.
static JSON: AtomicBool = AtomicBool::new(false);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
}

/// Makes this module write its lines as JSON objects.
pub(super) fn use_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Writes lines that may contain text of rows and records.
pub(super) fn lines(text: &str) {
    QUEUE.push(format!("{}\n", escaped_lines(text)).into_bytes());
}

/// Waits until every line is written, for at most [`LAST_LINES`].
pub(super) fn flush() {
    let waiting = QUEUE.lock();
    let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
    drop(
        QUEUE
            .changed
            .wait_timeout_while(waiting, LAST_LINES, is_busy),
    );
}

/// Returns the metrics of this module as OpenMetrics text without the end mark.
pub(super) fn metrics() -> String {
    let mut registry = Registry::with_prefix("tidings");
    let help = "Log lines that could not be written to stderr, or not in time";
    registry.register("log_lines_dropped", help, QUEUE.dropped.clone());
    let mut text = String::new();
    encode_registry(&mut text, &registry).expect("a string takes any text");
    text
}

/// Reports panics through the queue. The standard hook writes to stderr directly and would wait for
/// a reader that hangs.
pub(super) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic
            .location()
            .map_or_else(|| "an unknown location".to_owned(), ToString::to_string);
        let message = panic
            .payload_as_str()
            .unwrap_or("a payload that is not text");
        let backtrace = std::backtrace::Backtrace::capture();
        let name = thread.name().unwrap_or("unnamed");
        let mut text = format!("thread '{name}' panicked at {place}: {}", escaped(message));
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            text.push_str(&format!("\n{backtrace}"));
        }
        QUEUE.push(entry("ERROR", &text, JSON.load(Ordering::Relaxed)).into_bytes());
    }));
}

/// Writer for the log. Each write is one formatted line.
#[derive(Debug)]
pub(super) struct LogLines;

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The JSON formatter escapes only the C0 controls.
        match std::str::from_utf8(line) {
            Ok(text) if JSON.load(Ordering::Relaxed) => {
                QUEUE.push(escaped_json(text).into_owned().into_bytes())
            }
            _ => QUEUE.push(line.to_vec()),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    fn start() -> Self {
        let queue = Self::default();
        let writer = std::thread::Builder::new()
            .name("stderr".into())
            .spawn(|| QUEUE.write_all_to(io::stderr()));
        if let Err(error) = writer {
            // Later lines fill the queue and are counted.
            let _ = writeln!(
                io::stderr(),
                "cannot start the thread for stderr, so nothing more is logged: {error}"
            );
        }
        queue
    }

    fn push(&self, line: Vec<u8>) {
        let mut waiting = self.lock();
        if !waiting.lines.is_empty() && waiting.bytes + line.len() > WAITING_BYTES_MAX {
            self.dropped.inc();
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line);
        self.changed.notify_all();
    }

    fn write_all_to(&self, out: impl Write) {
        let mut writer = Writer {
            out,
            is_torn: false,
            reported: 0,
        };
        loop {
            let line = self.next();
            progress::beside(|| writer.write(&line, &self.dropped));
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Vec<u8> {
        let is_idle = |waiting: &mut Waiting| waiting.lines.is_empty();
        let waiting = self.changed.wait_while(self.lock(), is_idle);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let line = waiting.lines.pop_front().unwrap_or_default();
        waiting.bytes -= line.len();
        waiting.is_writing = true;
        line
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes lines and reports the number of dropped lines.
struct Writer<W> {
    out: W,
    /// `true` if the last line was only partly written.
    is_torn: bool,
    /// Number of dropped lines that have been reported.
    reported: u64,
}

impl<W: Write> Writer<W> {
    fn write(&mut self, line: &[u8], dropped: &Counter) {
        if self.put(line).is_err() {
            dropped.inc();
            return;
        }
        let count = dropped.get();
        if count > self.reported {
            let text = format!(
                "{} log lines were dropped: stderr could not be written in time",
                count - self.reported
            );
            if self
                .put(entry("WARN", &text, JSON.load(Ordering::Relaxed)).as_bytes())
                .is_ok()
            {
                self.reported = count;
            }
        }
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.put_all(b"\n")?;
            self.is_torn = false;
        }
        self.put_all(line)
    }

    fn put_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.out.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.is_torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock =>
                {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "the thread that writes is not one of the runtime"
                    )]
                    std::thread::sleep(FULL_PIPE)
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Formats an entry as the log does. Untrusted text must be escaped by the caller.
fn entry(level: &str, text: &str, json: bool) -> String {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    if json {
        let line = serde_json::json!({
            "timestamp": time,
            "level": level,
            "message": text,
            "target": "tidings",
        });
        return format!("{}\n", escaped_json(&line.to_string()));
    }
    format!("{time} {level:>5} tidings: {}\n", escaped_lines(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that returns the results of a list, each a number of bytes or an error. After the
    /// list it accepts everything.
    struct Script(VecDeque<Result<usize, ErrorKind>>, Vec<u8>);

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self
                .0
                .pop_front()
                .unwrap_or(Ok(bytes.len()))?
                .min(bytes.len());
            self.1.extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(
        script: impl IntoIterator<Item = Result<usize, ErrorKind>>,
        lines: &[&str],
    ) -> (String, u64) {
        let (out, dropped) = (
            Script(script.into_iter().collect(), Vec::new()),
            Counter::default(),
        );
        let mut writer = Writer {
            out,
            is_torn: false,
            reported: 0,
        };
        lines
            .iter()
            .for_each(|line| writer.write(line.as_bytes(), &dropped));
        (
            String::from_utf8(writer.out.1).expect("text"),
            dropped.get(),
        )
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_reported_with_the_next_one() {
        let full = ErrorKind::StorageFull;
        let (text, dropped) = written([Err(full), Err(full)], &["a\n", "b\n", "c\n", "d\n"]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            (lines.len(), lines[0], lines[2], dropped),
            (3, "c", "d", 2),
            "{text}"
        );
        assert!(
            lines[1].contains("WARN") && lines[1].contains("2 log lines were dropped"),
            "{text}"
        );
    }

    #[test]
    fn a_line_that_was_written_in_part_does_not_run_into_the_next_one() {
        let (text, dropped) = written([Ok(2), Err(ErrorKind::StorageFull)], &["abcd\n", "e\n"]);
        assert!(text.starts_with("ab\ne\n"), "{text}");
        assert_eq!(dropped, 1);
        let full = ErrorKind::WouldBlock;
        let whole = written(
            [Ok(1), Err(full), Err(full), Err(ErrorKind::Interrupted)],
            &["ab\n"],
        );
        assert_eq!(
            whole,
            ("ab\n".into(), 0),
            "a pipe in non-blocking mode is retried"
        );
    }

    #[test]
    fn a_queue_that_nothing_empties_is_bounded_and_takes_lines_again_later() {
        let queue = Queue::default();
        let line = vec![b'x'; WAITING_BYTES_MAX / 4];
        (0..7).for_each(|_| queue.push(line.clone()));
        assert_eq!((queue.lock().lines.len(), queue.dropped.get()), (4, 3));
        assert_eq!(queue.next(), line);
        queue.push(line.clone());
        assert_eq!((queue.lock().lines.len(), queue.dropped.get()), (4, 3));
        let queue = Queue::default();
        queue.push(vec![b'x'; WAITING_BYTES_MAX + 1]);
        assert_eq!(
            queue.dropped.get(),
            0,
            "a single line fits regardless of its size"
        );
    }
}
