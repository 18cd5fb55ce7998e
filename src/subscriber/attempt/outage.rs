//! An outage of a dependency that every event needs, as seen by one event.

use std::ops::Range;
use std::time::Duration;

use super::{Runner, chance};
use crate::subscriber::{SubscriberState, handler::HandlerError, options::retry::Retry};

/// Pauses between attempts during an outage: short enough that the subscriber resumes quickly.
const PAUSES: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);

/// An outage as seen by one event.
///
/// No event starts while the gate is shut, so only events that are already being tried can detect
/// the end of an outage. Therefore the event that shut the gate opens it when the event ends in any
/// way: handled, failed with another error, or abandoned with its partition. If the dependency is
/// still down, the next event that starts shuts the gate again.
pub(crate) struct Outage<'r> {
    runner: &'r Runner,
    tries: u32,
}

impl<'r> Outage<'r> {
    /// Returns a value that has seen no outage yet.
    pub(crate) fn none(runner: &'r Runner) -> Self {
        Self { runner, tries: 0 }
    }

    /// Records a failed attempt and returns the pause before the next one.
    pub(crate) fn goes_on(&mut self, error: &HandlerError) -> Duration {
        self.tries += 1;
        self.runner
            .shut(SubscriberState::PausedByOutage, &error.chain());
        Retry::exponential(u32::MAX, PAUSES).pause(self.tries, chance())
    }

    /// Ends the outage, if there was one.
    pub(crate) fn is_over(&mut self) {
        if std::mem::take(&mut self.tries) > 0 {
            self.runner.reopen();
        }
    }
}

// === impl Drop ===

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        self.is_over();
    }
}
