//! The in-memory bus.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use sqlx::PgPool;

use crate::event::{AggregateId, DomainEvent, Envelope};
use crate::kafka::{self, Incoming, Letter, Place};
use crate::outbox::{Seen, published_since};
use crate::postgres::SchemaName;
use crate::subscriber::{Bus, InMemory, InboxState, StateReady, Statistics, Subscriber, VirtualClock, Work};
use crate::subscriber::{Meta, Tombstone};

/// How long nothing may happen before a pause is cut short although something else is under way: it waits for the one that pauses.
const STANDSTILL: Duration = Duration::from_millis(20);

/// How many pauses are passed before something is taken to go on for ever.
const PAUSES_MAX: usize = 100_000;

/// A bus in memory. See the [module](crate::testing).
pub struct TestBus {
    bus: Bus,
    subscribers: Vec<InMemory>,
    pending: VecDeque<Incoming>,
    published: Vec<Envelope>,
    dead: Vec<(String, Letter)>,
    outboxes: Vec<(PgPool, Seen)>,
    clock: Arc<VirtualClock>,
    deaths: Arc<AtomicUsize>,
    offset: i64,
    twice: bool,
    shuffle: Option<u64>,
}

impl TestBus {
    /// A bus without subscribers.
    pub fn new() -> Self {
        Self {
            bus: Bus::new(kafka::Settings::default()),
            subscribers: Vec::new(),
            pending: VecDeque::new(),
            published: Vec::new(),
            dead: Vec::new(),
            outboxes: Vec::new(),
            clock: Arc::default(),
            deaths: Arc::default(),
            offset: 0,
            twice: false,
            shuffle: None,
        }
    }

