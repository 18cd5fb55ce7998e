//! Pauses of a subscriber: one state for outages, the kill switch and operators.
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
//! In each of these states an operator can pause the subscriber, and only an operator ends that
//! pause. The state then continues from where it was.
//!
//! Records start only while the subscriber runs and no operator pauses it. Records that already run
//! continue: during an outage each of them retries, and while the kill switch has tripped one of
//! them at a time does. During the pause of an operator, an attempt that has begun ends, and no
//! other one begins.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::sync::{MutexGuard, watch};

use crate::backoff::random;
use crate::subscriber::{
    KillSwitch, SubscriberState,
    handler::HandlerError,
    options::{kill_switch::Tally, retry::Retry},
    telemetry::statistics::Statistics,
};

/// Pauses between attempts during an outage: short enough that the subscriber resumes quickly.
const OUTAGE_PAUSES: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);

/// The reason in the subscriber itself for which no record starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A dependency of every event is down.
    Outage,
    /// The kill switch has tripped. An outage during this time changes nothing.
    Tripped,
}

/// A pause by an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OperatorPause {
    pub(crate) since: DateTime<Utc>,
    pub(crate) reason: Option<String>,
    pub(crate) by: String,
}

/// The state of a subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    fault: Fault,
    operator: Option<Arc<OperatorPause>>,
}

/// An observation that may change the state.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Observed {
    DependencyDown,
    DependencyUp,
    TooManyFailures,
    HandlersWork,
    /// The decision of an operator. `None` if no operator pauses the subscriber.
    Operator(Option<Arc<OperatorPause>>),
}

impl Fault {
    fn after(self, observed: &Observed) -> Self {
        match (self, observed) {
            (Self::None, Observed::DependencyDown) => Self::Outage,
            (Self::Outage, Observed::DependencyUp) => Self::None,
            (_, Observed::TooManyFailures) => Self::Tripped,
            (_, Observed::HandlersWork) => Self::None,
            (unchanged, _) => unchanged,
        }
    }
}

impl State {
    const RUNNING: Self = Self {
        fault: Fault::None,
        operator: None,
    };

    fn after(&self, observed: &Observed) -> Self {
        Self {
            fault: self.fault.after(observed),
            operator: match observed {
                Observed::Operator(pause) => pause.clone(),
                _ => self.operator.clone(),
            },
        }
    }

    fn is_running(&self) -> bool {
        *self == Self::RUNNING
    }
}

