//! Log lines about failed events, bounded in number.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::attempt::Runner;
use super::handler::HandlerError;
use crate::kafka::Message;

/// The time within which at most [`LINES_MAX`] lines are written. A failing dependency fails every event: the log needs
/// examples and the number of the others.
const WINDOW: Duration = Duration::from_secs(10);

/// The number of lines within [`WINDOW`]: enough for each aggregate of a small fault.
const LINES_MAX: u32 = 10;

/// The budgets of log lines of one subscriber. Many first failures leave room for reports of parked events.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    first: Mutex<Budget>,
    used_up: Mutex<Budget>,
}

/// Lines that were written and left out in the current window.
#[derive(Debug, Default)]
struct Budget {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Budget {
    /// The number of lines that were left out before this one, or `None` if this one is left out too.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            (self.since, self.written) = (Some(now), 0);
        }
        if self.written == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Runner {
    /// Reports the first failed attempt at an event. Later ones are logged at debug until the event is parked or escalated.
    pub(super) fn report_attempt(&self, message: &Message, attempts: u32, error: &HandlerError) {
        if attempts.saturating_add(message.attempts_before()) == 1 {
            self.warn(&self.failures.first, message, 1, error, "an event failed at its first attempt and is tried again as configured");
        } else {
            tracing::debug!(subscriber = self.name, attempts, error = error.chain(), "an attempt failed");
        }
    }

    /// Reports an event whose attempts are used up, and the place where it waits.
    pub(super) fn report_used_up(&self, message: &Message, attempts: u32, error: &HandlerError, what: &'static str) {
        self.warn(&self.failures.used_up, message, attempts.saturating_add(message.attempts_before()), error, what);
    }

    /// Reports a batch that failed as a whole by its first event.
    pub(super) fn report_batch(&self, first: &Message, error: &HandlerError) {
        self.warn(&self.failures.first, first, 1, error, "a batch failed; its events are handled one by one");
    }

    fn warn(&self, budget: &Mutex<Budget>, message: &Message, attempts: u32, error: &HandlerError, what: &'static str) {
        let admitted = budget.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        let Some(left_out) = admitted else { return };
        let record = message.as_it_came();
        tracing::warn!(
            subscriber = self.name,
            event.id = &*message.id(),
            event.r#type = message.event_type(),
            topic = &*record.topic,
            partition = record.partition,
            offset = record.offset,
            handler = self.core.router.handlers_of(message),
            attempts,
            lines_left_out = left_out,
            error = error.chain(),
            "{what}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_within_a_window_and_the_others_are_counted() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        let admitted = (0..100).filter(|_| budget.admit(now).is_some()).count();
        assert_eq!(admitted, LINES_MAX as usize);
        assert_eq!(budget.admit(now + WINDOW), Some(100 - u64::from(LINES_MAX)));
        assert_eq!(budget.admit(now + WINDOW), Some(0));
    }
}
