//! The handle: one circuit, shared by all who call one dependency.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;
use tokio::time::Instant;

use super::error::CircuitOpen;
use super::policy::CircuitBreakerPolicy;
use super::state::{Machine, Outcome, State, Ticket, Transition};

/// How many transitions a slow subscriber may be behind. A circuit changes a few times a minute at most.
const TRANSITIONS_MAX: usize = 64;

/// One circuit; cheap to clone. Keep one for each dependency and share it between its clients.
#[derive(Clone)]
pub struct CircuitBreaker(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    circuit: Mutex<Circuit>,
    transitions: broadcast::Sender<Transition>,
}

struct Circuit {
    machine: Machine,
    counts: Counts,
}

/// What became of the calls since the breaker was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Calls that were dropped, or say nothing of the other side.
    pub ignored: u64,
    /// Calls that were not made.
    pub rejected: u64,
    /// Times it opened, from closed or half-open.
    pub opened: u64,
    /// Times it became half-open: a first probe was let through.
    pub half_opened: u64,
    /// Times it closed again.
    pub closed: u64,
}

/// The right to make one call. Say what came of it; dropped, it counts as nothing and frees its place.
#[must_use = "a permit that is dropped at once counts no call"]
pub struct Permit {
    breaker: CircuitBreaker,
    /// Taken by whoever gives it back.
    ticket: Option<Ticket>,
}

/// A subscription of a circuit's transitions.
#[derive(Debug)]
pub struct Transitions(broadcast::Receiver<Transition>);

impl CircuitBreaker {
    /// A closed circuit. The name is for logs, errors and metrics: the dependency's.
    pub fn new(name: impl Into<Arc<str>>, policy: CircuitBreakerPolicy) -> Self {
        let circuit = Circuit {
            machine: Machine::new(policy, Instant::now()),
            counts: Counts::default(),
        };
        Self(Arc::new(Inner {
            name: name.into(),
            circuit: Mutex::new(circuit),
            transitions: broadcast::Sender::new(TRANSITIONS_MAX),
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How it stands. An open circuit stays [`Open`](State::Open) until the first call after its time.
    pub fn state(&self) -> State {
        self.circuit().machine.state()
    }

    /// What became of the calls so far.
    pub fn counts(&self) -> Counts {
        self.circuit().counts
    }

    /// Subscribes to the transitions from now on: to log them, or to publish them as events.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tidings::resilience::{CircuitBreaker, CircuitBreakerPolicy};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
    /// let mut transitions = breaker.transitions();
    /// for _ in 0..5 {
    ///     breaker.admit().unwrap().failed();
    /// }
    /// let transition = transitions.next().await.unwrap(); // in a task of its own: while let Some(transition) = …
    /// assert_eq!(format!("{} → {}: {}", transition.from, transition.to, transition.cause), "closed → open: 5 failures in a row");
    /// # }
    /// ```
    pub fn transitions(&self) -> Transitions {
        Transitions(self.0.transitions.subscribe())
    }

    /// Asks for the right to make one call, for what is not a tower service.
    ///
    /// # Errors
    ///
    /// [`CircuitOpen`] if it must not be made.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tidings::resilience::{CircuitBreaker, CircuitBreakerPolicy, CircuitOpen};
    /// # fn ask_for_stock() -> Result<u32, std::io::Error> { Ok(7) }
    /// # fn example(breaker: &CircuitBreaker) -> Result<(), Box<dyn std::error::Error>> {
    /// let permit = breaker.admit()?;
    /// match ask_for_stock() {
    ///     Ok(_) => permit.succeeded(),
    ///     Err(_) => permit.failed(),
    /// }
    /// # Ok(()) }
    /// # example(&CircuitBreaker::new("stock", CircuitBreakerPolicy::default())).unwrap();
    /// ```
    pub fn admit(&self) -> Result<Permit, CircuitOpen> {
        let mut circuit = self.circuit();
        let now = Instant::now();
        let changed = circuit.machine.elapse(now);
        self.tell(&mut circuit, changed);
        match circuit.machine.admit(now) {
            Ok(ticket) => Ok(Permit {
                breaker: self.clone(),
                ticket: Some(ticket),
            }),
            Err(retry_after) => {
                circuit.counts.rejected += 1;
                Err(CircuitOpen {
                    name: self.0.name.clone(),
                    retry_after,
                })
            }
        }
    }

    fn complete(&self, ticket: Ticket, outcome: Outcome) {
        let mut circuit = self.circuit();
        match outcome {
            Outcome::Success => circuit.counts.succeeded += 1,
            Outcome::Failure => circuit.counts.failed += 1,
            Outcome::Ignored => circuit.counts.ignored += 1,
        }
        let changed = circuit.machine.complete(ticket, outcome, Instant::now());
        self.tell(&mut circuit, changed);
    }

    /// Within the lock, so that everybody hears the transitions in their order.
    fn tell(&self, circuit: &mut Circuit, changed: Option<Transition>) {
        let Some(transition) = changed else { return };
        let (name, Transition { from, to, cause }) = (self.name(), transition);
        let count = match to {
            State::Open => &mut circuit.counts.opened,
            State::HalfOpen => &mut circuit.counts.half_opened,
            State::Closed => &mut circuit.counts.closed,
        };
        *count += 1;
        if to == State::Open {
            tracing::warn!(breaker = name, %from, %to, %cause, "circuit opens");
        } else {
            tracing::info!(breaker = name, %from, %to, %cause, "circuit changes");
        }
        // Nobody may be listening.
        let _ = self.0.transitions.send(transition);
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.0
            .circuit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The call did what it should.
    pub fn succeeded(self) {
        self.end(Outcome::Success);
    }

    /// The call failed, and the other side is to blame.
    pub fn failed(self) {
        self.end(Outcome::Failure);
    }

    pub(super) fn end(mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.breaker.complete(ticket, outcome);
        }
    }
}

impl Transitions {
    /// The next transition; `None` once the breaker is gone. A subscriber that is more than 64 behind misses the oldest.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Transition> {
        loop {
            match self.0.recv().await {
                Ok(transition) => return Some(transition),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

// === impl Drop, Debug ===

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.breaker.complete(ticket, Outcome::Ignored);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Permit")
            .field("breaker", &self.breaker.name())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CircuitBreaker")
            .field("name", &self.name())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
