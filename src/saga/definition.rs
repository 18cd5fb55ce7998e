//! A saga as its service writes it: the builder.

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

/// What a saga carries from step to step: any serde type.
pub trait SagaState: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}

impl<S: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> SagaState for S {}

pub(crate) type Called<S> = Pin<Box<dyn Future<Output = Result<S, HandlerError>> + Send>>;
pub(crate) type Local<S> = Arc<dyn Fn(S, Tx) -> Called<S> + Send + Sync>;
type Make<S> = Arc<dyn Fn(&S) -> Result<Envelope, EnvelopeError> + Send + Sync>;
/// Takes a reply into the state; the reason if it refuses.
type Take<S> = Arc<dyn Fn(&mut S, &Meta) -> Result<Option<String>, HandlerError> + Send + Sync>;
type Begin<S> = Arc<dyn Fn(&Meta) -> Result<S, HandlerError> + Send + Sync>;
type Text<S> = Arc<dyn Fn(&S) -> String + Send + Sync>;

/// A saga: a typed state, and the steps that change it. See the [module](crate::saga).
///
/// What is said behind [`step`](Self::step) is about that step, until the next one. Faults of the whole (two steps of one name, a reply without a command) are reported when the
/// subscriber starts, all at once.
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

/// Where events of a type are, and what they are called.
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
    /// How long sagas that are completed or compensated can be asked for, unless [`keep`](Self::keep) says otherwise.
    pub const KEEP_DEFAULT: Duration = Duration::from_secs(30 * 86_400);

    /// How many sagas that are due a process goes on with at once, unless [`concurrency`](Self::concurrency) says otherwise: so that one slow local step does not keep the others
    /// waiting, and the timer takes few of the pool's connections.
    pub const CONCURRENCY_DEFAULT: usize = 4;

    /// How long a timer that is due waits for replies that are in Kafka already, unless [`wait_for_replies`](Self::wait_for_replies) says
    /// otherwise: as long as a subscriber needs for the events of some hours.
    pub const WAIT_FOR_REPLIES_DEFAULT: Duration = Duration::from_secs(600);

    /// A saga without steps. Its name is stored with each run: renaming it abandons those that run.
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

    /// The version of steps and state, 1 otherwise. Raise it when they change: code of an older version then leaves what newer code has written alone, so that both may run
    /// during a deployment.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Lifts a state that an older version has stored, told which; otherwise it must still be readable.
    pub fn lift(mut self, with: impl Fn(u32, Value) -> Value + Send + Sync + 'static) -> Self {
        self.lift = Some(Arc::new(with));
        self
    }

    /// Such an event starts a saga with this state, by the transaction that handles it.
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

    /// Names the run: of one name and key there is one saga, and a second start is without effect. Otherwise each event, and each call, starts one.
    pub fn key(mut self, key: impl Fn(&S) -> String + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// Compensates if the saga has neither ended nor passed its pivot after this long.
    pub fn within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }

    /// Holds this aggregate while it runs: a later saga that locks it, of whatever name, waits until this one has ended. Nothing else is kept from the aggregate; code that shall
    /// respect the lock asks [`Sagas::holder_of`](super::Sagas::holder_of). A saga that has failed keeps its locks until a person has dealt with it.
    pub fn locks(
        mut self,
        aggregate: impl Into<String>,
        id: impl Fn(&S) -> String + Send + Sync + 'static,
    ) -> Self {
        self.locks.push((aggregate.into(), Arc::new(id)));
        self
    }

    /// Does not wait for what is locked: a saga that is started by an event then ends as compensated at once, and [`start`](Self::start) fails.
    pub fn refuse_locked(mut self) -> Self {
        self.refuse_locked = true;
        self
    }

    /// How long sagas that are completed or compensated can be asked for; [`KEEP_DEFAULT`](Self::KEEP_DEFAULT) otherwise. Failed ones stay.
    pub fn keep(mut self, time: Duration) -> Self {
        self.keep = time;
        self
    }

    /// How many sagas a process goes on with at once because of time: timeouts, retries, those started by code. Each holds a connection of the inbox's pool. 1 at least;
    /// [`CONCURRENCY_DEFAULT`](Self::CONCURRENCY_DEFAULT) otherwise. Replies are bounded by the subscriber's.
    pub fn concurrency(mut self, sagas: usize) -> Self {
        self.concurrency = sagas.max(1);
        self
    }

    /// How long a timer that is due waits until the subscriber's group has handled the events that the reply topics held when the timer
    /// was due, and a reply that is parked. So a saga is not undone for a reply that came while its service was away. Defaults to
    /// [`WAIT_FOR_REPLIES_DEFAULT`](Self::WAIT_FOR_REPLIES_DEFAULT). With zero, timers wait for nothing.
    ///
    /// The timers that wait are those of steps that have sent a command: its time-out, its next attempt, and the time of the whole.
    pub fn wait_for_replies(mut self, at_most: Duration) -> Self {
        self.wait_for_replies = at_most;
        self
    }

    /// What its runs come to in this process, and how they stand, to be read while a subscriber runs it. Of all clones the same.
    pub fn statistics(&self) -> SagaStatistics {
        self.statistics.clone()
    }

    /// The next step. Its name is stored with each run: a renamed step is another step.
    pub fn step(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        if self.steps.iter().any(|step| step.name == name) {
            self.faults.push(format!("two steps are called `{name}`"));
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

    /// The step sends this event. Without a reply named by [`on`](Self::on) it is done once the event is in the outbox.
    pub fn command<C: DomainEvent>(
        self,
        command: impl Fn(&S) -> C + Send + Sync + 'static,
    ) -> Self {
        self.with("command", |step, _| step.forth = remote(command))
    }

    /// The step is this function, by the transaction that also stores that it is done. If it fails, what it did is rolled back, and it is tried again; with
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

    /// This reply says that the step is done.
    pub fn on<E: DomainEvent>(self, take: impl Fn(&mut S, E) + Send + Sync + 'static) -> Self {
        self.reply(false, done(take))
    }

    /// This reply refuses the step: it did nothing, and why. What was done before is compensated.
    pub fn fails_on<E: DomainEvent>(
        self,
        reason: impl Fn(&mut S, E) -> String + Send + Sync + 'static,
    ) -> Self {
        self.reply(
            false,
            reply::<S, E>(move |state, event| Some(reason(state, event))),
        )
    }

    /// Undoes the step, if a later one fails, by this event. It is also sent if the step itself got no answer, so its receiver must bear to undo what was not done. Without a reply
    /// named by [`compensated_on`](Self::compensated_on) the step is undone once the event is in the outbox.
    pub fn compensate<C: DomainEvent>(
        self,
        command: impl Fn(&S) -> C + Send + Sync + 'static,
    ) -> Self {
        self.with("compensate", |step, _| step.back = remote(command))
    }

    /// Undoes the step by this function.
    pub fn compensate_local<F, Fut>(self, function: F) -> Self
    where
        F: Fn(S, Tx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        self.with("compensate_local", |step, _| {
            step.back = Action::Local(Arc::new(move |state, tx| Box::pin(function(state, tx))))
        })
    }

    /// This reply says that the step is undone.
    pub fn compensated_on<E: DomainEvent>(
        self,
        take: impl Fn(&mut S, E) + Send + Sync + 'static,
    ) -> Self {
        self.reply(true, done(take))
    }

    /// This reply says that the step could not be undone: the compensation is tried again, then recorded as failed, and the others still run.
    pub fn compensation_fails_on<E: DomainEvent>(
        self,
        reason: impl Fn(&mut S, E) -> String + Send + Sync + 'static,
    ) -> Self {
        self.reply(
            true,
            reply::<S, E>(move |state, event| Some(reason(state, event))),
        )
    }

    /// How long the step waits for a reply, or a local one runs. Otherwise a step waits for as long as the saga, a compensation and a local step 60 s.
    pub fn timeout(self, time: Duration) -> Self {
        self.with("timeout", |step, _| step.timeout = Some(time))
    }

    /// How often the step is tried, and its compensation. A command is sent again if no reply came in time, not if it was refused; behind the pivot, and for compensations, also then.
    /// Otherwise: a command once, a local step five times, a compensation and what is behind the pivot ten times within half an hour.
    pub fn retry(self, retry: Retry) -> Self {
        self.with("retry", |step, _| step.retry = Some(retry))
    }

    /// Once this step is done, the saga only goes forward: later steps are tried again where they would have failed, and nothing is compensated.
    pub fn pivot(self) -> Self {
        self.with("pivot", |step, _| step.pivot = true)
    }

    /// The step is for runs that began under an older version; new ones leave it out. Remove it when none of them is left.
    pub fn retired(self) -> Self {
        self.with("retired", |step, _| step.retired = true)
    }

    fn with(mut self, what: &str, change: impl FnOnce(&mut Step<S>, &mut Vec<String>)) -> Self {
        match self.steps.last_mut() {
            Some(step) => change(step, &mut self.faults),
            None => self
                .faults
                .push(format!("`.{what}(…)` stands before the first step")),
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
                            .map(|name| format!("step `{}` takes `{name}` twice", step.name)),
                    );
                    replies.push(reply);
                }
                _ => faults.push(format!(
                    "step `{}` has a reply and no command before it",
                    step.name
                )),
            }
        })
    }
}

impl<S> Saga<S> {
    /// What the machine has to know.
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

    /// What is wrong with it, before anything runs.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.faults.clone();
        if self.name.is_empty() || self.name.len() > 255 {
            faults.push("its name has 1 to 255 bytes".into());
        }
        if self.steps.iter().all(|step| step.retired) {
            faults.push("it has no step".into());
        }
        if i32::try_from(self.version).map_or(true, |version| version < 1) {
            faults.push("its version is a positive int".into());
        }
        faults
            .into_iter()
            .map(|fault| format!("saga `{}`: {fault}", self.name))
            .collect()
    }

    /// Every kind of event that it starts on or waits for.
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

    /// The aggregates whose events answer a step.
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

    /// The part that another process can compare.
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
    /// Reads a state that this version has stored, or an older one.
    pub(super) fn read_state(&self, version: u32, text: &str) -> Result<S, serde_json::Error> {
        match &self.lift {
            Some(lift) if version < self.version => {
                serde_json::from_value(lift(version, serde_json::from_str(text)?))
            }
            _ => serde_json::from_str(text),
        }
    }

    /// What it locks, each once, in one order.
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
    /// Whether such an event answers it.
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

/// A reply that refuses nothing.
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
