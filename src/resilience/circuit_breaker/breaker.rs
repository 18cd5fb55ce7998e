//! Handle of a circuit breaker: one circuit, shared by all callers of one dependency.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;
use tokio::time::Instant;

use super::error::CircuitOpen;
use super::policy::CircuitBreakerPolicy;
use super::state::{CircuitState, Machine, Outcome, Ticket, Transition};

/// Number of transitions that a slow subscriber may lag behind. A circuit changes at most a few
/// times per minute.
const TRANSITIONS_MAX: usize = 64;

/// Circuit of one dependency. Cheap to clone. Create one for each dependency and share it between
/// its clients.
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

/// Counters since the breaker was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Calls that were dropped, or whose outcome carries no information about the dependency.
    pub ignored: u64,
    /// Calls that were rejected.
    pub rejected: u64,
    /// Transitions to open, from closed or half-open.
    pub opened: u64,
    /// Transitions to half-open, each with the first probe.
    pub half_opened: u64,
    /// Transitions to closed.
    pub closed: u64,
}

/// Permission for one call. Report the outcome with one of its methods. A dropped permit counts as
/// ignored and releases its place.
#[must_use = "a permit that is dropped at once counts no call"]
pub struct Permit {
    breaker: CircuitBreaker,
    /// `None` once the permit has been returned.
    ticket: Option<Ticket>,
}

/// Subscription to a circuit's transitions.
#[derive(Debug)]
pub struct Transitions(broadcast::Receiver<Transition>);

impl CircuitBreaker {
    /// Creates a closed circuit. `name` appears in logs, errors and metrics; use the name of the
    /// dependency.
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

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the state. An open circuit stays [`Open`](CircuitState::Open) until the first call
    /// after its open time.
    pub fn state(&self) -> CircuitState {
        self.circuit().machine.state()
    }

    /// Returns the counters.
    pub fn counts(&self) -> Counts {
        self.circuit().counts
    }

    /// Subscribes to transitions from now on, for instance to log them or to publish them as
    /// events.
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
    /// // Usually in a task of its own, in a loop: while let Some(transition) = …
    /// let transition = transitions.next().await.unwrap();
    /// assert_eq!(
    ///     format!("{} → {}: {}", transition.from, transition.to, transition.cause),
    ///     "closed → open: 5 failures in a row"
    /// );
    /// # }
    /// ```
    pub fn transitions(&self) -> Transitions {
        Transitions(self.0.transitions.subscribe())
    }

    /// Requests permission for one call, for code that is not a tower service.
    ///
    /// # Errors
    ///
    /// Returns [`CircuitOpen`] if the call must not be made.
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

    /// Counts, logs and sends a transition. The caller holds the lock, so that all subscribers
    /// receive the transitions in order.
    fn tell(&self, circuit: &mut Circuit, changed: Option<Transition>) {
        let Some(transition) = changed else { return };
        let (name, Transition { from, to, cause }) = (self.name(), transition);
        let count = match to {
            CircuitState::Open => &mut circuit.counts.opened,
            CircuitState::HalfOpen => &mut circuit.counts.half_opened,
            CircuitState::Closed => &mut circuit.counts.closed,
        };
        *count += 1;
        if to == CircuitState::Open {
            tracing::warn!(breaker = name, %from, %to, %cause, "the circuit opened");
        } else {
            tracing::info!(breaker = name, %from, %to, %cause, "the circuit changed its state");
        }
        // An error only means that there is no subscriber.
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
    /// Reports that the call succeeded.
    pub fn succeeded(self) {
        self.end(Outcome::Success);
    }

    /// Reports that the call failed because of the dependency.
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
    /// Returns the next transition, or `None` if the breaker no longer exists. A subscriber that
    /// lags more than 64 transitions behind misses the oldest.
    ///
    /// # Cancel safety
    ///
    /// No transition is lost if the future is dropped.
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
