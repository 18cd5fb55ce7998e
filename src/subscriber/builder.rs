//! A subscriber as its service puts it together.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};

use super::{
    Bus, ByType, DeadLetters, Delivery, Escalation, Inbox, KillSwitch, Order, Retry,
    clock::Clock,
    companion::{Companion, Companions},
    consume::topic_role::{Source, tombstone_of},
    handler::{
        BoundHandler, ErasedHandler, Handler, HandlerError, HasInbox, HasState, InboxReady,
        InboxState, Need, NoInbox, NoState, Plain, StateReady, erase,
        router::{Core, Handled, HandlerService, Route, Router},
    },
    options::Options,
    run::{Plan, RunError},
    telemetry::statistics::Statistics,
};
use crate::event::{DomainEvent, check_topic_name};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Wrap = Box<dyn FnOnce(HandlerService) -> HandlerService + Send>;

/// A subscriber that does not run yet, from [`Bus::subscriber`].
///
/// `S` is the state its handlers take from; `G` and `I` say whether it has its state and its inbox. All three are inferred.
#[must_use = "a subscriber does nothing until `run` is called"]
pub struct Subscriber<S, G = NoState, I = NoInbox> {
    pub(crate) parts: Parts<S>,
    marker: PhantomData<(G, I)>,
}

