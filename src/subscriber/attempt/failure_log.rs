//! Log lines about failed events, bounded in number.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Runner;
use crate::{kafka::Message, subscriber::handler::HandlerError};

/// Period for the limit of [`LINES_MAX`] lines. If a dependency fails, every event fails. The log
/// then needs some examples and the number of suppressed lines.
const WINDOW: Duration = Duration::from_secs(10);

/// Maximum number of lines within [`WINDOW`]: enough for a line about each aggregate of a small
/// fault.
const LINES_MAX: u32 = 10;

/// Budgets of log lines of one subscriber. First failures have their own budget, so that a large
/// number of them leaves room for reports of parked events.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    first: Mutex<Budget>,
    used_up: Mutex<Budget>,
}

/// Numbers of lines that were written and suppressed in the current window.
#[derive(Debug, Default)]
struct Budget {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Budget {
    /// Returns the number of lines that were suppressed before this one. Returns `None` if this one
    /// is suppressed too.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= WINDOW)
        {
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
    /// Logs the first failed attempt at an event as a warning. Later attempts are logged at debug
    /// level until the event is parked or escalated.
    pub(crate) fn report_attempt(&self, message: &Message, attempts: u32, error: &HandlerError) {
        if attempts.saturating_add(message.attempts_before()) == 1 {
            self.warn(
                &self.failures.first,
                message,
                1,
                error,
                "an event failed at its first attempt and is tried again as configured",
            );
        } else {
            tracing::debug!(
                subscriber = self.name,
                attempts,
                error = error.chain(),
                "an attempt failed"
            );
        }
    }

    /// Logs an event that has used up its attempts, with its next destination.
    pub(crate) fn report_used_up(
        &self,
        message: &Message,
        attempts: u32,
        error: &HandlerError,
        what: &'static str,
    ) {
        self.warn(
            &self.failures.used_up,
            message,
            attempts.saturating_add(message.attempts_before()),
            error,
            what,
        );
    }

    /// Logs a batch that failed as a whole, with the data of its first event.
    pub(crate) fn report_batch(&self, first: &Message, error: &HandlerError) {
        self.warn(
            &self.failures.first,
            first,
            1,
            error,
            "a batch failed; its events are handled one by one",
        );
    }

    fn warn(
        &self,
        budget: &Mutex<Budget>,
        message: &Message,
        attempts: u32,
        error: &HandlerError,
        what: &'static str,
    ) {
        let admitted = budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(Instant::now());
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
