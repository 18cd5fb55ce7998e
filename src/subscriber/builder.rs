//! Builder of a subscriber.

mod plan;

use std::collections::HashMap;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};

use super::{
    Bus, DeadLetters, Delivery, Escalation, Inbox, KillSwitch, Order, Retry,
    companion::Companion,
    handler::{
        ErasedHandler, Handler, HandlerError, HasInbox, HasState, InboxReady, InboxState, Need,
        NoInbox, NoState, Plain, StateReady, erase,
        router::{Handled, HandlerService},
    },
    options::{Options, TraceRelation},
    run::{Plan, RunError},
    telemetry::statistics::Statistics,
};
use crate::event::DomainEvent;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Wrap = Box<dyn FnOnce(HandlerService) -> HandlerService + Send>;

/// A subscriber that is not running yet, created by [`Bus::subscriber`].
///
/// `S` is the state that its handlers take values from. `G` and `I` track whether the state and the
/// inbox have been set. All three are inferred.
#[must_use = "a subscriber does nothing until `run` is called"]
pub struct Subscriber<S, G = NoState, I = NoInbox> {
    pub(crate) parts: Parts<S>,
    marker: PhantomData<(G, I)>,
}

/// The settings of a subscriber, independent of its type parameters.
pub(crate) struct Parts<S> {
    pub(crate) bus: Bus,
    pub(crate) name: String,
    handlers: Vec<Registered<S>>,
    companions: Vec<Arc<dyn Companion>>,
    faults: Vec<String>,
    state: Option<S>,
    inbox: Option<Inbox>,
    topics: HashMap<&'static str, Vec<String>>,
    assumed_types: HashMap<&'static str, &'static str>,
    layers: Vec<Wrap>,
    options: Options,
    dead_letters: DeadLetters,
    code_version: Option<String>,
    instance: Option<String>,
    broker_side: bool,
    from_end: bool,
    statistics: Statistics,
}

struct Registered<S> {
    aggregate: &'static str,
    types: &'static [&'static str],
    batch: bool,
    /// The handler takes tombstones of the aggregate instead of events.
    tombstone: bool,
    handler: Box<dyn ErasedHandler<S>>,
}

impl<S: Send + Sync + 'static> Subscriber<S> {
    pub(crate) fn new(bus: Bus, name: String) -> Self {
        let parts = Parts {
            bus,
            statistics: Statistics::new(&name),
            name,
            handlers: Vec::new(),
            companions: Vec::new(),
            faults: Vec::new(),
            state: None,
            inbox: None,
            topics: HashMap::new(),
            assumed_types: HashMap::new(),
            layers: Vec::new(),
            options: Options::default(),
            dead_letters: DeadLetters::default(),
            code_version: None,
            instance: None,
            broker_side: false,
            from_end: false,
        };
        Self {
            parts,
            marker: PhantomData,
        }
    }
}

