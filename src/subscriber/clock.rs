//! The clock for pauses: real time, or virtual time that passes when there is nothing else to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

/// Source of time for pauses.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    #[default]
    Real,
    /// Used by the in-memory bus.
    Virtual(Arc<VirtualClock>),
}

/// A clock that stands still until it is advanced.
#[derive(Debug)]
pub(crate) struct VirtualClock {
    sleepers: Mutex<Sleepers>,
    began: Instant,
    began_utc: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct Sleepers {
    now: Duration,
    /// The sleepers by due time and by order of arrival.
    due: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
    came: u64,
}

impl Clock {
    /// Sleeps for this time.
    pub(crate) async fn sleep(&self, time: Duration) {
        match self {
            Self::Real => tokio::time::sleep(time).await,
            Self::Virtual(clock) => clock.sleep(time).await,
        }
    }

    /// Returns the current time for measuring durations.
    pub(crate) fn instant(&self) -> Instant {
        match self {
            Self::Real => tokio::time::Instant::now().into_std(),
            Self::Virtual(clock) => clock.began + clock.now(),
        }
    }

    /// Returns the current time of day.
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

    /// Advances to the next due sleeper and wakes it. Returns `false` if there is no sleeper.
    pub(crate) fn advance(&self) -> bool {
        let mut sleepers = self.locked();
        // Sleepers whose future was dropped do not count.
        sleepers.due.retain(|_, wake| !wake.is_closed());
        let Some(((due, _), wake)) = sleepers.due.pop_first() else {
            return false;
        };
        sleepers.now = due;
        let _ = wake.send(());
        true
    }

    /// Returns the due time of the next sleeper. Returns `None` if there is no sleeper.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.locked()
            .due
            .iter()
            .find(|(_, wake)| !wake.is_closed())
            .map(|((due, _), _)| *due)
    }

    /// Advances to this time. No sleeper may be due before it.
    pub(crate) fn pass_to(&self, time: Duration) {
        let mut sleepers = self.locked();
        sleepers.now = sleepers.now.max(time);
    }

    /// Returns the time of day: the creation time of the clock plus the virtual time that has
    /// passed.
    pub(crate) fn utc(&self) -> DateTime<Utc> {
        self.began_utc + self.now()
    }

    /// Returns the number of sleepers.
    pub(crate) fn sleepers(&self) -> usize {
        self.locked()
            .due
            .values()
            .filter(|wake| !wake.is_closed())
            .count()
    }

    /// Returns the virtual time that has passed.
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
