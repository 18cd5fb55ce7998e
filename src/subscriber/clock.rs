//! How pauses pass: in real time, or as soon as nothing else is to be done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

/// How pauses pass.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    #[default]
    Real,
    /// Of the in-memory bus.
    Virtual(Arc<VirtualClock>),
}

/// A clock that stands until it is told to go on.
#[derive(Debug)]
pub(crate) struct VirtualClock {
    sleepers: Mutex<Sleepers>,
    began: Instant,
    began_utc: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct Sleepers {
    now: Duration,
    /// By when they are due, and who came first.
    due: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
    came: u64,
}

impl Clock {
    /// Passes this long.
    pub(crate) async fn sleep(&self, time: Duration) {
        match self {
            Self::Real => tokio::time::sleep(time).await,
            Self::Virtual(clock) => clock.sleep(time).await,
        }
    }

    /// The time for durations.
    pub(crate) fn instant(&self) -> Instant {
        match self {
            Self::Real => tokio::time::Instant::now().into_std(),
            Self::Virtual(clock) => clock.began + clock.now(),
        }
    }

    /// The time of day.
    pub(crate) fn utc(&self) -> DateTime<Utc> {
        match self {
            Self::Real => Utc::now(),
            Self::Virtual(clock) => clock.utc(),
        }
    }
}

impl VirtualClock {
    async fn sleep(&self, time: Duration) {
        let (wake, woken) = oneshot::channel();
        {
            let mut sleepers = self.locked();
            sleepers.came += 1;
            let key = (sleepers.now + time, sleepers.came);
            sleepers.due.insert(key, wake);
        }
        let _ = woken.await;
    }

    /// Goes on to the next who is due, and wakes it; false if nobody sleeps.
    pub(crate) fn advance(&self) -> bool {
        let mut sleepers = self.locked();
        // Who gave up sleeping is not waited for.
        sleepers.due.retain(|_, wake| !wake.is_closed());
        let Some(((due, _), wake)) = sleepers.due.pop_first() else {
            return false;
        };
        sleepers.now = due;
        let _ = wake.send(());
        true
    }

    /// When the next sleeper is due; `None` if nobody sleeps.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.locked()
            .due
            .iter()
            .find(|(_, wake)| !wake.is_closed())
            .map(|((due, _), _)| *due)
    }

    /// Passes to this time, before which no sleeper is due.
    pub(crate) fn pass_to(&self, time: Duration) {
        let mut sleepers = self.locked();
        sleepers.now = sleepers.now.max(time);
    }

    /// The time of day: that of the clock's beginning, and what has passed since.
    pub(crate) fn utc(&self) -> DateTime<Utc> {
        self.began_utc + self.now()
    }

    /// How many sleep.
    pub(crate) fn sleepers(&self) -> usize {
        self.locked()
            .due
            .values()
            .filter(|wake| !wake.is_closed())
            .count()
    }

    /// How much time has passed.
    pub(crate) fn now(&self) -> Duration {
        self.locked().now
    }

    fn locked(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl VirtualClock ===

impl Default for VirtualClock {
    fn default() -> Self {
        Self {
            sleepers: Mutex::default(),
            began: Instant::now(),
            began_utc: Utc::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sleepers_wake_in_the_order_in_which_they_are_due() {
        let clock = Arc::new(VirtualClock::default());
        let woken: Arc<Mutex<Vec<u64>>> = Arc::default();
        let tasks: Vec<_> = [30, 10, 20]
            .map(|seconds| {
                let (clock, woken) = (clock.clone(), woken.clone());
                tokio::spawn(async move {
                    clock.sleep(Duration::from_secs(seconds)).await;
                    woken.lock().expect("no panic").push(seconds);
                })
            })
            .into();
        while clock.sleepers() < 3 {
            tokio::task::yield_now().await;
        }
        while clock.advance() {
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!(*woken.lock().expect("no panic"), [10, 20, 30]);
        assert_eq!(
            (clock.now(), clock.sleepers()),
            (Duration::from_secs(30), 0)
        );
    }
}
