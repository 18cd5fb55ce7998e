//! Earliest known due time for the timer of this process.
//!
//! The wakeup covers what this process has stored. The timer finds changes of other processes by
//! polling.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

#[derive(Debug, Default)]
pub(super) struct Wakeup {
    at: Mutex<Option<Instant>>,
    earlier: Notify,
}

impl Wakeup {
    /// Makes the wakeup ring at `at` or earlier.
    pub(super) fn set(&self, at: Instant) {
        let mut earliest = self.at();
        if earliest.is_none_or(|known| at < known) {
            *earliest = Some(at);
            self.earlier.notify_one();
        }
    }

    /// Waits until the wakeup rings, or until `latest`. Resets the wakeup, because the caller then
    /// checks all due sagas.
    pub(super) async fn ring(&self, latest: Instant) {
        loop {
            let at = self.at().map_or(latest, |at| at.min(latest));
            tokio::select! {
                () = sleep_until(at) => break,
                () = self.earlier.notified() => {}
            }
        }
        *self.at() = None;
    }

    fn at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_earliest_time_it_was_set_to_and_at_the_latest_otherwise() {
        let (wakeup, began) = (Arc::new(Wakeup::default()), Instant::now());
        wakeup.set(began + 5 * SECOND);
        wakeup.set(began + 9 * SECOND);
        let setting = wakeup.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SECOND).await;
            setting.set(began + 2 * SECOND);
        });
        wakeup.ring(began + 60 * SECOND).await;
        assert_eq!(
            began.elapsed().as_secs(),
            2,
            "set to an earlier time during the wait"
        );
        wakeup.ring(began + 60 * SECOND).await;
        assert_eq!(
            began.elapsed().as_secs(),
            60,
            "the wakeup is reset after it has rung"
        );
        wakeup.set(began);
        wakeup.ring(began + 99 * SECOND).await;
        assert_eq!(
            began.elapsed().as_secs(),
            60,
            "a time in the past rings at once"
        );
    }
}