/// What a subscriber is made of, whatever its type says.
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
    /// It takes tombstones of the aggregate, and no events.
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
    /// Adds a handler. Which events it gets is said by its first argument; several handlers of one type run one after the other, as one: in one transaction if there is an inbox, and
    /// all of them again if one fails.
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

    /// Adds one function for events of several aggregates and types; it publishes by its transaction.
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

    /// Runs this beside the subscriber.
    pub(crate) fn beside(mut self, companion: Arc<dyn Companion>) -> Self {
        if self
            .parts
            .companions
            .iter()
            .any(|other| other.name() == companion.name())
        {
            let name = companion.name();
            self.parts
                .faults
                .push(format!("two sagas are called `{name}`: each would go on with the other's runs; give one of them another name"));
        }
        self.parts.companions.push(companion);
        self
    }

    /// Adds what is wrong with what was given.
    pub(crate) fn faulty(mut self, faults: Vec<String>) -> Self {
        self.parts.faults.extend(faults);
        self
    }

    /// Remembers handled events in this database, by the transaction that handlers get as [`Tx`](super::Tx): their effect happens once. Takes a `PgPool`, or an [`Inbox`] with
    /// options. The tables are created by [`tidings::migrate`](crate::migrate()).
    pub fn inbox(mut self, inbox: impl Into<Inbox>) -> Subscriber<S, G, HasInbox> {
        self.parts.inbox = Some(inbox.into());
        self.with_type()
    }

    /// Hands this to handlers that ask for [`State`](super::State).
    pub fn state(mut self, state: S) -> Subscriber<S, HasState, I> {
        self.parts.state = Some(state);
        self.with_type()
    }

    /// How often an event that fails is tried in place; five times otherwise.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.parts.options.retry = retry;
        self
    }

    /// What becomes of an event that used up these attempts. Otherwise its aggregate is parked if there is an inbox and order per aggregate, and else it is dead.
    pub fn escalation(mut self, escalation: Escalation) -> Self {
        self.parts.options.escalation = Some(escalation);
        self
    }

    /// Where events go that cannot be handled; `<topic>.<group>.dlt` otherwise.
    pub fn dead_letters(mut self, dead_letters: DeadLetters) -> Self {
        self.parts.dead_letters = dead_letters;
        self
    }

    /// Wraps what was built so far: the layer added last sees an event first. Around all of them are retries and dead letters, so a layer sees each attempt; within all of them
    /// are the inbox and the handlers, so a layer's time includes the commit.
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

    /// Which events wait for each other; those of one aggregate otherwise.
    pub fn order(mut self, order: Order) -> Self {
        self.parts.options.order = order;
        self
    }

    /// How many handlers run at once, over all partitions: 64 otherwise, or 16 with an inbox, each of which holds a connection of its pool.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.parts.options.concurrency = Some(handlers);
        self
    }

    /// Handles up to this many events by one transaction: those that are here, nobody waits for more. They succeed together; if one fails, they are handled again one by
    /// one. 1 otherwise.
    pub fn batch(mut self, events: usize) -> Self {
        self.parts.options.batch = events.max(1);
        self
    }

    /// How many events of one partition are read and not finished; 1,024 otherwise.
    pub fn buffer(mut self, events: usize) -> Self {
        self.parts.options.buffer = events.max(1);
        self
    }

    /// Pauses when too many events fail; twenty in a minute and half of all otherwise. `None` switches it off.
    pub fn kill_switch(mut self, switch: impl Into<Option<KillSwitch>>) -> Self {
        self.parts.options.kill_switch = switch.into();
        self
    }

    /// Pauses at an event of a newer version than this code knows, until newer code is deployed; it is dead otherwise. For deployments that put publishers before subscribers.
    pub fn wait_for_newer_code(mut self) -> Self {
        self.parts.options.wait_for_newer_code = true;
        self
    }

    /// Names the version of the service's code, at most 200 bytes. It is registered in the table `subscriber` for operators, and tells which of two instances
    /// is newer: the one whose version was first seen later. Otherwise it is derived from the event types and topics.
    pub fn code_version(mut self, version: impl Into<String>) -> Self {
        self.parts.code_version = Some(version.into());
        self
    }

    /// How long handlers may take to end when a partition is given up or the subscriber is shut down; 20 s otherwise. What has not ended by then is rolled back and
    /// left to the next owner.
    pub fn drain_timeout(mut self, time: Duration) -> Self {
        self.parts.options.drain = time;
        self
    }

    /// Reads events of `E`'s aggregate from this topic and not from the one of the aggregate's name. Called several times: from several.
    pub fn topic<E: DomainEvent>(mut self, topic: impl Into<String>) -> Self {
        self.parts
            .topics
            .entry(E::AGGREGATE)
            .or_default()
            .push(topic.into());
        self
    }

    /// Takes records that do not say what they are for events of `E`, in the topics of `E`'s aggregate: plain JSON, or Debezium's records without a type header.
    pub fn assume<E: DomainEvent>(mut self) -> Self {
        if let Some(event_type) = E::TYPES.first() {
            self.parts.assumed_types.insert(E::AGGREGATE, event_type);
        }
        self
    }

    /// A group that has never read a topic starts at its end, and not at its beginning. Where that was is committed at once, so that nothing is missed from then on: partitions that are added later, and a
    /// topic that was not there when the subscriber started, are read from their beginning.
    pub fn from_end(mut self) -> Self {
        self.parts.from_end = true;
        self
    }

    /// A static member of the group (KIP-345): one that returns under this id within `session.timeout.ms` keeps its partitions, without a rebalance.
    /// Each process needs an id of its own: of two with one id, [`run`](Self::run) of the first ends with an error.
    ///
    /// With [`broker_side_rebalance`](Self::broker_side_rebalance), brokers keep the id of a process that was killed until its session times out (45 s by default).
    /// A process that restarts waits for that, and its state and log show it.
    pub fn instance_id(mut self, id: impl Into<String>) -> Self {
        self.parts.instance = Some(id.into());
        self
    }

    /// Uses the rebalance protocol that brokers drive (KIP-848, Kafka 4.0), in place of the classic one with the cooperative-sticky assignor.
    pub fn broker_side_rebalance(mut self) -> Self {
        self.parts.broker_side = true;
        self
    }

    /// What it does, to be read while it runs.
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
    /// Subscribes, and handles events until `shutdown` is cancelled: then it drains, commits and leaves the group.
    ///
    /// # Errors
    ///
    /// [`RunError`]: settings that cannot work, all of them at once; a database without the tables or rights it needs, with the remedy; or a group that refuses
    /// this member. Outages are waited out, also at the start: [`Statistics::reason`] names them.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the subscriber drains and leaves in the background.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError>
    where
        // On the method and not on the `impl`: so the compiler says what is missing.
        G: StateReady<S>,
        I: InboxReady,
    {
        self.into_plan(false)?.run(shutdown).await
    }

    /// The same for the in-memory bus, which has an inbox where handlers need one.
    pub(crate) fn into_simulated_plan(self) -> Result<Plan, RunError>
    where
        G: StateReady<S>,
    {
        self.into_plan(I::IS_MISSING)
    }

    /// Everything checked and bound.
    fn into_plan(self, has_simulated_inbox: bool) -> Result<Plan, RunError>
    where
        G: StateReady<S>,
    {
        let Parts {
            name,
            handlers,
            companions,
            mut faults,
            state,
            inbox,
            layers,
            options,
            ..
        } = self.parts;
        faults.extend(
            check_topic_name(&name)
                .err()
                .map(|error| format!("the subscriber's name becomes part of topic names: {error}")),
        );
        faults.extend(inbox.as_ref().and_then(Inbox::fault));
        if self
            .parts
            .code_version
            .as_ref()
            .is_some_and(|version| version.len() > 200 || version.contains('\0'))
        {
            faults.push("the code version is longer than 200 bytes or has a NUL".into());
        }
        if handlers.is_empty() && companions.is_empty() {
            faults.push("no handler: add one by `.on(…)`".into());
        }
        let has_inbox = inbox.is_some() || has_simulated_inbox;
        let parks = matches!(options.escalation(has_inbox), Escalation::Park(_));
        if parks && (!has_inbox || options.order != Order::Aggregate) {
            faults
                .push("`Escalation::Park` keeps an aggregate's order in the database: it needs `.inbox(…)` and `Order::Aggregate`".into());
        }
        let topics = topics(&handlers, &self.parts.topics);
        faults.extend(
            topics.iter().flat_map(|(topic, _)| {
                check_topic_name(topic).err().map(|error| error.to_string())
            }),
        );
        let state = Arc::new(G::ready(state));
        let (routes, tombstones) = routes(handlers, &state, &mut faults);
        let opened = inbox.as_ref().map(|inbox| inbox.open(&name)).transpose();
        let inbox = opened.unwrap_or_else(|error| {
            faults.push(error.to_string());
            None
        });
        if !faults.is_empty() {
            return Err(RunError::Settings(faults));
        }
        self.parts
            .statistics
            .know_types(routes.keys().chain(tombstones.keys()).cloned());
        let core = Arc::new(Core::new(
            Router::new(routes, tombstones),
            inbox.map(Arc::new),
        ));
        let service = layers
            .into_iter()
            .fold(HandlerService::new(core.clone()), |service, wrap| {
                wrap(service)
            });
        let mut plan = Plan {
            bus: self.parts.bus,
            name,
            topics: sources(topics, &self.parts.assumed_types),
            named_topics: self.parts.topics,
            has_inbox,
            core,
            service,
            options,
            dead_letters: self.parts.dead_letters,
            code_version: self.parts.code_version,
            instance: self.parts.instance,
            broker_side: self.parts.broker_side,
            from_end: self.parts.from_end,
            statistics: self.parts.statistics,
            companions: Companions::default(),
            clock: Clock::Real,
            letterbox: None,
        };
        plan.companions = Companions::new(companions, plan.core.inbox.as_deref(), &plan);
        Ok(plan)
    }
}