impl<S: Send + Sync + 'static, G, I: InboxState> Subscriber<S, G, I> {
    /// Adds a handler. Its first argument determines the events that it receives. Several handlers
    /// of one event type run one after the other as one item: with an inbox they share a
    /// transaction, and if one of them fails, all of them run again.
    pub fn on<H, Args>(mut self, handler: H) -> Subscriber<S, G, <H::Inbox as Need>::Apply<I>>
    where
        H: Handler<Args, S>,
        Args: 'static,
    {
        self.parts.handlers.push(Registered {
            aggregate: H::Event::AGGREGATE,
            types: H::Event::TYPES,
            batch: H::BATCH,
            tombstone: H::TOMBSTONE,
            handler: erase::<H, Args, S>(handler),
        });
        self.with_type()
    }

    /// Adds one function for events of several aggregates and types. It publishes in its
    /// transaction.
    pub(crate) fn on_each<F, Fut>(
        mut self,
        kinds: impl IntoIterator<Item = (&'static str, &'static [&'static str])>,
        handle: F,
    ) -> Subscriber<S, G, I::WhenNeeded>
    where
        F: Fn(Delivery) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let handle = Arc::new(handle);
        let registered = |(aggregate, types)| Registered {
            aggregate,
            types,
            batch: false,
            tombstone: false,
            handler: Box::new(Plain(handle.clone())) as Box<_>,
        };
        self.parts
            .handlers
            .extend(kinds.into_iter().map(registered));
        self.with_type()
    }

    /// Runs `companion` next to the subscriber.
    pub(crate) fn beside(mut self, companion: Arc<dyn Companion>) -> Self {
        if self
            .parts
            .companions
            .iter()
            .any(|other| other.name() == companion.name())
        {
            let name = companion.name();
            self.parts.faults.push(format!(
                "two sagas are called `{name}`: each would continue the other's runs; give one of \
                 them another name"
            ));
        }
        self.parts.companions.push(companion);
        self
    }

    /// Adds errors in the settings. They are reported when the subscriber is run.
    pub(crate) fn faulty(mut self, faults: Vec<String>) -> Self {
        self.parts.faults.extend(faults);
        self
    }

    /// Records handled events in this database, in the transaction that handlers receive as
    /// [`Tx`](super::Tx), so their effect happens once. Accepts a `PgPool`, or an [`Inbox`] with
    /// options. The tables are created by [`tidings::migrate`](crate::migrate()).
    pub fn inbox(mut self, inbox: impl Into<Inbox>) -> Subscriber<S, G, HasInbox> {
        self.parts.inbox = Some(inbox.into());
        self.with_type()
    }

    /// Sets the state that handlers take [`State`](super::State) arguments from.
    pub fn state(mut self, state: S) -> Subscriber<S, HasState, I> {
        self.parts.state = Some(state);
        self.with_type()
    }

    /// Sets the number and the pauses of in-place attempts for a failed event. Defaults to five
    /// attempts.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.parts.options.retry = retry;
        self
    }

    /// Sets the next step for an event that has used up the attempts of [`retry`](Self::retry). By
    /// default its aggregate is parked if there is an inbox and the order is per aggregate;
    /// otherwise the event becomes a dead letter.
    pub fn escalation(mut self, escalation: Escalation) -> Self {
        self.parts.options.escalation = Some(escalation);
        self
    }

    /// Sets the destination of events that cannot be handled. Defaults to the topic
    /// `<topic>.<group>.dlt`.
    pub fn dead_letters(mut self, dead_letters: DeadLetters) -> Self {
        self.parts.dead_letters = dead_letters;
        self
    }

    /// Wraps everything that was built so far: the layer that is added last sees an event first.
    /// Retries and dead letters are outside all layers, so a layer sees each attempt. The inbox and
    /// the handlers are inside all layers, so the time that a layer measures includes the commit.
    ///
    /// ```no_run
    /// # use tidings::subscriber::Subscriber;
    /// # fn example(subscriber: Subscriber<()>) -> Subscriber<()> {
    /// subscriber.layer(tower::timeout::TimeoutLayer::new(std::time::Duration::from_secs(5)))
    /// # }
    /// ```
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<HandlerService> + Send + 'static,
        L::Service: Service<Delivery, Response = Handled, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
        <L::Service as Service<Delivery>>::Error: Into<BoxError>,
    {
        self.parts.layers.push(Box::new(move |inner| {
            HandlerService::layered(layer.layer(inner))
        }));
        self
    }

    /// Sets which events wait for each other. Defaults to the events of one aggregate.
    pub fn order(mut self, order: Order) -> Self {
        self.parts.options.order = order;
        self
    }

    /// Sets the maximum number of handlers that run at once, over all partitions. Defaults to 64,
    /// or to 16 with an inbox, because each handler then holds a connection of the pool.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.parts.options.concurrency = Some(handlers);
        self
    }

    /// Handles up to `events` events in one transaction. A batch contains only events that have
    /// already arrived; it does not wait for more. The events of a batch succeed together. If one
    /// fails, they are handled again one by one. Defaults to 1.
    pub fn batch(mut self, events: usize) -> Self {
        self.parts.options.batch = events.max(1);
        self
    }

    /// Sets the maximum number of events per partition that are read and not finished. Defaults to
    /// 1,024.
    pub fn buffer(mut self, events: usize) -> Self {
        self.parts.options.buffer = events.max(1);
        self
    }

    /// Pauses the subscriber when too many events fail. By default it pauses if at least twenty
    /// events, and at least half of all events, are given up within a minute. `None` switches it
    /// off.
    pub fn kill_switch(mut self, switch: impl Into<Option<KillSwitch>>) -> Self {
        self.parts.options.kill_switch = switch.into();
        self
    }

    /// Pauses at an event whose version is newer than this code supports, until newer code is
    /// deployed. By default such an event becomes a dead letter. Use it if publishers are deployed
    /// before subscribers.
    pub fn wait_for_newer_code(mut self) -> Self {
        self.parts.options.wait_for_newer_code = true;
        self
    }

    /// Relates the spans of handlers to those of publishers. Has an effect with the feature `otel`.
    pub fn trace(mut self, relation: TraceRelation) -> Self {
        self.parts.options.trace = relation;
        self
    }

    /// Names the version of the service's code, in at most 200 bytes. The version is registered in
    /// the table `subscriber` for operators. It also determines which of two instances is newer:
    /// the one whose version was first registered later. By default the version is derived from the
    /// event types and topics.
    pub fn code_version(mut self, version: impl Into<String>) -> Self {
        self.parts.code_version = Some(version.into());
        self
    }

    /// Sets the time that running handlers have to finish when a partition is revoked or the
    /// subscriber is shut down. Defaults to 20 s. Work that has not finished by then is rolled back
    /// and left to the next owner of the partition.
    pub fn drain_timeout(mut self, time: Duration) -> Self {
        self.parts.options.drain = time;
        self
    }

    /// Reads events of `E`'s aggregate from this topic instead of the topic with the aggregate's
    /// name. Several calls add several topics.
    pub fn topic<E: DomainEvent>(mut self, topic: impl Into<String>) -> Self {
        self.parts
            .topics
            .entry(E::AGGREGATE)
            .or_default()
            .push(topic.into());
        self
    }

    /// Treats records without a type as events of `E`, in the topics of `E`'s aggregate: plain
    /// JSON, or records of Debezium without a type header.
    pub fn assume<E: DomainEvent>(mut self) -> Self {
        if let Some(event_type) = E::TYPES.first() {
            self.parts.assumed_types.insert(E::AGGREGATE, event_type);
        }
        self
    }

    /// Starts a group that has never read a topic at the topic's end instead of its beginning. The
    /// start offsets are committed at once, so no later event is missed. Partitions that are added
    /// later, and a topic that did not exist when the subscriber started, are read from their
    /// beginning.
    pub fn from_end(mut self) -> Self {
        self.parts.from_end = true;
        self
    }

    /// Makes this process a static member of the group (KIP-345): a member that returns with this
    /// id within `session.timeout.ms` keeps its partitions without a rebalance. Each process needs
    /// its own id. If two processes use one id, [`run`](Self::run) of the first returns an error.
    ///
    /// With [`broker_side_rebalance`](Self::broker_side_rebalance), the brokers keep the id of a
    /// killed process until its session times out (45 s by default). A process that restarts waits
    /// for that, and its state and log report the wait.
    pub fn instance_id(mut self, id: impl Into<String>) -> Self {
        self.parts.instance = Some(id.into());
        self
    }

    /// Uses the broker-side rebalance protocol (KIP-848, Kafka 4.0) instead of the classic one with
    /// the cooperative-sticky assignor.
    pub fn broker_side_rebalance(mut self) -> Self {
        self.parts.broker_side = true;
        self
    }

    /// Returns the statistics of this subscriber, which can be read while it runs.
    pub fn statistics(&self) -> Statistics {
        self.parts.statistics.clone()
    }

    fn with_type<G2, I2>(self) -> Subscriber<S, G2, I2> {
        Subscriber {
            parts: self.parts,
            marker: PhantomData,
        }
    }
}