    /// Starts a subscriber, to be given to [`add`](Self::add). The same builder as [`Bus::subscriber`]'s.
    pub fn subscriber<S: Send + Sync + 'static>(&self, name: impl Into<String>) -> Subscriber<S> {
        self.bus.subscriber(name)
    }

    /// Adds a subscriber. One whose handlers return events needs no inbox here; one whose handlers take `Tx` does. Events that are in the inbox's outbox already are left alone.
    ///
    /// # Panics
    ///
    /// If the subscriber cannot work, or its database does not answer.
    pub async fn add<S: Send + Sync + 'static, G: StateReady<S>, I: InboxState>(&mut self, subscriber: Subscriber<S, G, I>) {
        let plan = subscriber.into_plan().unwrap_or_else(|error| panic!("{error}"));
        let deaths = self.deaths.clone();
        let dies = move || deaths.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let subscriber = InMemory::new(plan, &self.clock, Box::new(dies));
        if let Some(pool) = &subscriber.inbox
            && !self.outboxes.iter().any(|(known, _)| Arc::ptr_eq(&known.connect_options(), &pool.connect_options()))
        {
            let seen = Seen::all(pool, &SchemaName::default()).await.unwrap_or_else(|error| panic!("the outbox cannot be read: {error}"));
            self.outboxes.push((pool.clone(), seen));
        }
        self.subscribers.push(subscriber);
    }

    /// Delivers each event twice from now on, the second time behind all others.
    pub fn deliver_twice(&mut self) -> &mut Self {
        self.twice = true;
        self
    }

    /// Delivers events in a random order from now on, also those of one aggregate; the same order for the same seed.
    pub fn deliver_out_of_order(&mut self, seed: u64) -> &mut Self {
        self.shuffle = Some(seed);
        self
    }

    /// Lets the process "die" this many times between a handler's end and its commit: nothing of it is kept, and the event is delivered again.
    pub fn crash_before_commit(&mut self, times: usize) -> &mut Self {
        self.deaths.store(times, Ordering::SeqCst);
        self
    }

    /// Publishes an event to the subscribers. It does not count as published by a handler.
    pub fn publish<E: DomainEvent>(&mut self, event: &E) {
        let envelope = Envelope::of(event).unwrap_or_else(|error| panic!("{error}"));
        self.publish_envelope(&envelope);
    }

    /// Publishes the tombstone of an aggregate of `E`.
    ///
    /// # Panics
    ///
    /// If the id cannot be a key.
    pub fn publish_tombstone<E: DomainEvent>(&mut self, aggregate_id: impl Into<String>) {
        self.publish_envelope(&tombstone_envelope::<E>(aggregate_id));
    }

    /// Publishes an envelope made by hand: with headers, a topic, an id.
    pub fn publish_envelope(&mut self, envelope: &Envelope) {
        let letter = self.bus.letter(envelope);
        self.enqueue(&letter);
    }

    /// Waits until every event, and every event that follows from it, has ended.
    ///
    /// # Panics
    ///
    /// If an event goes on being retried for ever: its handler snoozes until something that does not happen.
    pub async fn settle(&mut self) {
        let mut running = FuturesUnordered::new();
        let mut pauses = 0;
        loop {
            // What is under way goes on meanwhile: it may hold all connections of the pool that is read by.
            let mut ended_meanwhile = Vec::new();
            {
                let mut collecting = std::pin::pin!(self.collect());
                loop {
                    tokio::select! {
                        () = &mut collecting => break,
                        Some(ended) = running.next() => ended_meanwhile.push(ended),
                    }
                }
            }
            let is_collected = ended_meanwhile.is_empty();
            ended_meanwhile.into_iter().for_each(|(at, lanes): (usize, Vec<u64>)| self.subscribers[at].finish(&lanes));
            self.distribute();
            for (at, subscriber) in self.subscribers.iter_mut().enumerate() {
                running.extend(std::iter::from_fn(|| subscriber.start()).map(|work: Work| async move { (at, work.await) }));
            }
            if running.is_empty() && is_collected {
                return;
            }
            // Whatever can go on goes on first. Then time passes: at once if all that is under way pauses, or else when nothing has happened for a while.
            let mut ended = tokio::time::timeout(Duration::ZERO, running.next()).await;
            if ended.is_err() && self.clock.sleepers() < running.len() {
                ended = tokio::time::timeout(STANDSTILL, running.next()).await;
            }
            let ended = match ended {
                Ok(ended) => ended,
                Err(_) if self.clock.advance() => {
                    pauses += 1;
                    assert!(pauses < PAUSES_MAX, "it does not settle: an event is tried again and again after {:?}", self.clock.now());
                    None
                }
                // It waits for something real: the database, a timer.
                Err(_) => None,
            };
            if let Some((at, lanes)) = ended {
                self.subscribers[at].finish(&lanes);
            }
        }
    }

    /// The events of type `E` that handlers have published, in order.
    ///
    /// # Panics
    ///
    /// If one cannot be decoded.
    pub fn published<E: DomainEvent>(&self) -> Vec<E> {
        let of_type = self.published.iter().filter(|envelope| E::TYPES.contains(&&*envelope.event_type));
        of_type.map(|envelope| envelope.decode().unwrap_or_else(|error| panic!("{error}"))).collect()
    }

    /// The envelopes that handlers have published, in order.
    pub fn published_envelopes(&self) -> &[Envelope] {
        &self.published
    }

    /// Fails unless a handler has published such an event.
    ///
    /// # Panics
    ///
    /// That is how it fails: it lists what was published.
    #[track_caller]
    pub fn assert_published<E: DomainEvent>(&self, such: impl Fn(&E) -> bool) {
        if !self.published::<E>().iter().any(such) {
            panic!("no such {} is published; published are {}", std::any::type_name::<E>(), self.list());
        }
    }

    /// Fails if a handler has published an event of this type.
    ///
    /// # Panics
    ///
    /// That is how it fails.
    #[track_caller]
    pub fn assert_not_published<E: DomainEvent>(&self) {
        assert!(self.published::<E>().is_empty(), "{} is published; published are {}", std::any::type_name::<E>(), self.list());
    }

    /// Why events of this subscriber are dead, in order: what went wrong with each.
    pub fn dead_letters(&self, subscriber: &str) -> Vec<String> {
        let of = self.dead.iter().filter(|(name, _)| name == subscriber);
        of.filter_map(|(_, letter)| letter.headers.iter().find(|(name, _)| name == crate::subscriber::dead_letters::EXCEPTION_MESSAGE))
            .map(|(_, message)| String::from_utf8_lossy(message.as_deref().unwrap_or_default()).into_owned())
            .collect()
    }

    /// What a subscriber has done.
    ///
    /// # Panics
    ///
    /// If there is none of this name.
    pub fn statistics(&self, subscriber: &str) -> &Statistics {
        let found = self.subscribers.iter().find(|candidate| candidate.name() == subscriber);
        found.unwrap_or_else(|| panic!("no subscriber is called {subscriber:?}")).statistics()
    }

    /// How much time the pauses have taken, had they been waited for.
    pub fn elapsed(&self) -> Duration {
        self.clock.now()
    }

    /// What handlers have published, in memory or in an outbox, goes to the subscribers; so do retries.
    async fn collect(&mut self) {
        let mut published: Vec<Envelope> = self.subscribers.iter().flat_map(InMemory::take_published).collect();
        for (pool, seen) in &mut self.outboxes {
            let more = published_since(pool, &SchemaName::default(), seen).await;
            published.extend(more.unwrap_or_else(|error| panic!("the outbox cannot be read: {error}")));
        }
        for envelope in published {
            self.publish_envelope(&envelope);
            self.published.push(envelope);
        }
        let letters: Vec<(String, bool, Letter)> = self
            .subscribers
            .iter()
            .flat_map(|subscriber| {
                subscriber.take_letters().into_iter().map(|letter| (subscriber.name().to_owned(), is_retry(&letter), letter))
            })
            .collect();
        for (name, retry, letter) in letters {
            if retry {
                self.enqueue(&letter);
            } else {
                self.dead.push((name, letter));
            }
        }
    }

    fn enqueue(&mut self, letter: &Letter) {
        let place = Place { topic: letter.topic.as_str().into(), partition: 0, offset: self.offset, timestamp: 0 };
        self.offset += 1;
        let headers = letter.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        self.pending.push_back(Incoming::new(place, letter.key.as_deref(), letter.value.as_deref(), headers));
    }

    fn distribute(&mut self) {
        let mut records: Vec<Incoming> = self.pending.drain(..).collect();
        if self.twice {
            records.extend(records.clone());
        }
        if let Some(seed) = &mut self.shuffle {
            shuffle(&mut records, seed);
        }
        for record in &records {
            self.subscribers.iter_mut().for_each(|subscriber| subscriber.push(record));
        }
    }

    fn list(&self) -> String {
        let list: Vec<_> = self
            .published
            .iter()
            .map(|envelope| format!("{} {}", envelope.event_type, envelope.payload.as_json().unwrap_or("…")))
            .collect();
        if list.is_empty() { "none".into() } else { list.join(", ") }
    }
}