/// Every topic to read, and the aggregate it is read for.
fn topics<S>(
    handlers: &[Registered<S>],
    named: &HashMap<&'static str, Vec<String>>,
) -> BTreeSet<(String, &'static str)> {
    let of = |aggregate: &'static str| {
        named
            .get(aggregate)
            .cloned()
            .unwrap_or_else(|| vec![aggregate.to_owned()])
    };
    handlers
        .iter()
        .flat_map(|handler| {
            of(handler.aggregate)
                .into_iter()
                .map(|topic| (topic, handler.aggregate))
        })
        .collect()
}

/// What each topic is read for.
fn sources(
    topics: BTreeSet<(String, &'static str)>,
    assumed: &HashMap<&'static str, &'static str>,
) -> HashMap<String, Source> {
    let mut sources = HashMap::<String, Source>::new();
    for (topic, aggregate) in topics {
        let assumed_type = assumed.get(aggregate).copied();
        match sources.entry(topic) {
            Entry::Vacant(entry) => drop(entry.insert(Source {
                assumed_type,
                aggregate: Some(aggregate),
            })),
            Entry::Occupied(mut entry) => {
                let assumed_type = assumed_type.or(entry.get().assumed_type);
                entry.insert(Source {
                    assumed_type,
                    aggregate: None,
                });
            }
        }
    }
    sources
}

/// The handlers of events by their type, and of tombstones by their kind.
fn routes<S: Send + Sync + 'static>(
    handlers: Vec<Registered<S>>,
    state: &Arc<S>,
    faults: &mut Vec<String>,
) -> (ByType<Route>, ByType<Route>) {
    let (mut routes, mut tombstones) = (ByType::<Route>::default(), ByType::<Route>::default());
    for Registered {
        aggregate,
        types,
        batch,
        tombstone,
        handler,
    } in handlers
    {
        let bound: Arc<dyn BoundHandler> = Arc::new((handler, state.clone()));
        if tombstone {
            tombstones
                .entry(tombstone_of(aggregate).into())
                .or_default()
                .handlers
                .push(bound);
            continue;
        }
        for event_type in types {
            let route = routes.entry((*event_type).into()).or_default();
            if !route.handlers.is_empty() && route.batch != batch {
                faults.push(format!(
                    "`{event_type}` has handlers of `Event` and of `Batch`: one transaction cannot serve both, use two subscribers"
                ));
            }
            route.batch = batch;
            route.handlers.push(bound.clone());
        }
    }
    (routes, tombstones)
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
