//! Builder with which a service defines a saga.

mod action;
mod lookup;
mod step;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::statistics::SagaStatistics;
use crate::event::DomainEvent;
use crate::subscriber::{HandlerError, Meta};
pub(crate) use action::Local;
pub(super) use action::{Action, Kind};
use step::Step;

/// State that a saga carries from step to step: any serde type.
pub trait SagaState: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}

impl<S: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> SagaState for S {}

type Begin<S> = Arc<dyn Fn(&Meta) -> Result<S, HandlerError> + Send + Sync>;
type Text<S> = Arc<dyn Fn(&S) -> String + Send + Sync>;

/// A saga: a typed state and the steps that change it. See the [module](crate::saga).
///
/// Methods called after [`step`](Self::step) configure that step, until the next call of `step`.
/// Errors in the definition (two steps with the same name, a reply without a command) are reported
/// together when the subscriber starts.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// use std::time::Duration;
/// use tidings::DomainEvent;
/// use tidings::saga::Saga;
///
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "order", id = "order_id")]
/// # struct OrderPlaced { order_id: i64 }
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "stock", id = "order_id")]
/// # struct ReserveStock { order_id: i64 }
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "stock", id = "order_id")]
/// # struct ReleaseStock { order_id: i64 }
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "stock", id = "order_id")]
/// # struct StockReserved { order_id: i64, shelf: String }
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "stock", id = "order_id")]
/// # struct StockRefused { order_id: i64, reason: String }
/// #[derive(Clone, Serialize, Deserialize)]
/// struct PlaceOrder { order_id: i64, shelf: Option<String> }
///
/// fn place_order() -> Saga<PlaceOrder> {
///     Saga::new("place-order")
///         .starts_on::<OrderPlaced>(|order| PlaceOrder { order_id: order.order_id, shelf: None })
///         .step("reserve-stock")
///         .command(|s| ReserveStock { order_id: s.order_id })
///         .on::<StockReserved>(|s, reserved| s.shelf = Some(reserved.shelf))
///         .fails_on::<StockRefused>(|_, refused| refused.reason)
///         .compensate(|s| ReleaseStock { order_id: s.order_id })
///         .timeout(Duration::from_secs(30))
///         .step("confirm")
///         .pivot()
/// }
/// ```
#[must_use = "a saga does nothing until a subscriber runs it"]
pub struct Saga<S> {
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) keep: Duration,
    pub(super) starts: Vec<Start<S>>,
    pub(super) key: Option<Text<S>>,
    pub(super) locks: Vec<(String, Text<S>)>,
    pub(super) refuse_locked: bool,
    pub(super) concurrency: usize,
    pub(super) wait_for_replies: Duration,
    pub(super) statistics: SagaStatistics,
    lift: Option<Arc<dyn Fn(u32, Value) -> Value + Send + Sync>>,
    within: Option<Duration>,
    steps: Vec<Step<S>>,
    faults: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Start<S> {
    pub(super) kind: Kind,
    pub(super) begin: Begin<S>,
}

impl<S: SagaState> Saga<S> {
    /// Default of [`keep`](Self::keep).
    pub const KEEP_DEFAULT: Duration = Duration::from_secs(30 * 86_400);

    /// Default of [`concurrency`](Self::concurrency). It prevents one slow local step from delaying
    /// the other sagas, and the timer uses few connections of the pool.
    pub const CONCURRENCY_DEFAULT: usize = 4;

    /// Default of [`wait_for_replies`](Self::wait_for_replies). A subscriber handles the events of
    /// several hours in about this time.
    pub const WAIT_FOR_REPLIES_DEFAULT: Duration = Duration::from_secs(600);

    /// Creates a saga without steps. The name is stored with each run, so renaming a saga abandons
    /// its open runs.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            statistics: SagaStatistics::new(&name),
            name,
            version: 1,
            keep: Self::KEEP_DEFAULT,
            starts: Vec::new(),
            key: None,
            locks: Vec::new(),
            refuse_locked: false,
            concurrency: Self::CONCURRENCY_DEFAULT,
            wait_for_replies: Self::WAIT_FOR_REPLIES_DEFAULT,
            lift: None,
            within: None,
            steps: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Sets the version of the steps and the state. Defaults to 1.
    ///
    /// Raise it when the steps or the state change. Code of an older version does not touch runs
    /// that newer code has written, so both versions may run during a deployment.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Converts a state that an older version stored. The function receives that version and the
    /// stored JSON. Without `lift`, the current state type must be able to read older states.
    pub fn lift(mut self, with: impl Fn(u32, Value) -> Value + Send + Sync + 'static) -> Self {
        self.lift = Some(Arc::new(with));
        self
    }

