//! The state machine: pure. It is told the time and never asks for it.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::policy::CircuitBreakerPolicy;
use super::window::Window;

/// An open phase ends after so long, whatever is configured: an `Instant` cannot be any further away.
const OPEN_MAX: Duration = Duration::from_secs(365 * 86_400);

/// How a circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls fail at once.
    Open,
    /// A few calls pass, as probes; the others fail at once.
    HalfOpen,
}

/// A circuit has changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// What it was.
    pub from: State,
    /// What it is.
    pub to: State,
    /// Why.
    pub cause: Cause,
}

/// Why a circuit changes its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// So many failures in a row: it opens.
    ConsecutiveFailures(u32),
    /// So many failures among so many calls of the window: it opens.
    FailureRate {
        /// How many failed.
        failures: u32,
        /// How many there were.
        calls: u32,
    },
    /// It was open for long enough, and a call came: half-open.
    OpenElapsed,
    /// A probe failed: open again.
    ProbeFailed,
    /// Enough probes succeeded: closed.
    ProbesSucceeded,
}

/// What came of an admitted call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failure,
    /// Dropped, or nothing that tells of the other side.
    Ignored,
}

/// The right to make one call, and the phase in which it was given.
#[derive(Debug)]
pub(super) struct Ticket {
    phase: u64,
}

/// One circuit.
#[derive(Debug)]
pub(super) struct Machine {
    policy: CircuitBreakerPolicy,
    phase: Phase,
    /// Counts the phases: an outcome from an earlier one says nothing about this one.
    number: u64,
}

#[derive(Debug)]
enum Phase {
    Closed {
        consecutive: u32,
        window: Option<Window>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        under_way: u32,
        successes: u32,
    },
}

impl Machine {
    pub(super) fn new(policy: CircuitBreakerPolicy, now: Instant) -> Self {
        Self {
            phase: closed(&policy, now),
            policy,
            number: 0,
        }
    }

    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Half-open if it was open for long enough. To be asked before [`admit`](Self::admit).
    pub(super) fn elapse(&mut self, now: Instant) -> Option<Transition> {
        match self.phase {
            Phase::Open { until } if now >= until => Some(self.enter(
                Phase::HalfOpen {
                    under_way: 0,
                    successes: 0,
                },
                Cause::OpenElapsed,
            )),
            _ => None,
        }
    }

    /// Lets a call pass, or says after how long to ask again. Each ticket has to come back by [`complete`](Self::complete).
    pub(super) fn admit(&mut self, now: Instant) -> Result<Ticket, Duration> {
        match &mut self.phase {
            Phase::Closed { .. } => {}
            Phase::Open { until } => return Err(until.saturating_duration_since(now)),
            Phase::HalfOpen { under_way, .. } if *under_way >= self.policy.probes.max(1) => {
                return Err(Duration::ZERO);
            }
            Phase::HalfOpen { under_way, .. } => *under_way += 1,
        }
        Ok(Ticket { phase: self.number })
    }

    /// Takes a ticket back, with what came of its call.
    pub(super) fn complete(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Transition> {
        if ticket.phase != self.number {
            return None;
        }
        match &mut self.phase {
            Phase::Closed {
                consecutive,
                window,
            } => {
                let failed = match outcome {
                    Outcome::Ignored => return None,
                    Outcome::Success => false,
                    Outcome::Failure => true,
                };
                *consecutive = if failed {
                    consecutive.saturating_add(1)
                } else {
                    0
                };
                let consecutive = *consecutive;
                let counted = window.as_mut().map(|window| window.record(failed, now));
                let cause = self.too_many(consecutive, counted).filter(|_| failed)?;
                Some(self.open(cause, now))
            }
            Phase::HalfOpen {
                under_way,
                successes,
            } => {
                *under_way = under_way.saturating_sub(1);
                match outcome {
                    Outcome::Ignored => None,
                    Outcome::Failure => Some(self.open(Cause::ProbeFailed, now)),
                    Outcome::Success => {
                        *successes = successes.saturating_add(1);
                        let enough = *successes >= self.policy.successes_to_close;
                        enough
                            .then(|| self.enter(closed(&self.policy, now), Cause::ProbesSucceeded))
                    }
                }
            }
            Phase::Open { .. } => None,
        }
    }

    fn too_many(&self, consecutive: u32, counted: Option<(u32, u32)>) -> Option<Cause> {
        if self
            .policy
            .consecutive_failures
            .is_some_and(|max| consecutive >= max.max(1))
        {
            return Some(Cause::ConsecutiveFailures(consecutive));
        }
        let (rate, (calls, failures)) = self.policy.failure_rate.zip(counted)?;
        rate.is_reached(calls, failures)
            .then_some(Cause::FailureRate { failures, calls })
    }

    fn open(&mut self, cause: Cause, now: Instant) -> Transition {
        self.enter(
            Phase::Open {
                until: now + self.policy.open.min(OPEN_MAX),
            },
            cause,
        )
    }

    fn enter(&mut self, phase: Phase, cause: Cause) -> Transition {
        let from = self.state();
        self.phase = phase;
        self.number += 1;
        Transition {
            from,
            to: self.state(),
            cause,
        }
    }
}

fn closed(policy: &CircuitBreakerPolicy, now: Instant) -> Phase {
    Phase::Closed {
        consecutive: 0,
        window: policy
            .failure_rate
            .map(|rate| Window::new(rate.window, now)),
    }
}

// === impl Display ===

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(failures) => {
                write!(formatter, "{failures} failures in a row")
            }
            Self::FailureRate { failures, calls } => {
                write!(formatter, "{failures} of the last {calls} calls failed")
            }
            Self::OpenElapsed => formatter.write_str("open for long enough: probing"),
            Self::ProbeFailed => formatter.write_str("a probe failed"),
            Self::ProbesSucceeded => formatter.write_str("enough probes succeeded"),
        }
    }
}

#[cfg(test)]
mod tests;
