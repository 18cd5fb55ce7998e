//! Builder with which a service defines a saga.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::machine::{ActionShape, Shape, StepShape};
use super::signature::{ActionSignature, Signature, StepSignature};
use super::statistics::SagaStatistics;
use crate::event::{DomainEvent, Envelope, EnvelopeError};
use crate::subscriber::{HandlerError, Meta, Retry, Tx};

/// State that a saga carries from step to step: any serde type.
pub trait SagaState: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}

impl<S: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> SagaState for S {}

pub(crate) type Called<S> = Pin<Box<dyn Future<Output = Result<S, HandlerError>> + Send>>;
pub(crate) type Local<S> = Arc<dyn Fn(S, Tx) -> Called<S> + Send + Sync>;
type Make<S> = Arc<dyn Fn(&S) -> Result<Envelope, EnvelopeError> + Send + Sync>;
/// Applies a reply to the state. Returns `Some` with the reason if the reply refuses the step.
type Take<S> = Arc<dyn Fn(&mut S, &Meta) -> Result<Option<String>, HandlerError> + Send + Sync>;
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

/// Aggregate and event types of a start event or a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) aggregate: &'static str,
    pub(super) types: &'static [&'static str],
}

#[derive(Clone)]
struct Step<S> {
    name: String,
    forth: Action<S>,
    back: Action<S>,
    timeout: Option<Duration>,
    retry: Option<Retry>,
    pivot: bool,
    retired: bool,
}

#[derive(Clone)]
pub(super) enum Action<S> {
    Nothing,
    Remote {
        sends: &'static [&'static str],
        make: Make<S>,
        replies: Vec<Reply<S>>,
    },
    Local(Local<S>),
}

#[derive(Clone)]
pub(super) struct Reply<S> {
    pub(super) kind: Kind,
    pub(super) take: Take<S>,
}

impl Kind {
    fn of<E: DomainEvent>() -> Self {
        Self {
            aggregate: E::AGGREGATE,
            types: E::TYPES,
        }
    }
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

    /// Sets the maximum time for which a due timer waits for pending replies. The timer waits until
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

    /// Adds the next step. The name is stored with each run, so a renamed step is a different step.
    pub fn step(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        if self.steps.iter().any(|step| step.name == name) {
            self.faults
                .push(format!("two steps have the name `{name}`"));
        }
        let (forth, back) = (Action::Nothing, Action::Nothing);
        self.steps.push(Step {
            name,
            forth,
            back,
            timeout: None,
            retry: None,
            pivot: false,
            retired: false,
        });
        self
    }

    /// Makes the step send this event. Unless [`on`](Self::on) names a reply, the step is done as
    /// soon as the event is in the outbox.
    pub fn command<C: DomainEvent>(
        self,
        command: impl Fn(&S) -> C + Send + Sync + 'static,
    ) -> Self {
        self.with("command", |step, _| step.forth = remote(command))
    }

    /// Makes the step call this function, in the transaction that also records the step as done. If
    /// the function fails, its changes are rolled back and it is retried. After
    /// [`HandlerError::dead_letter`] the step fails at once.
    pub fn local<F, Fut>(self, function: F) -> Self
    where
        F: Fn(S, Tx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        self.with("local", |step, _| {
            step.forth = Action::Local(Arc::new(move |state, tx| Box::pin(function(state, tx))))
        })
    }

    /// Completes the step on this reply.
    pub fn on<E: DomainEvent>(self, take: impl Fn(&mut S, E) + Send + Sync + 'static) -> Self {
        self.reply(false, done(take))
    }

    /// Fails the step on this reply, which states that the step had no effect. The completed steps
    /// before it are compensated. The function returns the reason.
    pub fn fails_on<E: DomainEvent>(
        self,
        reason: impl Fn(&mut S, E) -> String + Send + Sync + 'static,
    ) -> Self {
        self.reply(
            false,
            reply::<S, E>(move |state, event| Some(reason(state, event))),
        )
    }

    /// Undoes the step with this event if a later step fails. The event is also sent if the step
    /// itself received no reply, so its receiver must tolerate a request to undo a step that never
    /// took effect. Unless [`compensated_on`](Self::compensated_on) names a reply, the step is
    /// undone as soon as the event is in the outbox.
    pub fn compensate<C: DomainEvent>(
        self,
        command: impl Fn(&S) -> C + Send + Sync + 'static,
    ) -> Self {
        self.with("compensate", |step, _| step.back = remote(command))
    }

