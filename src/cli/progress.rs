//! Progress of a long command, on stderr of a terminal. Elsewhere nothing is shown.
//!
//! A terminal whose operator has stopped it with Ctrl-S blocks every write. A command must continue
//! meanwhile: its time limits apply, and `topics grow` holds events back. Therefore a command only
//! stores the line that is to be shown, and a thread of its own draws it.
//!
//! At most one line is shown: a new one replaces it. Output that appears meanwhile goes through
//! [`beside`], so that the line does not mix with it.

use std::io::IsTerminal as _;
use std::sync::{Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar with the number of finished things.
const COUNTED: &str = "{msg} [{bar:24}] {human_pos} of {human_len}, {elapsed}";

/// A line for work of an unknown size.
const WAITING: &str = "{spinner} {msg}, {elapsed}";

/// Interval in which a waiting line moves.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// Time that the exit of the process waits for a stopped terminal.
const LAST_LINE: Duration = Duration::from_secs(1);

/// The line of this process. Unset if no line was shown.
static BOARD: OnceLock<Board> = OnceLock::new();

/// Start of the thread that draws.
static DRAWING: Once = Once::new();

/// A line. Dropping it removes it from the terminal.
pub(super) struct Progress {
    /// `None` if lines are not visible.
    board: Option<&'static Board>,
    number: u64,
}

/// The line to show, and the terminal.
struct Board {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    /// Locked while the terminal is written. Commands never lock it.
    terminal: Mutex<Terminal>,
}

/// The line to show.
#[derive(Default)]
struct Wanted {
    line: Option<Line>,
    /// Number of lines so far.
    lines: u64,
    /// Number of changes.
    version: u64,
    /// Version that was drawn last.
    drawn: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    number: u64,
    message: String,
    finished: u64,
    /// `None` if the size of the work is unknown.
    total: Option<u64>,
}

/// The terminal, with the line that it shows.
struct Terminal {
    target: Box<dyn Fn() -> ProgressDrawTarget + Send>,
    shown: Option<(u64, ProgressBar)>,
}

impl Progress {
    /// Shows a bar for a number of things. `doing` names the work.
    pub(super) fn counted(total: u64, doing: impl Into<String>) -> Self {
        Self::show(Some(total), doing.into())
    }

    /// Shows a line for work of an unknown size.
    pub(super) fn waiting(doing: impl Into<String>) -> Self {
        Self::show(None, doing.into())
    }

    /// Shows a line for work of an unknown size, unless another line is shown.
    pub(super) fn idle(doing: impl Into<String>) -> Option<Self> {
        let is_free = BOARD.get().is_none_or(|board| board.lock().line.is_none());
        is_free.then(|| Self::waiting(doing))
    }

    fn show(total: Option<u64>, doing: String) -> Self {
        if !is_visible() {
            return Self {
                board: None,
                number: 0,
            };
        }
        let board = BOARD.get_or_init(|| Board::new(ProgressDrawTarget::stderr));
        DRAWING.call_once(|| {
            // Without the thread, nothing is shown.
            let _ = std::thread::Builder::new()
                .name("tidings-progress".into())
                .spawn(|| board.draw_all());
        });
        Self::on(board, total, doing)
    }

    fn on(board: &'static Board, total: Option<u64>, message: String) -> Self {
        let mut wanted = board.lock();
        let number = wanted.lines;
        wanted.lines += 1;
        wanted.line = Some(Line {
            number,
            message,
            finished: 0,
            total,
        });
        board.change(&mut wanted);
        Self {
            board: Some(board),
            number,
        }
    }

    /// Returns `true` if the line is visible and no other line has replaced it.
    pub(super) fn is_shown(&self) -> bool {
        self.board.is_some_and(|board| {
            let wanted = board.lock();
            let line = wanted.line.as_ref();
            line.is_some_and(|line| line.number == self.number)
        })
    }

    /// Names the current work.
    pub(super) fn describe(&self, doing: impl Into<String>) {
        let message = doing.into();
        self.change(|line| line.message = message);
    }

    /// Sets the number of finished things.
    pub(super) fn set(&self, finished: u64) {
        self.change(|line| line.finished = finished);
    }

    /// Moves a waiting line, so that an operator sees that the command works.
    pub(super) fn tick(&self) {
        self.change(|_| ());
    }

    fn change(&self, change: impl FnOnce(&mut Line)) {
        let Some(board) = self.board else {
            return;
        };
        let mut wanted = board.lock();
        let line = wanted.line.as_mut();
        if let Some(line) = line.filter(|line| line.number == self.number) {
            change(line);
            board.change(&mut wanted);
        }
    }
}

/// Returns `true` if lines are visible.
pub(super) fn is_visible() -> bool {
    std::io::stderr().is_terminal()
}

/// Runs `write`, which writes to the terminal, while the line is removed. Blocks while the terminal
/// is stopped.
pub(super) fn beside<T>(write: impl FnOnce() -> T) -> T {
    match BOARD.get() {
        Some(board) => board.beside(write),
        None => write(),
    }
}

/// Waits until the last line is removed, for at most [`LAST_LINE`].
pub(super) fn flush() {
    if let Some(board) = BOARD.get() {
        let is_old = |wanted: &mut Wanted| wanted.drawn != wanted.version;
        let waited = board
            .changed
            .wait_timeout_while(board.lock(), LAST_LINE, is_old);
        drop(waited);
    }
}

impl Board {
    fn new(target: impl Fn() -> ProgressDrawTarget + Send + 'static) -> Self {
        Self {
            wanted: Mutex::default(),
            changed: Condvar::new(),
            terminal: Mutex::new(Terminal {
                target: Box::new(target),
                shown: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread that draws.
    fn change(&self, wanted: &mut Wanted) {
        wanted.version += 1;
        self.changed.notify_all();
    }

    /// Draws each change.
    fn draw_all(&self) {
        loop {
            let is_drawn = |wanted: &mut Wanted| wanted.drawn == wanted.version;
            let waited = self.changed.wait_while(self.lock(), is_drawn);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            drop(self.draw());
        }
    }

    /// Draws the line to show. Returns the terminal, which nothing else writes to meanwhile.
    fn draw(&self) -> MutexGuard<'_, Terminal> {
        let mut terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        let (line, version) = {
            let wanted = self.lock();
            (wanted.line.clone(), wanted.version)
        };
        terminal.draw(line);
        self.lock().drawn = version;
        self.changed.notify_all();
        terminal
    }

    fn beside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.draw().shown {
            Some((_, bar)) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Terminal {
    fn draw(&mut self, line: Option<Line>) {
        let number = line.as_ref().map(|line| line.number);
        if let Some((_, old)) = self.shown.take_if(|(shown, _)| Some(*shown) != number) {
            old.finish_and_clear();
        }
        let Some(line) = line else {
            return;
        };
        let (_, bar) = self.shown.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(line.total, (self.target)());
            let style = line.total.map_or(WAITING, |_| COUNTED);
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            (line.number, bar)
        });
        bar.set_message(line.message);
        bar.set_position(line.finished);
        bar.tick();
    }
}

// === impl Drop ===

impl Drop for Progress {
    fn drop(&mut self) {
        let Some(board) = self.board else {
            return;
        };
        let mut wanted = board.lock();
        if wanted
            .line
            .take_if(|line| line.number == self.number)
            .is_some()
        {
            board.change(&mut wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use indicatif::TermLike;

    use super::*;

    /// A terminal that records what is written, with `<clear>` for a line that is removed.
    #[derive(Clone, Debug, Default)]
    struct Recorder(Arc<Mutex<String>>);

    impl Recorder {
        fn push(&self, text: &str) -> io::Result<()> {
            self.0.lock().expect("no panic").push_str(text);
            Ok(())
        }

        fn text(&self) -> String {
            self.0.lock().expect("no panic").clone()
        }
    }

    impl TermLike for Recorder {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.push(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.push(text)
        }
        fn clear_line(&self) -> io::Result<()> {
            self.push("<clear>")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn board(recorder: &Recorder) -> &'static Board {
        let recorder = recorder.clone();
        let target = move || ProgressDrawTarget::term_like(Box::new(recorder.clone()));
        Box::leak(Box::new(Board::new(target)))
    }

    #[test]
    fn a_line_counts_makes_room_for_other_output_and_disappears() {
        let recorder = Recorder::default();
        let board = board(&recorder);
        let progress = Progress::on(board, Some(1_200), "discarding".into());
        progress.set(1_200);
        drop(board.draw());
        let text = recorder.text();
        assert!(
            text.contains("discarding [=") && text.contains("1,200 of 1,200"),
            "{text}"
        );
        board.beside(|| recorder.push("a line")).expect("recorded");
        let text = recorder.text();
        assert!(text.contains("<clear>a line"), "{text}");
        let other = Progress::on(board, None, "waiting".into());
        assert!(other.is_shown() && !progress.is_shown());
        progress.describe("not shown");
        drop(progress);
        assert!(other.is_shown());
        drop(board.draw());
        drop(other);
        drop(board.draw());
        let text = recorder.text();
        assert!(
            text.contains("waiting") && !text.contains("not shown"),
            "{text}"
        );
        assert!(text.ends_with("<clear>"), "{text}");
    }

    #[test]
    fn a_stopped_terminal_does_not_stop_the_command() {
        let recorder = Recorder::default();
        let board = board(&recorder);
        // The terminal is stopped while it is written.
        let stopped = recorder.0.lock().expect("no panic");
        let progress = Progress::on(board, Some(3), "discarding".into());
        let drawing = std::thread::spawn(|| drop(board.draw()));
        progress.set(1);
        while board.terminal.try_lock().is_ok() && !drawing.is_finished() {
            std::thread::yield_now();
        }
        progress.set(2);
        progress.describe("discarding more");
        progress.tick();
        drop(progress);
        assert!(!drawing.is_finished(), "the terminal is still stopped");
        drop(stopped);
        drawing.join().expect("no panic");
        drop(board.draw());
        assert!(recorder.text().ends_with("<clear>"), "{}", recorder.text());
        let wanted = board.lock();
        assert_eq!(wanted.drawn, wanted.version);
    }
}
