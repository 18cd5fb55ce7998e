//! Detection of a failure rate so high that the events are not the cause. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pauses the subscriber when most events fail permanently, instead of sending a whole topic to the
/// dead letters.
///
/// It trips if, within `window`, at least `failures` events were given up and they are at least
/// half of all events. It then tries one event every `pause` until one is handled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "circuit breaker")]
pub struct KillSwitch {
    /// Minimum number of events given up within the window.
    pub failures: usize,
    /// Length of the window.
    pub window: Duration,
    /// Time between two probes.
    pub pause: Duration,
}

/// Events handled and events given up within the window.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Times of events that were given up.
    failures: VecDeque<Instant>,
    /// Numbers of events that were handled, by second. Bounded by the window.
    successes: VecDeque<(Instant, usize)>,
}

impl KillSwitch {
    /// Creates a switch that trips if at least `failures` events are given up within `window` and
    /// they are at least half of all events. It probes every ten seconds.
    pub fn new(failures: usize, window: Duration) -> Self {
        Self {
            failures: failures.max(1),
            window,
            pause: Duration::from_secs(10),
        }
    }

    /// Sets the time between two probes.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}

impl Default for KillSwitch {
    /// Twenty events in a minute.
    fn default() -> Self {
        Self::new(20, Duration::from_secs(60))
    }
}

impl Tally {
    /// Records an event that was handled.
    pub(crate) fn handled(&mut self, now: Instant) {
        match self.successes.back_mut() {
            Some((since, count)) if now.duration_since(*since) < Duration::from_secs(1) => {
                *count += 1
            }
            _ => self.successes.push_back((now, 1)),
        }
    }

    /// Records an event that is about to be given up. Returns `true` if the switch trips.
    pub(crate) fn given_up(&mut self, now: Instant, switch: &KillSwitch) -> bool {
        self.failures.push_back(now);
        let is_old = |time: &Instant| now.duration_since(*time) > switch.window;
        while self.failures.front().is_some_and(is_old) {
            self.failures.pop_front();
        }
        while self.successes.front().is_some_and(|(time, _)| is_old(time)) {
            self.successes.pop_front();
        }
        let handled: usize = self.successes.iter().map(|(_, count)| count).sum();
        self.failures.len() >= switch.failures && self.failures.len() >= handled
    }

    /// Forgets all recorded events.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_trips_when_enough_of_the_window_failed(
            happened in prop::collection::vec((0..4_000u64, any::<bool>()), 1..200),
        ) {
            let switch = KillSwitch::new(5, Duration::from_secs(10));
            let (start, mut tally) = (Instant::now(), Tally::default());
            let (mut now, mut failures, mut successes) = (start, Vec::new(), Vec::new());
            for (later, fails) in happened {
                now += Duration::from_millis(later);
                if !fails {
                    tally.handled(now);
                    successes.push(now);
                    continue;
                }
                failures.push(now);
                let trips = tally.given_up(now, &switch);
                let within = |times: &[Instant], window| {
                    times.iter().filter(|time| now.duration_since(**time) <= window).count()
                };
                let failed = within(&failures, switch.window);
                // Successes are counted by second, so one at the edge of the window may be counted
                // or not.
                let (most, least) = (
                    within(&successes, switch.window),
                    within(&successes, switch.window - Duration::from_secs(1)),
                );
                let (surely, possibly) =
                    (failed >= 5 && failed >= most, failed >= 5 && failed >= least);
                prop_assert!(!surely || trips);
                prop_assert!(!trips || possibly);
            }
        }
    }
}