impl<S: Send + Sync + 'static, G, I: InboxState> Subscriber<S, G, I> {
    /// Subscribes and handles events until `shutdown` is cancelled. It then drains, commits and
    /// leaves the group.
    ///
    /// # Errors
    ///
    /// Returns [`RunError::Settings`] if the settings cannot work (all errors are reported at once)
    /// or if the database lacks tables or rights (with the remedy). Returns [`RunError::Kafka`] if
    /// the group rejects this member. Outages are not errors: the subscriber waits for their end,
    /// also at its start, and [`Statistics::reason`] names them.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the subscriber drains and leaves the group in the background.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError>
    where
        // These bounds are on the method rather than on the `impl`, so that the compiler names the
        // missing part.
        G: StateReady<S>,
        I: InboxReady,
    {
        self.into_plan(false)?.run(shutdown).await
    }

    /// Builds the plan for the in-memory bus, which provides an inbox if the handlers need one.
    pub(crate) fn into_simulated_plan(self) -> Result<Plan, RunError>
    where
        G: StateReady<S>,
    {
        self.into_plan(I::IS_MISSING)
    }
}

// === impl Subscriber ===

impl<S, G, I> std::fmt::Debug for Subscriber<S, G, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriber")
            .field("name", &self.parts.name)
            .field("options", &self.parts.options)
            .finish_non_exhaustive()
    }
}
