//! A subscriber without Kafka: the production lanes, layers, retries and router, driven by the
//! in-memory bus of `testing`.
//!
//! ```text
//! record ─▶ member of its group ─▶ lanes of its partition ─▶ item: event or batch ─▶ attempt
//! ```

pub(crate) mod inbox;
pub(crate) mod simulation;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{
    Escalation, Statistics, SubscriberState,
    attempt::{BatchFailed, Runner, Settled, permit::HandlerPermit},
    clock::{Clock, VirtualClock},
    consume::{
        lanes::{LaneCounts, Lanes},
        topic_role::Source,
        work_item::{share, tried},
    },
    failure::dead_letter::{DeadLetterSink, attempts_of, origin_of},
    handler::CODE_PAUSE,
    options::Order,
    run::Plan,
    telemetry::statistics::Count,
};
use crate::{
    kafka::{Incoming, Letter, LetterError, Message},
    postgres::SchemaName,
};
use inbox::MemoryInbox;
use simulation::Simulation;

/// One member of a group on the in-memory bus.
pub(crate) struct InMemory {
    runner: Arc<Runner>,
    topics: HashMap<String, Source>,
    /// Topics that replace the topic with the aggregate's name.
    named: HashMap<&'static str, Vec<String>>,
    partitions: BTreeMap<(Arc<str>, i32), Lanes<Item>>,
    hasher: RandomState,
    letters: Arc<Letters>,
    /// The database of the subscriber, if it has one.
    pub(crate) inbox: Option<(PgPool, SchemaName)>,
    has_inbox: bool,
    /// Messages of the work in progress, by the number of the work.
    under_way: BTreeMap<u64, Vec<Arc<Message>>>,
    started: u64,
    paused_since: Option<Duration>,
}

enum Item {
    Event(Arc<Message>),
    /// An event that failed in a batch and is now handled alone.
    Single(Arc<Message>),
    Malformed(Box<Incoming>, String),
}

/// Outcome of one piece of work.
pub(crate) struct Ended {
    number: u64,
    partition: (Arc<str>, i32),
    lanes: Vec<u64>,
    /// Events that failed as a batch, by lane. They must be handled one by one.
    singly: Vec<(u64, Vec<Item>)>,
}

/// The future of one piece of work.
pub(crate) type Work = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// Returns `true` if the process "crashes" before the next commit.
pub(crate) type Dies = Box<dyn Fn() -> bool + Send + Sync>;