    /// Starts a saga with this state for each event of type `E`, in the transaction that handles
    /// the event.
    pub fn starts_on<E: DomainEvent>(
        mut self,
        state: impl Fn(E) -> S + Send + Sync + 'static,
    ) -> Self {
        self.starts.push(Start {
            kind: Kind::of::<E>(),
            begin: Arc::new(move |meta| Ok(state(meta.decode()?))),
        });
        self
    }

    /// Sets the key of a run. At most one run exists per name and key, and a second start has no
    /// effect. Without a key, each event and each call starts a run.
    pub fn key(mut self, key: impl Fn(&S) -> String + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// Compensates the saga if it has neither ended nor passed its pivot within `time`.
    pub fn within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }

    /// Locks this aggregate while the saga runs. A later saga of any name that locks the same
    /// aggregate waits until this one has ended.
    ///
    /// The lock applies to sagas only. Other code can respect it by calling
    /// [`Sagas::holder_of`](super::Sagas::holder_of). A failed saga keeps its locks until an
    /// operator resolves it.
    pub fn locks(
        mut self,
        aggregate: impl Into<String>,
        id: impl Fn(&S) -> String + Send + Sync + 'static,
    ) -> Self {
        self.locks.push((aggregate.into(), Arc::new(id)));
        self
    }

    /// Refuses to start while another saga holds a lock instead of waiting for the lock. A saga
    /// started by an event then ends as compensated at once, and [`start`](Self::start) fails.
    pub fn refuse_locked(mut self) -> Self {
        self.refuse_locked = true;
        self
    }

    /// Sets how long completed and compensated sagas are kept. Failed sagas are kept without limit.
    /// Defaults to [`KEEP_DEFAULT`](Self::KEEP_DEFAULT).
    pub fn keep(mut self, time: Duration) -> Self {
        self.keep = time;
        self
    }

    /// Sets the maximum number of due sagas that a process continues at once: timeouts, retries,
    /// and sagas started by code. Each uses one connection of the inbox's pool. The minimum is 1.
    /// Defaults to [`CONCURRENCY_DEFAULT`](Self::CONCURRENCY_DEFAULT). The subscriber's own
    /// concurrency limits the handling of replies.
    pub fn concurrency(mut self, sagas: usize) -> Self {
        self.concurrency = sagas.max(1);
        self
    }

    /// Sets the maximum time for which a due timer waits for pending replies while the group makes
    /// no progress. A pause of the subscriber by an operator does not count. The timer waits until
    /// the subscriber's group has handled the events that the reply topics contained when the timer
    /// became due, and while a reply to the saga is parked. A saga is therefore not undone because
    /// of a reply that arrived while its service was down. With zero, timers do not wait. Defaults
    /// to [`WAIT_FOR_REPLIES_DEFAULT`](Self::WAIT_FOR_REPLIES_DEFAULT).
    ///
    /// Only the timers of steps that have sent a command wait: the reply timeout, the next attempt,
    /// and the time limit of the whole saga.
    pub fn wait_for_replies(mut self, at_most: Duration) -> Self {
        self.wait_for_replies = at_most;
        self
    }

    /// Returns the statistics of the saga's runs in this process and in the database. All clones of
    /// the saga share them.
    pub fn statistics(&self) -> SagaStatistics {
        self.statistics.clone()
    }
}

impl<S: SagaState> Saga<S> {
    /// Reads a state that this version or an older one stored.
    pub(super) fn read_state(&self, version: u32, text: &str) -> Result<S, serde_json::Error> {
        match &self.lift {
            Some(lift) if version < self.version => {
                serde_json::from_value(lift(version, serde_json::from_str(text)?))
            }
            _ => serde_json::from_str(text),
        }
    }

    /// Returns the locked resources without duplicates, in a fixed order.
    pub(super) fn resources(&self, state: &S) -> Vec<String> {
        let mut all: Vec<_> = self
            .locks
            .iter()
            .map(|(aggregate, id)| format!("{aggregate}/{}", id(state)))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

// === impl Saga ===

impl<S: SagaState> Clone for Saga<S> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            version: self.version,
            keep: self.keep,
            starts: self.starts.clone(),
            key: self.key.clone(),
            locks: self.locks.clone(),
            refuse_locked: self.refuse_locked,
            concurrency: self.concurrency,
            wait_for_replies: self.wait_for_replies,
            statistics: self.statistics.clone(),
            lift: self.lift.clone(),
            within: self.within,
            steps: self.steps.clone(),
            faults: self.faults.clone(),
        }
    }
}

impl<S> std::fmt::Debug for Saga<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let steps: Vec<_> = self.steps.iter().map(|step| &step.name).collect();
        f.debug_struct("Saga")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("steps", &steps)
            .finish_non_exhaustive()
    }
}
