//! How a subscriber stands.

use super::{Check, Checking, Status};
use crate::subscriber::{Statistics, SubscriberState};

/// How a subscriber in this process stands.
///
/// | the subscriber | the check |
/// |---|---|
/// | runs | ok |
/// | starts, is paused by its kill switch, or because the database is down | degraded: it goes on by itself, and no request waits for it |
/// | has stopped | failing: nothing starts it again |
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
    /// Shows the subscriber with these statistics.
    pub fn new(statistics: &Statistics) -> Self {
        Self { statistics: statistics.clone() }
    }

    fn status(&self) -> Status {
        let state = self.statistics.state();
        match state {
            SubscriberState::Running => Status::Ok(format!("running, partitions: {}", self.statistics.partitions().len())),
            SubscriberState::Starting => Status::Degraded("starting".into()),
            SubscriberState::PausedByKillSwitch => {
                Status::Degraded(format!("{state}: too many events fail, and one at a time is tried; see its log"))
            }
            SubscriberState::PausedByOutage => {
                Status::Degraded(format!("{state}: what every event needs, the database say, is down; it goes on when that is back"))
            }
            SubscriberState::Stopped => Status::Failing("stopped: it was shut down or could not go on; see its log".into()),
        }
    }
}

// === impl Check ===

impl Check for SubscriberCheck {
    fn check(&self) -> Checking<'_> {
        Box::pin(std::future::ready(self.status()))
    }
}