    /// Undoes the step with this function.
    pub fn compensate_local<F, Fut>(self, function: F) -> Self
    where
        F: Fn(S, Tx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        self.with("compensate_local", |step, _| {
            step.back = Action::Local(Arc::new(move |state, tx| Box::pin(function(state, tx))))
        })
    }

    /// Completes the compensation on this reply.
    pub fn compensated_on<E: DomainEvent>(
        self,
        take: impl Fn(&mut S, E) + Send + Sync + 'static,
    ) -> Self {
        self.reply(true, done(take))
    }

    /// Fails the compensation on this reply. The compensation is retried, then recorded as failed,
    /// and the remaining compensations still run.
    pub fn compensation_fails_on<E: DomainEvent>(
        self,
        reason: impl Fn(&mut S, E) -> String + Send + Sync + 'static,
    ) -> Self {
        self.reply(
            true,
            reply::<S, E>(move |state, event| Some(reason(state, event))),
        )
    }

    /// Sets the time limit of the wait for a reply, or of a local step. By default, a step waits
    /// until the saga's own time limit (see [`within`](Self::within)), and compensations and local
    /// steps have 60 s.
    pub fn timeout(self, time: Duration) -> Self {
        self.with("timeout", |step, _| step.timeout = Some(time))
    }

    /// Sets the retries of the step and of its compensation.
    ///
    /// A command is sent again if no reply arrived in time, but not if it was refused. After the
    /// pivot, and for compensations, a refusal is retried too. By default, a command is sent once,
    /// a local step has five attempts, and compensations and steps after the pivot have ten
    /// attempts within half an hour.
    pub fn retry(self, retry: Retry) -> Self {
        self.with("retry", |step, _| step.retry = Some(retry))
    }

    /// Makes this step the pivot: once it is done, the saga only moves forward. Later steps are
    /// retried where they would otherwise fail, and nothing is compensated.
    pub fn pivot(self) -> Self {
        self.with("pivot", |step, _| step.pivot = true)
    }

    /// Keeps the step only for runs that started under an older version. New runs skip it. Remove
    /// the step when no such run is left.
    pub fn retired(self) -> Self {
        self.with("retired", |step, _| step.retired = true)
    }

    fn with(mut self, what: &str, change: impl FnOnce(&mut Step<S>, &mut Vec<String>)) -> Self {
        match self.steps.last_mut() {
            Some(step) => change(step, &mut self.faults),
            None => self
                .faults
                .push(format!("`.{what}(…)` comes before the first `.step(…)`")),
        }
        self
    }

    fn reply(self, back: bool, reply: Reply<S>) -> Self {
        let what = if back { "compensated_on" } else { "on" };
        self.with(what, |step, faults| {
            match if back {
                &mut step.back
            } else {
                &mut step.forth
            } {
                Action::Remote { replies, .. } => {
                    let known: Vec<_> = replies.iter().flat_map(|reply| reply.kind.types).collect();
                    faults.extend(
                        reply
                            .kind
                            .types
                            .iter()
                            .filter(|name| known.contains(name))
                            .map(|name| {
                                format!("step `{}` names the reply `{name}` twice", step.name)
                            }),
                    );
                    replies.push(reply);
                }
                _ => faults.push(format!(
                    "step `{}` has a reply without a command before it",
                    step.name
                )),
            }
        })
    }
}

impl<S> Saga<S> {
    /// Returns the part of the definition that the machine needs.
    pub(crate) fn shape(&self) -> Shape {
        let steps = self.steps.iter().map(|step| StepShape {
            name: step.name.clone(),
            forth: step.forth.shape(),
            back: step.back.shape(),
            timeout: step.timeout,
            retry: step.retry.clone(),
            pivot: step.pivot,
            retired: step.retired,
        });
        Shape {
            steps: steps.collect(),
            within: self.within,
        }
    }

