//! Validation of the settings, and the plan of a run with its bound handlers.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Parts, Registered, Subscriber, Wrap};
use crate::{
    event::check_topic_name,
    subscriber::{
        ByType, Escalation, Inbox, Order,
        attempt::pause::Pause,
        clock::Clock,
        companion::Companions,
        consume::topic_role::{Source, tombstone_of},
        handler::{
            BoundHandler, InboxState, StateReady,
            router::{Core, HandlerService, Route, Router},
        },
        options::Options,
        run::{Plan, RunError},
    },
};

impl<S: Send + Sync + 'static, G, I: InboxState> Subscriber<S, G, I> {
    /// Validates the settings and binds the handlers to the state.
    pub(super) fn into_plan(self, has_simulated_inbox: bool) -> Result<Plan, RunError>
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
        let has_inbox = inbox.is_some() || has_simulated_inbox;
        faults.extend(setting_faults(
            &name,
            inbox.as_ref(),
            self.parts.code_version.as_deref(),
        ));
        if handlers.is_empty() && companions.is_empty() {
            faults.push("no handler: add one with `.on(…)`".into());
        }
        faults.extend(parking_fault(&options, has_inbox));
        let topics = topics(&handlers, &self.parts.topics);
        let invalid = topics
            .iter()
            .filter_map(|(topic, _)| check_topic_name(topic).err());
        faults.extend(invalid.map(|error| error.to_string()));
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
        let mut plan = Plan {
            bus: self.parts.bus,
            pause: Arc::new(Pause::new(&name, &self.parts.statistics)),
            name,
            topics: sources(topics, &self.parts.assumed_types),
            named_topics: self.parts.topics,
            has_inbox,
            service: layered(&core, layers),
            core,
            options,
            dead_letters: self.parts.dead_letters,
            code_version: self.parts.code_version,
            instance: self.parts.instance,
            broker_side: self.parts.broker_side,
            from_end: self.parts.from_end,
            statistics: self.parts.statistics,
            companions: Companions::default(),
            clock: Clock::Real,
            dead_letter_sink: None,
        };
        plan.companions = Companions::new(companions, plan.core.inbox.as_deref(), &plan);
        Ok(plan)
    }
}

/// Returns the errors in the names and in the inbox.
fn setting_faults(name: &str, inbox: Option<&Inbox>, code_version: Option<&str>) -> Vec<String> {
    let mut faults = Vec::new();
    faults.extend(
        check_topic_name(name)
            .err()
            .map(|error| format!("the subscriber's name becomes part of topic names: {error}")),
    );
    faults.extend(inbox.and_then(Inbox::fault));
    if code_version.is_some_and(|version| version.len() > 200 || version.contains('\0')) {
        faults.push("the code version is longer than 200 bytes or contains a NUL".into());
    }
    faults
}

/// Returns the error if events are parked and the settings do not allow it.
fn parking_fault(options: &Options, has_inbox: bool) -> Option<String> {
    let parks = matches!(options.escalation(has_inbox), Escalation::Park(_));
    (parks && (!has_inbox || options.order != Order::Aggregate)).then(|| {
        "`Escalation::Park` keeps an aggregate's order in the database: it needs `.inbox(…)` and \
         `Order::Aggregate`"
            .into()
    })
}

/// Returns the handlers inside these layers.
fn layered(core: &Arc<Core>, layers: Vec<Wrap>) -> HandlerService {
    layers
        .into_iter()
        .fold(HandlerService::new(core.clone()), |service, wrap| {
            wrap(service)
        })
}

/// Returns each topic to read, with the aggregate that it is read for.
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

/// Returns the role of each topic.
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

/// Returns the handlers of events by event type, and those of tombstones by kind.
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
                    "`{event_type}` has handlers of `Event` and of `Batch`: one transaction cannot \
                     serve both, use two subscribers"
                ));
            }
            route.batch = batch;
            route.handlers.push(bound.clone());
        }
    }
    (routes, tombstones)
}
