//! Counts of calls and failures in a sliding window. Pure, and bounded for any number of calls.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Number of steps of a window. More steps would be more precise, but more expensive to sum up.
pub(super) const STEPS: u32 = 10;

/// Counts of the last [`STEPS`] time steps.
#[derive(Clone, Debug)]
pub(super) struct Window {
    began: Instant,
    step: Duration,
    /// At most [`STEPS`] entries, the oldest first.
    steps: VecDeque<Step>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    number: u64,
    calls: u32,
    failures: u32,
}

impl Window {
    pub(super) fn new(length: Duration, now: Instant) -> Self {
        Self {
            began: now,
            step: (length / STEPS).max(Duration::from_millis(1)),
            steps: VecDeque::new(),
        }
    }

    /// Counts a call. Returns the calls and failures of the window that ends now.
    pub(super) fn record(&mut self, failed: bool, now: Instant) -> (u32, u32) {
        let number = self.number(now);
        while self
            .steps
            .front()
            .is_some_and(|step| step.number + u64::from(STEPS) <= number)
        {
            self.steps.pop_front();
        }
        match self.steps.back_mut() {
            Some(step) if step.number >= number => step.count(failed),
            _ => {
                let mut step = Step {
                    number,
                    calls: 0,
                    failures: 0,
                };
                step.count(failed);
                self.steps.push_back(step);
            }
        }
        self.steps
            .iter()
            .fold((0, 0), |(calls, failures): (u32, u32), step| {
                (
                    calls.saturating_add(step.calls),
                    failures.saturating_add(step.failures),
                )
            })
    }

    /// Returns the number of the current time step.
    fn number(&self, now: Instant) -> u64 {
        let steps = now.saturating_duration_since(self.began).as_nanos() / self.step.as_nanos();
        u64::try_from(steps).unwrap_or(u64::MAX / 2)
    }
}

impl Step {
    fn count(&mut self, failed: bool) {
        self.calls = self.calls.saturating_add(1);
        self.failures = self.failures.saturating_add(u32::from(failed));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_counts_what_a_list_of_all_calls_counts(
            calls in proptest::collection::vec((0u64..400, any::<bool>()), 1..200),
        ) {
            let began = Instant::now();
            let mut window = Window::new(Duration::from_millis(1_000), began);
            let (mut all, mut elapsed) = (Vec::new(), 0);
            for (pause, failed) in calls {
                elapsed += pause;
                all.push((elapsed / 100, failed));
                let within: Vec<_> = all
                    .iter()
                    .filter(|(step, _)| step + 10 > elapsed / 100)
                    .collect();
                let expected = (
                    within.len() as u32,
                    within.iter().filter(|(_, failed)| *failed).count() as u32,
                );
                prop_assert_eq!(
                    window.record(failed, began + Duration::from_millis(elapsed)),
                    expected
                );
                prop_assert!(window.steps.len() <= STEPS as usize);
            }
        }
    }
}
