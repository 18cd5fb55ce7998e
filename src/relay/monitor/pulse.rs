//! Stall detection: a relay that leads has stalled if it delivers nothing although events may be
//! pending.
//!
//! Delivery is *well* whenever Kafka acknowledges an event, and whenever the relay confirms that
//! nothing is pending. Silence is never a good sign: a session that hangs anywhere confirms
//! nothing, so it stalls. A standby delivers nothing and cannot stall.
//!
//! All times come from the monotonic clock, because the clock of the machine may step.

use std::{
    borrow::Cow,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::relay::sink::Outstanding;

/// Signs of life of a relay's sessions, shared with the health endpoint and the watchdog.
pub(crate) struct Pulse {
    origin: Instant,
    stall_after: Duration,
    vitals: Mutex<Vitals>,
}

/// Signs of life. Times count from the start of the process.
#[derive(Default)]
struct Vitals {
    stands_by: bool,
    /// The last time when delivery was well.
    well_at: Duration,
    /// The last time when the session made progress.
    moved_at: Duration,
    /// The current step of the session.
    step: Cow<'static, str>,
    /// The object that an event waits for.
    held: Option<String>,
    /// The records of the last sink.
    outstanding: Option<Outstanding>,
}

/// A stall, with a text for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    pub(crate) lasted: Duration,
    pub(crate) text: String,
}

impl Pulse {
    pub(crate) fn new(stall_after: Duration) -> Self {
        let vitals = Vitals {
            step: "starting".into(),
            ..Vitals::default()
        };
        Self {
            origin: Instant::now(),
            stall_after,
            vitals: Mutex::new(vitals),
        }
    }

    fn vitals(&self) -> MutexGuard<'_, Vitals> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Records progress of the session.
    pub(crate) fn moved(&self) {
        self.vitals().moved_at = self.now();
    }

    /// Records progress of the session and the start of a step.
    pub(crate) fn step(&self, step: impl Into<Cow<'static, str>>) {
        let mut vitals = self.vitals();
        vitals.step = step.into();
        vitals.moved_at = self.now();
    }

    /// Sets the object that an event waits for, or `None` if no event waits.
    pub(crate) fn held(&self, reason: Option<String>) {
        self.vitals().held = reason;
    }

    /// Sets the sink whose records count.
    pub(crate) fn watch(&self, outstanding: &Outstanding) {
        self.vitals().outstanding = Some(outstanding.clone());
    }

    /// Records that an event was acknowledged, or that nothing is pending.
    pub(crate) fn well(&self) {
        let now = self.now();
        let mut vitals = self.vitals();
        (vitals.well_at, vitals.moved_at) = (now, now);
    }

    /// Records that this process leads, or should lead because no other process does.
    pub(crate) fn leads(&self) {
        let now = self.now();
        let mut vitals = self.vitals();
        if std::mem::take(&mut vitals.stands_by) {
            vitals.well_at = now;
        }
        vitals.moved_at = now;
    }

    /// Records that another relay of this name leads, or that the relay has ended.
    pub(crate) fn stands_by(&self) {
        let mut vitals = self.vitals();
        vitals.stands_by = true;
        vitals.moved_at = self.now();
    }

    /// Returns the records of the last sink. Returns `None` before the first one is opened.
    pub(crate) fn outstanding(&self) -> Option<Outstanding> {
        self.vitals().outstanding.clone()
    }

    /// Returns the current step of the session.
    pub(crate) fn current_step(&self) -> String {
        self.vitals().step.clone().into_owned()
    }

    /// Returns the stall, if delivery has stalled.
    pub(crate) fn stall(&self) -> Option<Stall> {
        let now = self.now();
        let vitals = self.vitals();
        let lasted = vitals.stalled_for(now, self.stall_after)?;
        Some(Stall {
            lasted,
            text: vitals.describe(lasted),
        })
    }

    /// Returns the last step of a session that has made no progress for longer than `limit`.
    pub(crate) fn hung_in(&self, limit: Duration) -> Option<String> {
        let now = self.now();
        let vitals = self.vitals();
        (now.saturating_sub(vitals.moved_at) > limit).then(|| vitals.step.clone().into_owned())
    }
}

impl Vitals {
    fn stalled_for(&self, now: Duration, stall_after: Duration) -> Option<Duration> {
        let lasted = now.saturating_sub(self.well_at);
        (!self.stands_by && lasted >= stall_after).then_some(lasted)
    }

    fn describe(&self, lasted: Duration) -> String {
        let (seconds, step) = (lasted.as_secs(), &self.step);
        let under_way = self.outstanding.as_ref().map_or(0, Outstanding::records);
        let pending = match (&self.held, under_way) {
            (Some(held), _) => format!("an event waits for {held}"),
            (None, 0) => "events may be waiting".to_owned(),
            (None, records) => {
                format!(
                    "{records} records are in flight: check that the brokers answer and that \
                     min.insync.replicas replicas are in sync"
                )
            }
        };
        format!("nothing was acknowledged for {seconds} s, and {pending}; the session is {step}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::sink::outstanding::tests::with_batch;

    const AFTER: Duration = Duration::from_secs(15);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_relay_that_confirms_nothing_stalls_whatever_it_does() {
        let mut vitals = Vitals {
            moved_at: at(40),
            ..Vitals::default()
        };
        assert_eq!(vitals.stalled_for(at(14), AFTER), None);
        assert_eq!(vitals.stalled_for(at(15), AFTER), Some(at(15)));
        vitals.well_at = at(30);
        assert_eq!(vitals.stalled_for(at(44), AFTER), None);
        assert_eq!(vitals.stalled_for(at(50), AFTER), Some(at(20)));
    }

    #[test]
    fn a_standby_does_not_stall_and_a_new_leader_gets_its_time() {
        let pulse = Pulse::new(Duration::ZERO);
        assert!(pulse.stall().is_some());
        pulse.stands_by();
        assert_eq!(pulse.stall(), None);
        let before = pulse.now();
        pulse.leads();
        assert!(pulse.vitals().well_at >= before);
    }

    #[test]
    fn a_leader_that_takes_the_lease_again_after_an_interruption_gets_no_new_time() {
        let pulse = Pulse::new(AFTER);
        pulse.leads();
        assert_eq!(pulse.vitals().well_at, Duration::ZERO);
    }

    #[test]
    fn the_text_names_what_is_pending_and_the_last_step() {
        let mut vitals = Vitals {
            step: "fencing the producers".into(),
            ..Vitals::default()
        };
        let text = vitals.describe(at(20));
        assert_eq!(
            text,
            "nothing was acknowledged for 20 s, and events may be waiting; the session is fencing \
             the producers"
        );
        vitals.outstanding = Some(with_batch(1, None));
        assert!(vitals.describe(at(20)).contains("2 records are in flight"));
        vitals.held = Some("topic `orders`".into());
        assert!(
            vitals
                .describe(at(20))
                .contains("an event waits for topic `orders`")
        );
    }
}
