//! Output from a thread of its own, for a command that serves a client meanwhile.
//!
//! A reader that stops reading, such as a pager, blocks the write to a pipe for any time. The
//! thread that reads from Kafka must not wait with it, because its client would count as hung.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Size of the texts that wait for the reader, beyond which no further one is accepted.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Interval of the signs of life while the reader is slow.
const PAUSE: Duration = Duration::from_millis(100);

/// Queue of texts that a thread prints.
pub(super) struct Printer(Arc<Queue>);

/// The thread that prints.
pub(super) struct Printing {
    queue: Arc<Queue>,
    thread: JoinHandle<ControlFlow<()>>,
}

/// Marks the queue as closed when its thread ends, also if it panics.
struct Closed<'q>(&'q Queue);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    texts: VecDeque<String>,
    bytes: usize,
    /// The printer accepts no more texts.
    has_ended: bool,
    /// Nothing more can be written.
    is_closed: bool,
}

impl Printer {
    /// Starts the thread. `write` returns `Break` if nothing more can be written.
    ///
    /// # Errors
    ///
    /// Returns an error if the thread cannot be started.
    pub(super) fn start(
        write: impl FnMut(&str) -> ControlFlow<()> + Send + 'static,
    ) -> io::Result<(Self, Printing)> {
        let queue = Arc::new(Queue::default());
        let of_thread = queue.clone();
        let thread = std::thread::Builder::new()
            .name("tidings-printer".into())
            .spawn(move || of_thread.write_all(write))?;
        let printing = Printing {
            queue: queue.clone(),
            thread,
        };
        Ok((Self(queue), printing))
    }

    /// Queues a text. Blocks while the queue is full, and calls `alive` at least every [`PAUSE`]
    /// meanwhile. Returns `Break` if nothing more can be written.
    pub(super) fn print(&self, text: String, alive: impl Fn()) -> ControlFlow<()> {
        let Queue { changed, .. } = &*self.0;
        let mut waiting = self.0.lock();
        while !waiting.accepts_none() && waiting.bytes >= WAITING_BYTES_MAX {
            alive();
            let woken = changed.wait_timeout(waiting, PAUSE);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        if waiting.accepts_none() {
            return ControlFlow::Break(());
        }
        waiting.bytes += text.len();
        waiting.texts.push_back(text);
        changed.notify_all();
        ControlFlow::Continue(())
    }

    /// Returns `true` if nothing more can be written.
    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().is_closed
    }
}

impl Printing {
    /// Accepts no more texts, and waits until every text is written. Returns `Break` if they could
    /// not be written. Blocks, but not for a client that hangs while it has the printer.
    pub(super) fn finish(self) -> ControlFlow<()> {
        self.queue.end();
        let written = self.thread.join();
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Waiting {
    fn accepts_none(&self) -> bool {
        self.is_closed || self.has_ended
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts no more texts.
    fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    /// Writes every text. Returns `Break` if one could not be written.
    fn write_all(&self, mut write: impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        let _closed = Closed(self);
        while let Some(text) = self.next() {
            write(&text)?;
            self.lock().bytes -= text.len();
            self.changed.notify_all();
        }
        ControlFlow::Continue(())
    }

    /// Returns the next text, or `None` after the last one.
    fn next(&self) -> Option<String> {
        let is_idle = |waiting: &mut Waiting| waiting.texts.is_empty() && !waiting.has_ended;
        let waiting = self.changed.wait_while(self.lock(), is_idle);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        waiting.texts.pop_front()
    }
}

// === impl Drop ===

impl Drop for Printer {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Time limit for a sign of life. A broken printer gives none.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A printer whose reader reads one text per message.
    fn read_by_hand() -> (Printer, Printing, Sender<()>, Arc<Mutex<Vec<String>>>) {
        let (read, reads) = channel::<()>();
        let written = Arc::new(Mutex::new(Vec::new()));
        let of_thread = written.clone();
        let (printer, printing) = Printer::start(move |text| match reads.recv() {
            Ok(()) => {
                of_thread.lock().expect("no panic").push(text.to_owned());
                ControlFlow::Continue(())
            }
            Err(_) => ControlFlow::Break(()),
        })
        .expect("a thread");
        (printer, printing, read, written)
    }

    #[test]
    fn a_reader_that_stops_holds_up_the_texts_and_not_the_signs_of_life() {
        let (printer, printing, read, written) = read_by_hand();
        let large = "x".repeat(WAITING_BYTES_MAX);
        let alive = || panic!("the first text fits");
        assert!(printer.print(large.clone(), alive).is_continue());
        let (sign, signs) = channel::<()>();
        // The reader continues after three signs of life, or after a time without any.
        let reader = std::thread::spawn(move || {
            let seen = (0..3).take_while(|_| signs.recv_timeout(PATIENCE).is_ok());
            let seen = seen.count();
            for _ in 0..2 {
                let _ = read.send(());
            }
            seen
        });
        let last = printer.print("last".into(), || {
            let _ = sign.send(());
        });
        assert!(last.is_continue());
        assert_eq!(reader.join().expect("no panic"), 3, "signs of life");
        drop(printer);
        assert!(printing.finish().is_continue());
        assert_eq!(*written.lock().expect("no panic"), [large, "last".into()]);
    }

    #[test]
    fn a_reader_that_ends_ends_the_printer() {
        let (printer, printing, read, _) = read_by_hand();
        assert!(printer.print("first".into(), || ()).is_continue());
        drop(read);
        assert!(printing.finish().is_break());
        assert!(printer.is_closed());
        assert!(printer.print("second".into(), || ()).is_break());
    }

    #[test]
    fn texts_are_written_although_their_printer_is_never_dropped() {
        let (printer, printing, read, written) = read_by_hand();
        assert!(
            printer
                .print("before the error".into(), || ())
                .is_continue()
        );
        read.send(()).expect("the thread reads");
        assert!(printing.finish().is_continue());
        assert_eq!(*written.lock().expect("no panic"), ["before the error"]);
        assert!(printer.print("after it".into(), || ()).is_break());
    }

    #[test]
    fn a_thread_that_panics_accepts_no_more_texts() {
        let (printer, printing) = Printer::start(|_| panic!("a fault")).expect("a thread");
        assert!(printer.print("first".into(), || ()).is_continue());
        assert!(printing.thread.join().is_err());
        assert!(printer.is_closed());
        assert!(printer.print("second".into(), || ()).is_break());
    }
}