impl fmt::Display for OperatorPause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since.format("%Y-%m-%d %H:%M:%SZ");
        write!(f, "since {since} by {}", self.by)?;
        match &self.reason {
            Some(reason) => write!(f, ", {reason}"),
            None => Ok(()),
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
            state: watch::Sender::new(State::RUNNING),
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
        let _ = state.wait_for(State::is_running).await;
    }

    /// Returns `true` if an operator pauses the subscriber.
    pub(crate) fn is_held(&self) -> bool {
        !self.is_running() && self.state.borrow().operator.is_some()
    }

    /// Returns the pause by an operator.
    pub(crate) fn held_by(&self) -> Option<Arc<OperatorPause>> {
        self.state.borrow().operator.clone()
    }

    /// Waits until an operator pauses the subscriber.
    pub(crate) async fn held(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| state.operator.is_some()).await;
    }

    /// Waits until no operator pauses the subscriber.
    pub(crate) async fn released(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| state.operator.is_none()).await;
    }

    /// Waits until the pause by an operator differs from `known`.
    pub(crate) async fn held_by_other(&self, known: Option<&OperatorPause>) {
        let mut state = self.state.subscribe();
        let _ = state
            .wait_for(|state| state.operator.as_deref() != known)
            .await;
    }

    /// Records the decision of an operator.
    pub(crate) fn decided(&self, pause: Option<OperatorPause>) {
        if self.held_by().as_deref() != pause.as_ref() {
            self.observe(Observed::Operator(pause.map(Arc::new)), "");
        }
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
        self.state.borrow().fault == Fault::Tripped
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
            let after = state.after(&observed);
            let before = std::mem::replace(state, after);
            self.running.store(state.is_running(), Ordering::Release);
            change = (before != *state).then(|| state.clone());
            change.is_some()
        });
        let Some(now) = change else {
            return;
        };
        match observed {
            Observed::Operator(_) => self.report_operator(&now),
            _ => self.report_fault(&now, reason),
        }
    }

    fn report_operator(&self, now: &State) {
        let subscriber = &self.subscriber;
        match &now.operator {
            Some(pause) => tracing::info!(
                subscriber,
                since = %pause.since,
                by = pause.by,
                reason = pause.reason,
                "an operator has paused the subscriber: no event starts until `tidings \
                 subscribers resume {subscriber}`"
            ),
            None => tracing::info!(subscriber, "an operator has resumed the subscriber"),
        }
        let text = now.operator.as_ref().map(ToString::to_string);
        self.statistics.set_operator_pause(text);
    }

    fn report_fault(&self, now: &State, reason: &str) {
        let state = match now.fault {
            Fault::None => {
                let text = match now.operator {
                    Some(_) => "the fault is over; the subscriber stays paused by an operator",
                    None => "the subscriber continues",
                };
                tracing::info!(subscriber = self.subscriber, "{text}");
                return self.statistics.set_state(SubscriberState::Running);
            }
            Fault::Outage => SubscriberState::PausedByOutage,
            Fault::Tripped => SubscriberState::PausedByKillSwitch,
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
        Retry::exponential(u32::MAX, OUTAGE_PAUSES).pause(self.tries, random())
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

    fn by_ada() -> OperatorPause {
        OperatorPause {
            since: DateTime::UNIX_EPOCH,
            reason: Some("a migration".into()),
            by: "ada".into(),
        }
    }

    #[test]
    fn each_observation_changes_each_state_as_documented() {
        use Fault::{None, Outage, Tripped};
        use Observed::{DependencyDown, DependencyUp, HandlersWork, TooManyFailures};
        for (before, observed, after) in [
            (None, DependencyDown, Outage),
            (None, DependencyUp, None),
            (None, TooManyFailures, Tripped),
            (None, HandlersWork, None),
            (Outage, DependencyDown, Outage),
            (Outage, DependencyUp, None),
            (Outage, TooManyFailures, Tripped),
            (Outage, HandlersWork, None),
            (Tripped, DependencyDown, Tripped),
            (Tripped, DependencyUp, Tripped),
            (Tripped, TooManyFailures, Tripped),
            (Tripped, HandlersWork, None),
        ] {
            for operator in [Option::None, Some(Arc::new(by_ada()))] {
                let before = State {
                    fault: before,
                    operator: operator.clone(),
                };
                let after = State {
                    fault: after,
                    operator: operator.clone(),
                };
                assert_eq!(before.after(&observed), after, "{before:?} {observed:?}");
                let decided = Observed::Operator(Some(Arc::new(by_ada())));
                let held = before.after(&decided);
                assert!(held.operator.is_some() && held.fault == before.fault);
                assert!(!held.is_running());
                let released = held.after(&Observed::Operator(Option::None));
                assert_eq!(released.fault, before.fault, "a fault outlives the pause");
                assert_eq!(released.operator, Option::None);
            }
        }
    }

    #[test]
    fn a_pause_of_an_operator_hides_faults_and_ends_only_by_an_operator() {
        let statistics = Statistics::new("inventory");
        statistics.joined();
        let pause = Pause::new("inventory", &statistics);
        pause.decided(Some(by_ada()));
        assert!(pause.is_held() && !pause.is_running());
        pause.dependency_down("no database");
        assert_eq!(statistics.state(), SubscriberState::PausedByOperator);
        assert_eq!(
            statistics.reason().as_deref(),
            Some("since 1970-01-01 00:00:00Z by ada, a migration")
        );
        pause.decided(None);
        assert!(!pause.is_held() && !pause.is_running());
        assert_eq!(
            (statistics.state(), statistics.reason().as_deref()),
            (SubscriberState::PausedByOutage, Some("no database"))
        );
        pause.decided(Some(by_ada()));
        pause.dependency_up();
        assert_eq!(statistics.state(), SubscriberState::PausedByOperator);
        pause.decided(None);
        assert!(pause.is_running() && statistics.state() == SubscriberState::Running);
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
