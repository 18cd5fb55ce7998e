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

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::wakeup::Wakeup;
use crate::kafka::Unhandled;
use crate::subscriber::{CatchUp, Ground};

/// Pause between two checks of a round. A member commits once a second.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Pause after a failed check.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// Time after which a wait is logged, and interval between two such messages.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
const LOG_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Delays the timers of one saga until pending replies are handled.
pub(super) struct Replies {
    saga: String,
    catch_up: CatchUp,
    limit: Duration,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// All events that the topics contained at this time, by the database's clock, are handled.
    handled_as_of: Option<DateTime<Utc>>,
    /// Start of the current round. `None` if no round is running.
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
    fn hold(&self, limit: Duration, began: Instant, now: Instant) -> Hold {
        let passed = |since: Instant| now.duration_since(since) >= limit;
        Hold {
            handled_as_of: self.handled_as_of,
            limit: self.waiting_since.is_some_and(passed).then_some(limit),
            parked_limit: passed(began).then_some(limit),
        }
    }
}

impl Replies {
    /// Returns `None` if no step has a reply, or if the limit is zero.
    pub(super) fn new(
        ground: &Ground,
        saga: &str,
        aggregates: &[&'static str],
        limit: Duration,
    ) -> Option<Self> {
        let catch_up = CatchUp::new(ground, aggregates);
        if catch_up.is_empty() || limit.is_zero() {
            return None;
        }
        Some(Self {
            saga: saga.to_owned(),
            catch_up,
            limit,
            began: Instant::now(),
            state: Mutex::default(),
        })
    }

    pub(super) fn hold(&self) -> Hold {
        self.state().hold(self.limit, self.began, Instant::now())
    }

    /// Starts a round for all timers that are due by `now`, unless a round is running.
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
                () = stop.cancelled() => {}
                () = replies.round() => {
                    let mut state = replies.state();
                    *state = State { handled_as_of: Some(now), waiting_since: None };
                    drop(state);
                    wakeup.set(Instant::now());
                }
            }
        });
    }

    /// Waits until the group has handled all events that the topics contained when the round began.
    async fn round(&self) {
        let (began, mut interval) = (Instant::now(), LOG_INTERVAL);
        let (mut ends, mut next_log, mut is_given_up) = (None, began + interval, false);
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
                    (
                        format!("events not handled yet: {}", all.join(", ")),
                        LOOK_PAUSE,
                    )
                }
                Err(error) => (error, FAILED_PAUSE),
            };
            let waited = began.elapsed();
            if waited >= self.limit && !is_given_up {
                is_given_up = true;
                tracing::warn!(
                    saga = self.saga,
                    why,
                    limit = ?self.limit,
                    "timers fire although replies may wait in Kafka; the limit of \
                     `Saga::wait_for_replies` is reached"
                );
            } else if Instant::now() >= next_log && !is_given_up {
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

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            ..State::default()
        };
        assert_eq!(
            state.hold(limit, began, at(20)),
            Hold {
                handled_as_of: None,
                limit: None,
                parked_limit: None
            }
        );
        let given_up = state.hold(limit, began, at(70));
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
            waiting_since: None,
        };
        assert_eq!(
            state.hold(limit, began, at(80)),
            Hold {
                handled_as_of: handled,
                limit: None,
                parked_limit: Some(limit)
            }
        );
        // The next round starts a new wait.
        state.waiting_since = Some(at(90));
        assert_eq!(state.hold(limit, began, at(100)).limit, None);
    }
}
