//! Order of replies and timers: a timeout does not fire while the reply may still wait in Kafka or
//! among the parked events.
//!
//! ```text
//! timer due at d ──▶ read the end offsets of ──▶ the group has handled all events ──▶ timer fires
//!                    the reply topics             before these offsets?
//!                    (one round for all           └─ no: check again, at most until the limit
//!                    timers due by now)
//! ```
//!
//! A service that was down finds both expired timers and replies that arrived in time. Their order
//! of processing must not affect the result.
//!
//! The limit counts the time in which the group makes no progress, so a backlog of any size is
//! handled first. A pause of the subscriber by an operator ends the round. A new one begins when
//! the subscriber is resumed, and with it the limit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::statistics::SagaStatistics;
use super::wakeup::Wakeup;
use crate::kafka::Unhandled;
use crate::subscriber::{CatchUp, Ground, Pause, Statistics};

/// Pause between two checks of a round. A member commits once a second.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Pause after a failed check.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// Time after which a wait is logged and shown by the health check, and interval between two such
/// messages.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
const LOG_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Delays the timers of one saga until pending replies are handled.
pub(super) struct Replies {
    saga: String,
    subscriber: Statistics,
    pause: Arc<Pause>,
    statistics: SagaStatistics,
    catch_up: CatchUp,
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Start of this process, or the end of the last pause by an operator.
    began: Instant,
    /// All events that the topics contained at this time, by the database's clock, are handled.
    handled_as_of: Option<DateTime<Utc>>,
    /// Time of the last progress in the current round, or its start. `None` if no round is running.
    waiting_since: Option<Instant>,
}

/// Selection of the timers to delay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hold {
    /// Timers due after this time are delayed. `None` delays all timers.
    pub(super) handled_as_of: Option<DateTime<Utc>>,
    /// Timers overdue by more than this are not delayed.
    pub(super) limit: Option<Duration>,
    /// Timers whose reply is parked are delayed, unless they are overdue by more than this.
    pub(super) parked_limit: Option<Duration>,
}

impl State {
    fn new(began: Instant) -> Self {
        Self {
            began,
            handled_as_of: None,
            waiting_since: None,
        }
    }

    fn hold(&self, limit: Duration, now: Instant) -> Hold {
        let passed = |since: Instant| now.duration_since(since) >= limit;
        Hold {
            handled_as_of: self.handled_as_of,
            limit: self.waiting_since.is_some_and(passed).then_some(limit),
            parked_limit: passed(self.began).then_some(limit),
        }
    }
}

