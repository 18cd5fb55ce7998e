//! In-memory bus for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{groups::Topics, outboxes::Outboxes, settle::Running};
use crate::{
    event::{AggregateId, DomainEvent, Envelope},
    kafka::{self, Letter},
    outbox::Outbox,
    subscriber::{
        Bus, InMemory, Meta, Statistics, Subscriber, Tombstone, VirtualClock,
        typestate::{InboxState, StateReady},
    },
};

/// In-memory bus. See the [module](crate::testing).
pub struct TestBus {
    bus: Bus,
    pub(super) members: Vec<InMemory>,
    pub(super) running: Running,
    pub(super) topics: Topics,
    pub(super) outboxes: Outboxes,
    pub(super) clock: Arc<VirtualClock>,
    published: Vec<Envelope>,
    dead: Vec<(String, Letter)>,
    deaths: Arc<AtomicUsize>,
    /// Rejects envelopes that an outbox or a topic with default settings would reject.
    limits: Outbox,
}

impl TestBus {
    /// Creates a bus without subscribers.
    pub fn new() -> Self {
        Self {
            bus: Bus::new(kafka::Settings::default()),
            members: Vec::new(),
            running: Running::new(),
            topics: Topics::default(),
            outboxes: Outboxes::default(),
            clock: Arc::default(),
            published: Vec::new(),
            dead: Vec::new(),
            deaths: Arc::default(),
            limits: Outbox::new(),
        }
    }

    /// Creates the builder of a subscriber, to be passed to [`add`](Self::add). It is the same
    /// builder as that of [`Bus::subscriber`].
    pub fn subscriber<S: Send + Sync + 'static>(&self, name: impl Into<String>) -> Subscriber<S> {
        self.bus.subscriber(name)
    }

    /// Adds a subscriber. Several subscribers with the same name are members of one group, and one
    /// member receives each event.
    ///
    /// A subscriber whose handlers return events needs no `.inbox(…)` here: the bus deduplicates
    /// and publishes in memory. In production it needs a database. A subscriber whose handlers take
    /// `Tx` always needs a database. A subscriber without either has no inbox, as in production,
    /// and handles an event twice if it is delivered twice.
    ///
    /// Events and scheduled events that are already in the outbox of its database are ignored.
    ///
    /// # Panics
    ///
    /// Panics if the subscriber is invalid, or if its database does not respond.
    pub async fn add<S: Send + Sync + 'static, G: StateReady<S>, I: InboxState>(
        &mut self,
        subscriber: Subscriber<S, G, I>,
    ) {
        let plan = subscriber
            .into_simulated_plan()
            .unwrap_or_else(|error| panic!("{error}"));
        let deaths = self.deaths.clone();
        let dies = move || {
            deaths
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
        };
        let group = self
            .topics
            .groups
            .entry(plan.name().to_owned())
            .or_default();
        let member = InMemory::new(plan, &self.clock, &group.memory, Box::new(dies));
        group.members.push(self.members.len());
        if let Some((pool, schema)) = &member.inbox {
            self.outboxes
                .add(pool, schema)
                .await
                .unwrap_or_else(|error| panic!("the outbox cannot be read: {error}"));
        }
        self.members.push(member);
    }

    /// Sets the number of partitions of each topic. Defaults to the number of members of the
    /// largest group. A batch contains events of one partition, and each partition has one owner in
    /// a group.
    pub fn partitions(&mut self, partitions: u16) -> &mut Self {
        self.topics.partitions = Some(i32::from(partitions.max(1)));
        self
    }

    /// Sets the maximum payload size, for outboxes and topics that accept more than the default
    /// ([`Outbox::max_event_bytes`]).
    pub fn max_event_bytes(&mut self, bytes: usize) -> &mut Self {
        self.limits = Outbox::new().max_event_bytes(bytes);
        self
    }

    /// Delivers each event published from now on twice, the second time after all other events.
    pub fn deliver_twice(&mut self) -> &mut Self {
        self.topics.twice = true;
        self
    }

    /// Delivers events in a random order from now on, including events of the same aggregate. The
    /// same seed gives the same order.
    pub fn deliver_out_of_order(&mut self, seed: u64) -> &mut Self {
        self.topics.shuffle = Some(seed);
        self
    }

    /// Simulates `times` crashes of the process between the end of a handler and its commit. After
    /// a crash, the handler's changes are discarded and the event is delivered again.
    pub fn crash_before_commit(&mut self, times: usize) -> &mut Self {
        self.deaths.store(times, Ordering::SeqCst);
        self
    }

    /// Publishes an event to the subscribers. It does not count as published by a handler.
    ///
    /// # Panics
    ///
    /// Panics if an outbox would refuse the event.
    #[track_caller]
    pub fn publish<E: DomainEvent>(&mut self, event: &E) {
        let envelope = Envelope::of(event).unwrap_or_else(|error| panic!("{error}"));
        self.publish_envelope(&envelope);
    }

    /// Publishes the tombstone of an aggregate of `E`.
    ///
    /// # Panics
    ///
    /// Panics if the id cannot be a key.
    #[track_caller]
    pub fn publish_tombstone<E: DomainEvent>(&mut self, aggregate_id: impl Into<String>) {
        self.publish_envelope(&tombstone_envelope::<E>(aggregate_id));
    }

    /// Publishes a hand-built envelope, for instance with headers, a topic or an id.
    ///
    /// # Panics
    ///
    /// Panics if an outbox would refuse the event.
    #[track_caller]
    pub fn publish_envelope(&mut self, envelope: &Envelope) {
        self.limits
            .check(envelope)
            .unwrap_or_else(|error| panic!("{error}"));
        self.topics
            .publish(&self.bus, envelope, self.clock.utc().timestamp_millis());
    }

    /// Returns the events of type `E` that handlers have published, in order.
    ///
    /// # Panics
    ///
    /// Panics if one of them cannot be decoded.
    pub fn published<E: DomainEvent>(&self) -> Vec<E> {
        let of_type = self
            .published
            .iter()
            .filter(|envelope| E::TYPES.contains(&&*envelope.event_type));
        of_type
            .map(|envelope| envelope.decode().unwrap_or_else(|error| panic!("{error}")))
            .collect()
    }

    /// Returns the envelopes that handlers have published, in order.
    pub fn published_envelopes(&self) -> &[Envelope] {
        &self.published
    }

    /// Asserts that a handler has published an event that satisfies the predicate.
    ///
    /// # Panics
    ///
    /// Panics if no such event was published, and lists the published events.
    #[track_caller]
    pub fn assert_published<E: DomainEvent>(&self, such: impl Fn(&E) -> bool) {
        if !self.published::<E>().iter().any(such) {
            panic!(
                "no matching {} was published; published events: {}",
                std::any::type_name::<E>(),
                self.list()
            );
        }
    }

    /// Asserts that no handler has published an event of this type.
    ///
    /// # Panics
    ///
    /// Panics if one was published, and lists the published events.
    #[track_caller]
    pub fn assert_not_published<E: DomainEvent>(&self) {
        assert!(
            self.published::<E>().is_empty(),
            "{} was published; published events: {}",
            std::any::type_name::<E>(),
            self.list()
        );
    }

    /// Returns the error of each dead letter of this subscriber, in order.
    pub fn dead_letters(&self, subscriber: &str) -> Vec<String> {
        let of = self.dead.iter().filter(|(name, _)| name == subscriber);
        of.filter_map(|(_, letter)| {
            letter.headers.iter().find(|(name, _)| {
                name == crate::subscriber::failure::dead_letter::EXCEPTION_MESSAGE
            })
        })
        .map(|(_, message)| {
            String::from_utf8_lossy(message.as_deref().unwrap_or_default()).into_owned()
        })
        .collect()
    }

    /// Returns the statistics of a subscriber. If several members have this name, they are those of
    /// the member added first. [`Subscriber::statistics`] returns those of each member.
    ///
    /// # Panics
    ///
    /// Panics if no subscriber has this name.
    pub fn statistics(&self, subscriber: &str) -> &Statistics {
        let found = self
            .members
            .iter()
            .find(|candidate| candidate.name() == subscriber);
        found
            .unwrap_or_else(|| panic!("no subscriber has the name {subscriber:?}"))
            .statistics()
    }

    /// Returns the virtual time that has passed in pauses.
    pub fn elapsed(&self) -> Duration {
        self.clock.now()
    }

    /// Delivers the events that handlers have published, and the retries, to the subscribers.
    pub(super) fn take(&mut self, published: Vec<Envelope>) {
        let now = self.clock.utc().timestamp_millis();
        let in_memory = self
            .topics
            .groups
            .values()
            .flat_map(|group| group.memory.take_published());
        for envelope in in_memory.collect::<Vec<_>>().into_iter().chain(published) {
            self.topics.publish(&self.bus, &envelope, now);
            self.published.push(envelope);
        }
        for member in &self.members {
            for letter in member.take_letters() {
                if is_retry(&letter) {
                    self.topics.retry(letter, now);
                } else {
                    self.dead.push((member.name().to_owned(), letter));
                }
            }
        }
    }

    /// Distributes the pending records to the members. Returns `true` if there were any.
    pub(super) fn distribute(&mut self) -> bool {
        let any = self.topics.len() > 0;
        self.topics.distribute(&mut self.members);
        any
    }

    fn list(&self) -> String {
        let list: Vec<_> = self
            .published
            .iter()
            .map(|envelope| {
                format!(
                    "{} {}",
                    envelope.event_type,
                    envelope.payload.as_json().unwrap_or("…")
                )
            })
            .collect();
        if list.is_empty() {
            "none".into()
        } else {
            list.join(", ")
        }
    }
}

