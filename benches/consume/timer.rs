//! A timer with a precision of a few hundred microseconds. A sleep of 1 ms takes 2.1 ms with
//! tokio's timer.
//!
//! The timer thread polls the clock while tasks wait, so that a new waiter does not wake it. With
//! one wake-up per waiter, half of the measured time would be the timer's.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Polling interval of the thread; the kernel adds about 50 µs.
const TICK: Duration = Duration::from_micros(50);

/// Wakes waiting tasks from its own thread.
#[derive(Clone)]
pub(crate) struct Timer(Arc<Waiting>);

/// The waiting tasks. All wait equally long, so they become due in the order of their arrival.
#[derive(Default)]
struct Waiting {
    due: Mutex<VecDeque<(Instant, oneshot::Sender<()>)>>,
    somebody: Condvar,
}

impl Timer {
    pub(crate) fn start() -> Self {
        let waiting = Arc::<Waiting>::default();
        let timer = Self(waiting.clone());
        std::thread::spawn(move || wake(&waiting));
        timer
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        let (wake, woken) = oneshot::channel();
        let first = {
            let mut due = self.0.due.lock().unwrap_or_else(PoisonError::into_inner);
            due.push_back((Instant::now() + time, wake));
            due.len() == 1
        };
        if first {
            self.0.somebody.notify_one();
        }
        let _ = woken.await;
    }
}

fn wake(waiting: &Waiting) -> ! {
    loop {
        let mut due = waiting.due.lock().unwrap_or_else(PoisonError::into_inner);
        while due.is_empty() {
            due = waiting
                .somebody
                .wait(due)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let now = Instant::now();
        let count = due.partition_point(|(time, _)| *time <= now);
        let woken: Vec<_> = due.drain(..count).collect();
        drop(due);
        for (_, wake) in woken {
            let _ = wake.send(());
        }
        std::thread::sleep(TICK);
    }
}