impl Replies {
    /// Returns `None` if no step has a reply, or if the limit is zero.
    pub(super) fn new(
        ground: &Ground,
        statistics: &SagaStatistics,
        aggregates: &[&'static str],
        limit: Duration,
    ) -> Option<Self> {
        let catch_up = CatchUp::new(ground, aggregates);
        if catch_up.is_empty() || limit.is_zero() {
            return None;
        }
        Some(Self {
            saga: statistics.name().to_owned(),
            subscriber: ground.statistics.clone(),
            pause: ground.pause.clone(),
            statistics: statistics.clone(),
            catch_up,
            limit,
            state: Mutex::new(State::new(Instant::now())),
        })
    }

    pub(super) fn hold(&self) -> Hold {
        self.state().hold(self.limit, Instant::now())
    }

    /// Starts again after a pause by an operator: every due timer waits until the group has handled
    /// the events that the topics contain now.
    pub(super) fn restart(&self) {
        *self.state() = State::new(Instant::now());
    }

    /// Starts a round for all timers that are due by `now`, unless a round is running.
    #[expect(
        clippy::disallowed_methods,
        reason = "ends with `stop`, or with the round, which has a limit"
    )]
    pub(super) fn want(
        self: &Arc<Self>,
        now: DateTime<Utc>,
        wakeup: &Arc<Wakeup>,
        stop: &CancellationToken,
    ) {
        {
            let mut state = self.state();
            if state.waiting_since.is_some() {
                return;
            }
            state.waiting_since = Some(Instant::now());
        }
        let (replies, wakeup, stop) = (self.clone(), wakeup.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = replies.pause.held() => replies.state().waiting_since = None,
                () = replies.round() => {
                    let mut state = replies.state();
                    state.handled_as_of = Some(now);
                    state.waiting_since = None;
                    drop(state);
                    wakeup.set(Instant::now());
                }
            }
        });
    }

    /// Waits until the group has handled all events that the topics contained when the round began.
    async fn round(&self) {
        let (began, mut interval) = (Instant::now(), LOG_INTERVAL);
        let wait = Wait::begin(self);
        let (mut ends, mut next_log, mut is_given_up) = (None, began + interval, false);
        let mut progress = (Vec::new(), began);
        loop {
            let looked = match &ends {
                None => match self.catch_up.ends().await {
                    Ok(found) => {
                        ends = Some(found);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Some(ends) => self.catch_up.behind(ends).await,
            };
            let (why, pause) = match looked {
                Ok(behind) if behind.is_empty() => break,
                Ok(behind) => {
                    let why = not_handled(&behind);
                    if behind != progress.0 {
                        progress = (behind, Instant::now());
                        self.progressed();
                    }
                    (why, LOOK_PAUSE)
                }
                Err(error) => (error.to_string(), FAILED_PAUSE),
            };
            let (waited, stalled) = (began.elapsed(), progress.1.elapsed());
            if waited >= LOG_INTERVAL.min(self.limit) {
                wait.show(&why, waited, stalled);
            }
            if stalled < self.limit {
                is_given_up = false;
            } else if !is_given_up {
                is_given_up = true;
                tracing::warn!(
                    saga = self.saga,
                    why,
                    limit = ?self.limit,
                    "timers fire although replies may wait in Kafka; the limit of \
                     `Saga::wait_for_replies` is reached"
                );
            }
            if Instant::now() >= next_log && !is_given_up {
                interval = (interval * 2).min(LOG_INTERVAL_MAX);
                next_log = Instant::now() + interval;
                tracing::warn!(
                    saga = self.saga,
                    why,
                    ?waited,
                    limit = ?self.limit,
                    "timers wait for replies that may be in Kafka"
                );
            }
            tokio::time::sleep(pause).await;
        }
        if began.elapsed() >= LOG_INTERVAL {
            tracing::info!(
                saga = self.saga,
                waited = ?began.elapsed(),
                "all replies are handled, and timers fire again"
            );
        }
    }

    /// Records that the group has handled events since the last check of this round.
    fn progressed(&self) {
        if let Some(since) = &mut self.state().waiting_since {
            *since = Instant::now();
        }
    }

    /// Returns the name of this part of the subscriber in its health.
    fn part(&self) -> String {
        format!("timers of saga {}", self.saga)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Describes events that are not handled yet.
fn not_handled(behind: &[Unhandled]) -> String {
    let first = |one: &Unhandled| {
        let Unhandled {
            partition,
            committed,
            offset,
        } = one;
        format!(
            "{}/{} at offset {offset} (committed: {committed})",
            partition.topic, partition.number
        )
    };
    let all: Vec<String> = behind.iter().map(first).collect();
    format!("events not handled yet: {}", all.join(", "))
}

/// The wait of one round, as health and metrics show it. Both are cleared when it is dropped.
struct Wait<'r>(&'r Replies);

impl<'r> Wait<'r> {
    fn begin(replies: &'r Replies) -> Self {
        replies.statistics.timers_wait(Some(Instant::now()));
        Self(replies)
    }

    fn show(&self, why: &str, waited: Duration, stalled: Duration) {
        let Replies { saga, limit, .. } = self.0;
        let (seconds, most) = (waited.as_secs(), limit.as_secs());
        let concern = if stalled >= *limit {
            format!(
                "timers of saga {saga} fire although replies may wait in Kafka, since their limit \
                 of {most} s without progress is reached: {why}"
            )
        } else {
            format!(
                "timers of saga {saga} have waited for {seconds} s (limit {most} s) for replies \
                 that may be in Kafka: {why}"
            )
        };
        self.0.subscriber.set_concern(&self.0.part(), Some(concern));
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.statistics.timers_wait(None);
        self.0.subscriber.set_concern(&self.0.part(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_held_until_replies_are_handled_and_no_longer_than_the_limit() {
        let (limit, began) = (Duration::from_secs(60), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut state = State {
            waiting_since: Some(at(10)),
            ..State::new(began)
        };
        let all = Hold {
            handled_as_of: None,
            limit: None,
            parked_limit: None,
        };
        assert_eq!(state.hold(limit, at(20)), all);
        let given_up = state.hold(limit, at(70));
        assert_eq!(
            given_up,
            Hold {
                handled_as_of: None,
                limit: Some(limit),
                parked_limit: Some(limit)
            }
        );
        let handled = Some(DateTime::UNIX_EPOCH);
        state = State {
            handled_as_of: handled,
            ..State::new(began)
        };
        assert_eq!(
            state.hold(limit, at(80)),
            Hold {
                handled_as_of: handled,
                limit: None,
                parked_limit: Some(limit)
            }
        );
        // The next round starts a new wait, and progress extends it.
        state.waiting_since = Some(at(90));
        assert_eq!(state.hold(limit, at(100)).limit, None);
        state.waiting_since = Some(at(140));
        assert_eq!(state.hold(limit, at(190)).limit, None);
        // After a pause by an operator, nothing is known about replies, parked ones included.
        assert_eq!(State::new(at(190)).hold(limit, at(200)), all);
    }
}
