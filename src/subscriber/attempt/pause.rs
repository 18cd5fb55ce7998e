//! Pauses of a subscriber: one state for outages and for the kill switch.
//!
//! ```text
//!             a dependency is down              too many events fail
//!  ┌────────┐ ───────────────────▶ ┌────────┐ ───────────────────▶ ┌─────────┐
//!  │ Running│                      │ Outage │                      │ Tripped │
//!  └────────┘ ◀─────────────────── └────────┘                      └─────────┘
//!       ▲       it works again                                          │
//!       └────────────── an event is handled, or no event probes ────────┘
//! ```
//!
//! Records start only while the subscriber runs. Records that already run continue: during an
//! outage each of them retries, and while the kill switch has tripped one of them at a time does.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{MutexGuard, watch};

use super::chance;
use crate::subscriber::{
    KillSwitch, SubscriberState,
    handler::HandlerError,
    options::{kill_switch::Tally, retry::Retry},
    telemetry::statistics::Statistics,
};

/// Pauses between attempts during an outage: short enough that the subscriber resumes quickly.
const OUTAGE_PAUSES: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);

/// The state of a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// A dependency of every event is down.
    Outage,
    /// The kill switch has tripped. An outage during this time changes nothing.
    Tripped,
}

/// An observation that may change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Observed {
    DependencyDown,
    DependencyUp,
    TooManyFailures,
    HandlersWork,
}

impl State {
    fn after(self, observed: Observed) -> Self {
        match (self, observed) {
            (Self::Running, Observed::DependencyDown) => Self::Outage,
            (Self::Outage, Observed::DependencyUp) => Self::Running,
            (_, Observed::TooManyFailures) => Self::Tripped,
            (_, Observed::HandlersWork) => Self::Running,
            (unchanged, _) => unchanged,
        }
    }
}

/// The pause of one subscriber.
pub(crate) struct Pause {
    subscriber: String,
    statistics: Statistics,
    state: watch::Sender<State>,
    /// The same value for checks by every thread on every record. Reading `state` takes a lock and
    /// contends for its cache line.
    running: AtomicBool,
    tally: Mutex<Tally>,
    /// True if the tally contains a failure. Successes are counted only then.
    tallying: AtomicBool,
    /// Held by the event that probes while the kill switch has tripped.
    probe: tokio::sync::Mutex<()>,
    /// Number of events that probe or wait to probe.
    probing: AtomicUsize,
}

impl Pause {
    pub(crate) fn new(subscriber: &str, statistics: &Statistics) -> Self {
        Self {
            subscriber: subscriber.to_owned(),
            statistics: statistics.clone(),
            state: watch::Sender::new(State::Running),
            running: AtomicBool::new(true),
            tally: Mutex::default(),
            tallying: AtomicBool::new(false),
            probe: tokio::sync::Mutex::default(),
            probing: AtomicUsize::new(0),
        }
    }

    /// Whether records may start.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Waits until records may start.
    pub(crate) async fn running(&self) {
        let mut state = self.state.subscribe();
        // `self` holds the sender, so the channel is not closed.
        let _ = state.wait_for(|state| *state == State::Running).await;
    }

    /// Records that a dependency of every event is down.
    pub(super) fn dependency_down(&self, reason: &str) {
        self.observe(Observed::DependencyDown, reason);
    }

    /// Records that the dependency works again.
    pub(super) fn dependency_up(&self) {
        self.observe(Observed::DependencyUp, "");
    }

    /// Records an event that was handled.
    pub(super) fn handled(&self, now: impl FnOnce() -> Instant) {
        if !self.is_running() {
            self.dependency_up();
        }
        if self.tallying.load(Ordering::Relaxed) {
            self.tally_locked().handled(now());
        }
    }

    /// Records an event that is about to be given up. Returns `true` if the kill switch trips or
    /// has tripped already.
    pub(super) fn given_up(&self, now: Instant, switch: &KillSwitch) -> bool {
        self.tallying.store(true, Ordering::Relaxed);
        if self.tally_locked().given_up(now, switch) {
            self.observe(
                Observed::TooManyFailures,
                "too many events fail: the kill switch has tripped, and one event at a time is \
                 tried",
            );
        }
        self.is_tripped()
    }

    pub(super) fn is_tripped(&self) -> bool {
        *self.state.borrow() == State::Tripped
    }

    /// Records that the handlers work again.
    pub(super) fn handlers_work(&self) {
        self.tally_locked().reset();
        self.tallying.store(false, Ordering::Relaxed);
        self.observe(Observed::HandlersWork, "");
    }

