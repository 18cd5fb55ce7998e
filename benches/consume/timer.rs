//! A timer that is precise to some hundred microseconds: tokio's takes 2.1 ms for one. It looks at the clock by itself while anybody waits, so that who waits wakes
//! nobody: with a wake-up for each, half of what is measured would be the timer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How often it looks at the clock; the kernel adds 50 µs.
const TICK: Duration = Duration::from_micros(50);

/// Wakes whoever waits, by a thread of its own.
#[derive(Clone)]
pub(crate) struct Timer(Arc<Waiting>);

/// Who waits. All wait equally long, so that whoever came first is due first.
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