/// What travels beside this event when it is delivered, to call a handler with.
///
/// # Panics
///
/// If the event cannot be encoded.
pub fn meta<E: DomainEvent>(event: &E) -> Meta {
    meta_of(&Envelope::of(event).unwrap_or_else(|error| panic!("{error}")))
}

/// The tombstone of an aggregate of `E`, to call a handler with.
///
/// # Panics
///
/// If the id cannot be a key.
pub fn tombstone<E: DomainEvent>(aggregate_id: impl Into<String>) -> Tombstone<E> {
    Tombstone::new(meta_of(&tombstone_envelope::<E>(aggregate_id)))
}

fn tombstone_envelope<E: DomainEvent>(aggregate_id: impl Into<String>) -> Envelope {
    Envelope::tombstone(E::AGGREGATE, AggregateId::new(aggregate_id).unwrap_or_else(|error| panic!("{error}")))
}

pub(crate) fn meta_of(envelope: &Envelope) -> Meta {
    let mut bus = TestBus::new();
    bus.publish_envelope(envelope);
    let record = bus.pending.pop_back().expect("it was just published");
    Meta::of_record(record).unwrap_or_else(|malformed| panic!("{malformed}"))
}

fn is_retry(letter: &Letter) -> bool {
    letter.headers.iter().any(|(name, _)| name == crate::subscriber::dead_letters::DUE)
}

/// Fisher and Yates, by a generator that is the same everywhere (SplitMix64).
fn shuffle(records: &mut [Incoming], seed: &mut u64) {
    for at in (1..records.len()).rev() {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        records.swap(at, ((mixed ^ (mixed >> 31)) % (at as u64 + 1)) as usize);
    }
}

// === impl TestBus ===

impl Default for TestBus {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for TestBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestBus").field("published", &self.published).finish_non_exhaustive()
    }
}
