//! Health check of a subscriber.

use super::{Check, Checking, Status};
use crate::subscriber::{Statistics, SubscriberState};

/// Health check of a subscriber in this process.
///
/// | subscriber | check |
/// |---|---|
/// | running | ok |
/// | running, but records were removed before they were read | degraded, with their number |
/// | running, but its code cannot continue some sagas | degraded; it handles all other events |
/// | running, but due timers of a saga wait for replies | degraded, after five seconds |
/// | starting, or paused by itself | degraded, with the reason; it continues without intervention |
/// | paused by an operator | degraded, with time, operator and reason; an operator resumes it |
/// | stopped | failing; the subscriber does not restart |
///
/// ```no_run
/// # fn example(subscriber: tidings::Subscriber<()>) {
/// use tidings::health::{Health, SubscriberCheck};
///
/// let health = Health::new().check("inventory", SubscriberCheck::new(&subscriber.statistics()));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SubscriberCheck {
    statistics: Statistics,
}

impl SubscriberCheck {
    /// Creates a check of the subscriber with these statistics.
    pub fn new(statistics: &Statistics) -> Self {
        Self {
            statistics: statistics.clone(),
        }
    }

    fn status(&self) -> Status {
        let state = self.statistics.state();
        let because = self
            .statistics
            .reason()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        match state {
            SubscriberState::Running => self.running(),
            SubscriberState::Starting => Status::Degraded(format!("starting{because}")),
            SubscriberState::PausedByKillSwitch => Status::Degraded(format!(
                "{state}: too many events fail, so one event at a time is attempted; see its log"
            )),
            SubscriberState::PausedByOutage => Status::Degraded(format!(
                "{state}{because}; all events need this resource, and the subscriber continues \
                 when it is available again"
            )),
            SubscriberState::PausedByOperator => Status::Degraded(format!(
                "{state} {}; `tidings subscribers resume {}` resumes it",
                self.statistics.reason().unwrap_or_default(),
                self.statistics.name()
            )),
            SubscriberState::Stopped => Status::Failing(
                "stopped: it was shut down or could not continue; see its log".into(),
            ),
        }
    }

    fn running(&self) -> Status {
        let text = format!(
            "running, partitions: {}",
            self.statistics.partitions().len()
        );
        let (removed, concerns) = (
            self.statistics.removed_by_topic(),
            self.statistics.concerns(),
        );
        if removed.is_empty() && concerns.is_empty() {
            return Status::Ok(text);
        }
        let text = if concerns.is_empty() {
            text
        } else {
            format!("{text}; {}", concerns.join("; "))
        };
        if removed.is_empty() {
            return Status::Degraded(text);
        }
        let of = |(topic, records): (String, u64)| format!("{topic}: {records}");
        let removed = removed.into_iter().map(of).collect::<Vec<_>>().join(", ");
        Status::Degraded(format!(
            "{text}; records removed before they were read, since the start: {removed}"
        ))
    }
}

// === impl Check ===

impl Check for SubscriberCheck {
    fn check(&self) -> Checking<'_> {
        Box::pin(std::future::ready(self.status()))
    }
}