    pub(super) fn step_names(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.name.as_str())
    }

    /// Returns the errors in the definition.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.faults.clone();
        if self.name.is_empty() || self.name.len() > 255 {
            faults.push("its name must have 1 to 255 bytes".into());
        }
        if self.steps.iter().all(|step| step.retired) {
            faults.push("it has no step that is not retired".into());
        }
        if i32::try_from(self.version).map_or(true, |version| version < 1) {
            faults.push("its version must be from 1 to 2147483647".into());
        }
        faults
            .into_iter()
            .map(|fault| format!("saga `{}`: {fault}", self.name))
            .collect()
    }

    /// Returns every kind of event that starts the saga or replies to a step.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        let replies = self
            .steps
            .iter()
            .flat_map(|step| [&step.forth, &step.back])
            .flat_map(Action::replies);
        let all = self
            .starts
            .iter()
            .map(|start| start.kind)
            .chain(replies.map(|reply| reply.kind));
        all.fold(Vec::new(), |mut kinds, kind| {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
            kinds
        })
    }

    /// Returns the aggregates whose events reply to a step.
    pub(super) fn reply_aggregates(&self) -> Vec<&'static str> {
        let replies = self
            .steps
            .iter()
            .flat_map(|step| step.forth.replies().iter().chain(step.back.replies()));
        let mut all: Vec<_> = replies.map(|reply| reply.kind.aggregate).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns the part of the definition that another process can compare.
    pub(super) fn signature(&self) -> Signature {
        let steps = self.steps.iter().map(|step| StepSignature {
            step: step.name.clone(),
            forth: step.forth.signature(),
            back: step.back.signature(),
            pivot: step.pivot,
            retired: step.retired,
        });
        let starts = self
            .starts
            .iter()
            .flat_map(|start| start.kind.types)
            .map(|start| (*start).to_owned());
        Signature {
            version: self.version,
            starts: starts.collect(),
            steps: steps.collect(),
        }
    }

    pub(super) fn action(&self, step: &str, back: bool) -> Option<&Action<S>> {
        let step = self.steps.iter().find(|candidate| candidate.name == step)?;
        Some(if back { &step.back } else { &step.forth })
    }

    pub(super) fn timeout_of(&self, step: &str) -> Option<Duration> {
        self.steps
            .iter()
            .find(|candidate| candidate.name == step)?
            .timeout
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

impl<S> Action<S> {
    /// Returns `true` if an event of this type replies to the action.
    pub(super) fn takes(&self, event_type: &str) -> bool {
        self.replies()
            .iter()
            .any(|reply| reply.kind.types.contains(&event_type))
    }

    fn replies(&self) -> &[Reply<S>] {
        match self {
            Self::Remote { replies, .. } => replies,
            _ => &[],
        }
    }

    fn signature(&self) -> ActionSignature {
        let owned = |types: &[&str]| {
            types
                .iter()
                .map(|event_type| (*event_type).to_owned())
                .collect()
        };
        match self {
            Self::Nothing => ActionSignature::default(),
            Self::Local(_) => ActionSignature {
                local: true,
                ..ActionSignature::default()
            },
            Self::Remote { sends, replies, .. } => {
                let types: Vec<&str> = replies
                    .iter()
                    .flat_map(|reply| reply.kind.types)
                    .copied()
                    .collect();
                ActionSignature {
                    local: false,
                    sends: owned(sends),
                    replies: owned(&types),
                }
            }
        }
    }

    fn shape(&self) -> ActionShape {
        match self {
            Self::Nothing => ActionShape::Nothing,
            Self::Remote { replies, .. } => ActionShape::Remote(
                replies
                    .iter()
                    .flat_map(|reply| reply.kind.types)
                    .copied()
                    .collect(),
            ),
            Self::Local(_) => ActionShape::Local,
        }
    }
}

fn remote<S, C: DomainEvent>(command: impl Fn(&S) -> C + Send + Sync + 'static) -> Action<S> {
    Action::Remote {
        sends: C::TYPES,
        make: Arc::new(move |state| Envelope::of(&command(state))),
        replies: Vec::new(),
    }
}

/// Creates a reply that completes the action.
fn done<S, E: DomainEvent>(take: impl Fn(&mut S, E) + Send + Sync + 'static) -> Reply<S> {
    reply::<S, E>(move |state, event| {
        take(state, event);
        None
    })
}

fn reply<S, E: DomainEvent>(
    take: impl Fn(&mut S, E) -> Option<String> + Send + Sync + 'static,
) -> Reply<S> {
    Reply {
        kind: Kind::of::<E>(),
        take: Arc::new(move |state, meta| Ok(take(state, meta.decode()?))),
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
