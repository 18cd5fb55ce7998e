//! A subscriber without Kafka: the same lanes, layers, retries and router, driven by the in-memory bus of `testing`.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::attempt::{Parked, Runner, Settled};
use super::clock::{Clock, VirtualClock};
use super::dead_letters::{Letterbox, attempts_of, origin_of};
use super::handler::CODE_PAUSE;
use super::lanes::Lanes;
use super::options::Order;
use super::run::Plan;
use super::source::Source;
use super::statistics::Count;
use super::turn::Turn;
use super::{Escalation, Statistics, SubscriberState};
use crate::event::Envelope;
use crate::kafka::{Incoming, Letter, LetterError, Message};

/// One subscriber of the in-memory bus.
pub(crate) struct InMemory {
    runner: Arc<Runner>,
    topics: HashMap<String, Source>,
    lanes: Lanes<Item>,
    hasher: RandomState,
    letters: Arc<Letters>,
    pub(crate) inbox: Option<PgPool>,
}

enum Item {
    Event(Arc<Message>),
    Malformed(Box<Incoming>, String),
}

/// What is under way; ends with the lanes that are free again.
pub(crate) type Work = Pin<Box<dyn Future<Output = Vec<u64>> + Send>>;

/// Whether the process "dies" before the next commit.
pub(crate) type Dies = Box<dyn Fn() -> bool + Send + Sync>;

impl InMemory {
    pub(crate) fn new(mut plan: Plan, clock: &Arc<VirtualClock>, dies: Dies) -> Self {
        let letters = Arc::<Letters>::default();
        plan.clock = Clock::Virtual(clock.clone());
        plan.letterbox = Some(Box::new(LettersBox(letters.clone())));
        let inbox = plan.core.inbox.as_ref().map(|inbox| inbox.pool.clone());
        let topics = std::mem::take(&mut plan.topics);
        plan.core.simulate(&plan.name, dies);
        plan.statistics.set_state(SubscriberState::Running);
        Self { runner: Arc::new(plan.into_runner()), topics, lanes: Lanes::new(), hasher: RandomState::new(), letters, inbox }
    }

    pub(crate) fn name(&self) -> &str {
        &self.runner.name
    }

    pub(crate) fn statistics(&self) -> &Statistics {
        &self.runner.statistics
    }

    /// A record comes, if it is of a topic that is read.
    pub(crate) fn push(&mut self, record: &Incoming) {
        let Some(source) = self.topics.get(origin_of(&record.topic, &self.runner.name)) else { return };
        let lane = match (self.runner.options.order, record.key()) {
            (Order::Partition, _) => 0,
            (Order::Aggregate, Some(key)) => self.hasher.hash_one(key),
            _ => self.hasher.hash_one(record.offset),
        };
        let attempts = attempts_of(record, &self.runner.name);
        match source.read(record.clone()).map(|message| message.with_attempts_before(attempts)) {
            Ok(message) if self.runner.core.router.route(&message).is_none() => self.runner.unknown(&message),
            Ok(message) => self.lanes.push(lane, Item::Event(Arc::new(message))),
            Err((malformed, record)) => self.lanes.push(lane, Item::Malformed(record, malformed.to_string())),
        }
    }

    /// The next work that may start.
    pub(crate) fn start(&mut self) -> Option<Work> {
        let permit = self.runner.permits.clone().try_acquire_owned().ok()?;
        let (lane, mut items) = self.lanes.start(1, |_, _| false)?;
        let (runner, item) = (self.runner.clone(), items.pop()?);
        Some(Box::pin(async move {
            let drain = CancellationToken::new();
            let mut turn = Turn::new(&runner, permit, &drain);
            match item {
                Item::Event(message) => handle(&runner, &message, &mut turn).await,
                Item::Malformed(record, reason) => drop(runner.settle_malformed(&record, &reason, &mut turn).await),
            }
            vec![lane]
        }))
    }

    /// Work has ended.
    pub(crate) fn finish(&mut self, lanes: &[u64]) {
        lanes.iter().for_each(|lane| self.lanes.finish(*lane));
    }

    /// What handlers have published in memory since the last call.
    pub(crate) fn take_published(&self) -> Vec<Envelope> {
        self.runner.core.memory().map(|memory| memory.take_published()).unwrap_or_default()
    }

    /// What was sent to retry topics and dead letters since the last call.
    pub(crate) fn take_letters(&self) -> Vec<Letter> {
        std::mem::take(&mut self.letters.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Handles an event until it has ended. One that is parked waits on its own lane, which is the order that the detour keeps.
async fn handle(runner: &Runner, message: &Arc<Message>, turn: &mut Turn<'_>) {
    let (attempts, first_pause) = match (runner.settle(message, turn, &runner.options.retry, None).await, &runner.escalation) {
        (Settled::Park { attempts, .. }, Escalation::Park(retry)) => (attempts, retry.pause(0, 0.0)),
        (Settled::Waits { .. }, _) => (0, CODE_PAUSE),
        _ => return,
    };
    runner.statistics.add(Count::Detoured, message.event_type(), 1);
    let (mut pause, mut before) = (first_pause, 0);
    while turn.pause(pause).await {
        let attempts = attempts.saturating_add(before).saturating_add(message.attempts_before());
        let message = Arc::new(Message::clone(message).with_attempts_before(attempts));
        match runner.settle_parked(&message, turn, before).await {
            Parked::Again { after, attempts, .. } => (pause, before) = (after, attempts),
            Parked::Waits { .. } => pause = CODE_PAUSE,
            Parked::Done | Parked::Abandoned => return,
        }
    }
}

#[derive(Debug, Default)]
struct Letters(Mutex<Vec<Letter>>);

struct LettersBox(Arc<Letters>);

impl Letterbox for LettersBox {
    fn send<'l>(&'l self, letter: &'l Letter, _: &'l str) -> Pin<Box<dyn Future<Output = Result<(), LetterError>> + Send + 'l>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).push(letter.clone());
        Box::pin(std::future::ready(Ok(())))
    }
}
