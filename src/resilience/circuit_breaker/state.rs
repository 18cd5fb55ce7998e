//! State machine of a circuit. Pure: the caller passes the time.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::policy::CircuitBreakerPolicy;
use super::window::Window;

/// Upper bound of an open phase, because an `Instant` further in the future may overflow.
const OPEN_MAX: Duration = Duration::from_secs(365 * 86_400);

/// State of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CircuitState {
    /// All calls pass.
    Closed,
    /// All calls fail at once.
    Open,
    /// A limited number of calls pass as probes; the others fail at once.
    HalfOpen,
}

/// Change of a circuit's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// Previous state.
    pub from: CircuitState,
    /// New state.
    pub to: CircuitState,
    /// Cause of the change.
    pub cause: Cause,
}

/// Cause of a state change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// This number of consecutive failures opened the circuit.
    ConsecutiveFailures(u32),
    /// The failure rate within the window opened the circuit.
    FailureRate {
        /// Number of failed calls.
        failures: u32,
        /// Number of calls.
        calls: u32,
    },
    /// The open time had elapsed when a call arrived: the circuit is half-open.
    OpenElapsed,
    /// A probe failed: the circuit is open again.
    ProbeFailed,
    /// Enough probes succeeded: the circuit is closed.
    ProbesSucceeded,
}

/// Outcome of an admitted call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failure,
    /// The call was dropped, or its outcome carries no information about the dependency.
    Ignored,
}

/// Permission for one call, with its phase.
#[derive(Debug)]
pub(super) struct Ticket {
    phase: u64,
}

/// State of one circuit.
#[derive(Debug)]
pub(super) struct Machine {
    policy: CircuitBreakerPolicy,
    phase: Phase,
    /// Number of the current phase. An outcome from an earlier phase is ignored.
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

    pub(super) fn state(&self) -> CircuitState {
        match self.phase {
            Phase::Closed { .. } => CircuitState::Closed,
            Phase::Open { .. } => CircuitState::Open,
            Phase::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// Enters the half-open state if the open time has elapsed. Call it before
    /// [`admit`](Self::admit).
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

    /// Admits a call, or returns the time after which to retry. Each ticket must be returned with
    /// [`complete`](Self::complete).
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

    /// Takes a ticket back, with the outcome of its call.
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

impl fmt::Display for CircuitState {
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
            Self::OpenElapsed => formatter.write_str("the open time has elapsed: probing"),
            Self::ProbeFailed => formatter.write_str("a probe failed"),
            Self::ProbesSucceeded => formatter.write_str("enough probes succeeded"),
        }
    }
}

#[cfg(test)]
mod tests;