/// Returns the metadata with which this event is delivered, for a direct call of a handler.
///
/// # Panics
///
/// Panics if the event cannot be encoded.
pub fn meta<E: DomainEvent>(event: &E) -> Meta {
    meta_of(&Envelope::of(event).unwrap_or_else(|error| panic!("{error}")))
}

/// Returns the tombstone of an aggregate of `E`, for a direct call of a handler.
///
/// # Panics
///
/// Panics if the id cannot be a key.
pub fn tombstone<E: DomainEvent>(aggregate_id: impl Into<String>) -> Tombstone<E> {
    Tombstone::new(meta_of(&tombstone_envelope::<E>(aggregate_id)))
}

fn tombstone_envelope<E: DomainEvent>(aggregate_id: impl Into<String>) -> Envelope {
    Envelope::tombstone(
        E::AGGREGATE,
        AggregateId::new(aggregate_id).unwrap_or_else(|error| panic!("{error}")),
    )
}

pub(crate) fn meta_of(envelope: &Envelope) -> Meta {
    let mut bus = TestBus::new();
    bus.publish_envelope(envelope);
    let record = bus.topics.pop().expect("the event was just published");
    Meta::of_record(record).unwrap_or_else(|malformed| panic!("{malformed}"))
}

fn is_retry(letter: &Letter) -> bool {
    letter
        .headers
        .iter()
        .any(|(name, _)| name == crate::subscriber::failure::dead_letter::DUE)
}

// === impl TestBus ===

impl Default for TestBus {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for TestBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestBus")
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}
