//! Something that every event needs is down: what one event sees of it.

use std::ops::Range;
use std::time::Duration;

use super::{Runner, chance};
use crate::subscriber::{SubscriberState, handler::HandlerError, options::retry::Retry};

/// Pauses while it is down: short enough to be felt as quick.
const PAUSES: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);

/// What one event sees of an outage.
///
/// Nothing starts while the gate is shut, so who tries already finds out that it is over. Therefore whoever has shut the gate opens it when it ends, however that is: handled, failed in another way,
/// or given up with its partition. If it is still down, the next event that starts shuts the gate again.
pub(crate) struct Outage<'r> {
    runner: &'r Runner,
    tries: u32,
}

impl<'r> Outage<'r> {
    /// None so far.
    pub(crate) fn none(runner: &'r Runner) -> Self {
        Self { runner, tries: 0 }
    }

    /// It is down; how long until it is tried again.
    pub(crate) fn goes_on(&mut self, error: &HandlerError) -> Duration {
        self.tries += 1;
        self.runner
            .shut(SubscriberState::PausedByOutage, &error.chain());
        Retry::exponential(u32::MAX, PAUSES).pause(self.tries, chance())
    }

    /// It is over, if there was one.
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