impl InMemory {
    /// Creates a member. Without a database, its group uses `memory` as inbox and outbox.
    pub(crate) fn new(
        mut plan: Plan,
        clock: &Arc<VirtualClock>,
        memory: &Arc<MemoryInbox>,
        dies: Dies,
    ) -> Self {
        let letters = Arc::<Letters>::default();
        plan.clock = Clock::Virtual(clock.clone());
        plan.dead_letter_sink = Some(Box::new(LettersBox(letters.clone())));
        let inbox = plan
            .core
            .inbox
            .as_ref()
            .map(|inbox| (inbox.pool.clone(), inbox.schema.clone()));
        let topics = std::mem::take(&mut plan.topics);
        let named = std::mem::take(&mut plan.named_topics);
        let has_inbox = plan.has_inbox;
        plan.core
            .simulate(Simulation::new(&plan.name, memory.clone(), has_inbox, dies));
        plan.statistics.set_state(SubscriberState::Running);
        Self {
            runner: Arc::new(plan.into_runner()),
            topics,
            named,
            partitions: BTreeMap::new(),
            hasher: RandomState::new(),
            letters,
            inbox,
            has_inbox,
            under_way: BTreeMap::new(),
            started: 0,
            paused_since: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.runner.name
    }

    pub(crate) fn statistics(&self) -> &Statistics {
        &self.runner.statistics
    }

    /// Returns the topic where it expects events of an aggregate that name no topic.
    pub(crate) fn topic_of<'a>(&'a self, aggregate: &'a str) -> &'a str {
        self.named
            .get(aggregate)
            .and_then(|topics| topics.first())
            .map_or(aggregate, String::as_str)
    }

    fn source_of(&self, topic: &str) -> Option<Source> {
        self.topics
            .get(origin_of(topic, &self.runner.name))
            .copied()
    }

    /// Returns `true` if it reads this topic.
    pub(crate) fn reads(&self, topic: &str) -> bool {
        self.source_of(topic).is_some()
    }

    /// Returns `true` if it has a handler for this record, or would send it to the dead letters.
    /// Without an inbox, members do not track each other, and each skips events for which it has no
    /// handler.
    pub(crate) fn takes(&self, record: &Incoming) -> bool {
        let Some(source) = self.source_of(&record.topic) else {
            return false;
        };
        !self.has_inbox
            || source.read(record.clone()).map_or(true, |message| {
                self.runner.core.router.route(&message).is_some()
            })
    }

    /// Adds a record to its lane.
    pub(crate) fn push(&mut self, record: &Incoming) {
        let Some(source) = self.source_of(&record.topic) else {
            return;
        };
        let lane = match (self.runner.options.order, record.key()) {
            (Order::Partition, _) => 0,
            (Order::Aggregate, Some(key)) => self.hasher.hash_one(key),
            (Order::Aggregate, None) | (Order::None, _) => self.hasher.hash_one(record.offset),
        };
        let attempts = attempts_of(record, &self.runner.name);
        let item = match source
            .read(record.clone())
            .map(|message| message.with_attempts_before(attempts))
        {
            Ok(message) if self.runner.core.router.route(&message).is_none() => {
                return self.runner.unknown(&message);
            }
            Ok(message) => Item::Event(Arc::new(message)),
            Err((malformed, record)) => Item::Malformed(record, malformed.to_string()),
        };
        let partition = (record.topic.clone(), record.partition);
        self.partitions
            .entry(partition)
            .or_insert_with(Lanes::new)
            .push(lane, item);
    }

    /// Returns the next work that may start.
    pub(crate) fn start(&mut self) -> Option<Work> {
        if !self.runner.pause.is_running() {
            return None;
        }
        let (partition, lanes) = self
            .partitions
            .iter_mut()
            .find(|(_, lanes)| lanes.has_ready())?;
        let permit = self.runner.permits.clone().try_acquire_owned().ok()?;
        let (items, of_lanes) = take(lanes, self.runner.options.batch, &self.runner)?;
        self.started += 1;
        let number = self.started;
        self.under_way.insert(
            number,
            items.iter().filter_map(Item::message).cloned().collect(),
        );
        let item = WorkItem {
            runner: self.runner.clone(),
            number,
            partition: partition.clone(),
            lanes: of_lanes,
        };
        Some(Box::pin(item.work(items, permit)))
    }

    /// Records the end of one piece of work.
    pub(crate) fn finish(&mut self, ended: Ended) {
        for message in self.under_way.remove(&ended.number).into_iter().flatten() {
            if let Some(simulation) = self.runner.core.simulation() {
                simulation.ended(&message);
            }
        }
        let Some(lanes) = self.partitions.get_mut(&ended.partition) else {
            return;
        };
        for (lane, items) in ended.singly {
            lanes.put_back(lane, items);
        }
        ended.lanes.iter().for_each(|lane| lanes.finish(*lane));
    }

    /// Returns the letters that were sent to retry and dead letter topics since the last call.
    pub(crate) fn take_letters(&self) -> Vec<Letter> {
        std::mem::take(
            &mut self
                .letters
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Restarts the time of a pause.
    pub(crate) fn be_patient(&mut self) {
        self.paused_since = None;
    }

    /// Returns the reason if the subscriber has been paused for too long. The limit is
    /// [`PAUSED_MAX`] or twenty probes of the kill switch, whichever is longer.
    pub(crate) fn paused_too_long(&mut self, now: Duration) -> Option<String> {
        if !self.runner.statistics.is_paused() {
            self.paused_since = None;
            return None;
        }
        let probes = self
            .runner
            .options
            .kill_switch
            .as_ref()
            .map_or(Duration::ZERO, |switch| switch.pause.saturating_mul(20));
        let paused = now.saturating_sub(*self.paused_since.get_or_insert(now));
        let why = match self.runner.statistics.state() {
            SubscriberState::PausedByKillSwitch => {
                "its kill switch: too many events fail, and no event that is tried is handled"
            }
            _ => "an outage that does not end",
        };
        (paused > PAUSED_MAX.max(probes)).then(|| {
            format!(
                "subscriber {:?} is paused for {paused:?} by {why}",
                self.name()
            )
        })
    }

    /// Describes the messages in progress, each with the error of its last attempt.
    pub(crate) fn describe(&self) -> Vec<String> {
        let simulation = self.runner.core.simulation();
        let describe = |message: &Arc<Message>| {
            let failed = simulation.and_then(|simulation| simulation.last_error(message));
            let failed = failed.map_or_else(
                || "no attempt has ended".to_owned(),
                |error| format!("the last attempt failed: {error}"),
            );
            let topic = &message.as_it_came().topic;
            format!(
                "{} {} of {:?} in topic {topic:?} ({failed})",
                message.event_type(),
                message.aggregate_id(),
                self.name()
            )
        };
        self.under_way.values().flatten().map(describe).collect()
    }
}

/// Maximum time for which a subscriber may be paused before the bus reports an error.
const PAUSED_MAX: Duration = Duration::from_secs(600);

/// Takes the next events that may start, as a partition does in production. Returns several if one
/// transaction may handle them, and their lanes with the number of events of each.
fn take(lanes: &mut Lanes<Item>, max: usize, runner: &Runner) -> Option<(Vec<Item>, LaneCounts)> {
    let goes_with = |one: &Item, other: &Item| one.goes_with(other, runner);
    lanes.start_several(max, goes_with, |_| true)
}

impl Item {
    fn message(&self) -> Option<&Arc<Message>> {
        match self {
            Self::Event(message) | Self::Single(message) => Some(message),
            Self::Malformed(..) => None,
        }
    }

    fn goes_with(&self, other: &Self, runner: &Runner) -> bool {
        match (self, other) {
            (Self::Event(one), Self::Event(other)) => {
                share(one, other, |message| runner.due_in(message))
            }
            _ => false,
        }
    }
}

/// One piece of work.
struct WorkItem {
    runner: Arc<Runner>,
    number: u64,
    partition: (Arc<str>, i32),
    lanes: LaneCounts,
}

impl WorkItem {
    async fn work(self, mut items: Vec<Item>, permit: OwnedSemaphorePermit) -> Ended {
        let singly = match items.len() {
            1 => {
                let drain = CancellationToken::new();
                let mut permit = HandlerPermit::new(&self.runner, permit, &drain);
                match items.pop() {
                    Some(Item::Event(message) | Item::Single(message)) => {
                        handle(&self.runner, &message, &mut permit).await
                    }
                    Some(Item::Malformed(record, reason)) => drop(
                        self.runner
                            .settle_malformed(&record, &reason, &mut permit)
                            .await,
                    ),
                    None => {}
                }
                Vec::new()
            }
            _ => self.together(items).await,
        };
        let lanes = self.lanes.iter().map(|(lane, _)| *lane).collect();
        Ended {
            number: self.number,
            partition: self.partition,
            lanes,
            singly,
        }
    }

    /// Handles several events in one attempt. If it fails, they return to the front of their lanes.
    async fn together(&self, items: Vec<Item>) -> Vec<(u64, Vec<Item>)> {
        let messages: Vec<Arc<Message>> = items.iter().filter_map(Item::message).cloned().collect();
        let Err(BatchFailed { attempts }) = self.runner.settle_together(&messages).await else {
            return Vec::new();
        };
        let mut items = messages
            .into_iter()
            .map(|message| Item::Single(tried(message, attempts)));
        self.lanes
            .iter()
            .map(|(lane, count)| (*lane, items.by_ref().take(*count).collect()))
            .collect()
    }
}

/// Handles an event until it has an outcome. A parked event waits on its own lane, which preserves
/// the order like the table `subscriber_parked` does.
async fn handle(runner: &Runner, message: &Arc<Message>, permit: &mut HandlerPermit<'_>) {
    let (attempts, first_pause) = match (
        runner.settle(message, permit, None).await,
        &runner.escalation,
    ) {
        (Settled::Park { attempts, .. }, Escalation::Park(retry)) => {
            (attempts, retry.pause(0, 0.0))
        }
        (Settled::Waits { .. }, _) => (0, CODE_PAUSE),
        _ => return,
    };
    runner.statistics.add(Count::Parked, message.kind(), 1);
    let (mut pause, mut before) = (first_pause, 0);
    while permit.pause(pause).await {
        let attempts = attempts
            .saturating_add(before)
            .saturating_add(message.attempts_before());
        let message = Arc::new(Message::clone(message).with_attempts_before(attempts));
        match runner.settle_parked(&message, permit, before).await {
            Settled::Again {
                after, attempts, ..
            } => (pause, before) = (after, attempts),
            Settled::Waits { .. } => pause = CODE_PAUSE,
            _ => return,
        }
    }
}

#[derive(Debug, Default)]
struct Letters(Mutex<Vec<Letter>>);

struct LettersBox(Arc<Letters>);

impl DeadLetterSink for LettersBox {
    fn send<'l>(
        &'l self,
        letter: &'l Letter,
        _: &'l str,
    ) -> Pin<Box<dyn Future<Output = Result<(), LetterError>> + Send + 'l>> {
        self.0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(letter.clone());
        Box::pin(std::future::ready(Ok(())))
    }
}