    /// Registers an event that probes or waits to probe.
    pub(super) fn probing(&self) -> Probing<'_> {
        self.probing.fetch_add(1, Ordering::AcqRel);
        Probing(self)
    }

    /// Waits until no other event probes.
    pub(super) async fn probe_alone(&self) -> MutexGuard<'_, ()> {
        self.probe.lock().await
    }

    fn tally_locked(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and reports the change.
    fn observe(&self, observed: Observed, reason: &str) {
        let mut change = None;
        // Both fields are written under the lock of `state`, so that they cannot differ.
        self.state.send_if_modified(|state| {
            let before = std::mem::replace(state, state.after(observed));
            self.running
                .store(*state == State::Running, Ordering::Release);
            change = (before != *state).then_some(*state);
            change.is_some()
        });
        let Some(now) = change else {
            return;
        };
        let state = match now {
            State::Running => {
                tracing::info!(subscriber = self.subscriber, "the subscriber continues");
                return self.statistics.set_state(SubscriberState::Running);
            }
            State::Outage => SubscriberState::PausedByOutage,
            State::Tripped => SubscriberState::PausedByKillSwitch,
        };
        tracing::warn!(
            subscriber = self.subscriber,
            reason,
            "the subscriber pauses"
        );
        self.statistics.paused(state, reason);
    }
}

/// An event that probes or waits to probe.
///
/// The last one resets the kill switch when it ends, even if it ends because its partition is
/// revoked. Otherwise no event would be left to detect that the handlers work again. If they do
/// not, the next event that is about to be given up trips the switch again.
pub(super) struct Probing<'p>(&'p Pause);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        let was_last = self.0.probing.fetch_sub(1, Ordering::AcqRel) == 1;
        if was_last && self.0.is_tripped() {
            self.0.observe(Observed::HandlersWork, "");
        }
    }
}

/// An outage as seen by one event.
///
/// No event starts during an outage, so only events that are already being tried can detect its
/// end. Therefore the event that paused the subscriber resumes it when the event ends in any way:
/// handled, failed with another error, or abandoned with its partition. If the dependency is still
/// down, the next event that starts pauses the subscriber again.
pub(crate) struct Outage<'p> {
    pause: &'p Pause,
    tries: u32,
}

impl<'p> Outage<'p> {
    /// Returns a value that has seen no outage yet.
    pub(crate) fn none(pause: &'p Pause) -> Self {
        Self { pause, tries: 0 }
    }

    /// Records a failed attempt and returns the pause before the next one.
    pub(crate) fn continues(&mut self, error: &HandlerError) -> Duration {
        self.tries += 1;
        self.pause.dependency_down(&error.chain());
        Retry::exponential(u32::MAX, OUTAGE_PAUSES).pause(self.tries, chance())
    }

    /// Ends the outage, if there was one.
    pub(crate) fn is_over(&mut self) {
        if std::mem::take(&mut self.tries) > 0 {
            self.pause.dependency_up();
        }
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        self.is_over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_observation_changes_each_state_as_documented() {
        use Observed::{DependencyDown, DependencyUp, HandlersWork, TooManyFailures};
        use State::{Outage, Running, Tripped};
        for (before, observed, after) in [
            (Running, DependencyDown, Outage),
            (Running, DependencyUp, Running),
            (Running, TooManyFailures, Tripped),
            (Running, HandlersWork, Running),
            (Outage, DependencyDown, Outage),
            (Outage, DependencyUp, Running),
            (Outage, TooManyFailures, Tripped),
            (Outage, HandlersWork, Running),
            (Tripped, DependencyDown, Tripped),
            (Tripped, DependencyUp, Tripped),
            (Tripped, TooManyFailures, Tripped),
            (Tripped, HandlersWork, Running),
        ] {
            assert_eq!(before.after(observed), after, "{before:?} {observed:?}");
        }
    }

    #[test]
    fn the_last_event_that_probes_resets_the_kill_switch() {
        let pause = Pause::new("inventory", &Statistics::default());
        let switch = KillSwitch::new(1, Duration::from_secs(60));
        assert!(pause.given_up(Instant::now(), &switch) && !pause.is_running());
        let (first, second) = (pause.probing(), pause.probing());
        drop(first);
        assert!(pause.is_tripped(), "another event probes");
        drop(second);
        assert!(pause.is_running());
    }
}
