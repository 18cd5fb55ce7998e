//! From a row to the sink: route, envelope, record. The relay's hot path, shared by both sources.

mod backpressure;
mod batch_isolation;
mod creation_budget;
mod size_limit;
mod topic_faults;
mod topic_lookup;
mod undeliverable;

use std::collections::HashMap;

use tokio::{task::JoinHandle, time::Instant};

use super::clock::{Clock, Stamping};
use crate::{
    kafka::{EnvelopeWriter, Outgoing, Record, SendError, Topics, Transactional, partition_of},
    relay::{
        RelayOptions, UndeliverableOptions,
        error::Interruption,
        leadership::relay_store::Ledger,
        monitor::metrics::Observer,
        parked::{
            set::{Limits, ParkedSet},
            store::Loaded,
        },
        position::{Journal, Position},
        routing::template::{Route, Routes, TopicTemplate, unusable},
        row::native::Row,
        sink::{Batch, Durable, Sent, Sink},
        startup::{names::KafkaNames, server::Server},
    },
};
pub(crate) use backpressure::Backpressure;
pub(crate) use batch_isolation::{BatchIsolation, until_reported};
use batch_isolation::{Rejected, Weighed};
pub(crate) use size_limit::SizeLimit;
use size_limit::{Compression, Weight};
pub(crate) use topic_faults::TopicFaults;
use topic_lookup::TopicLookup;

/// What the envelope's own headers weigh, about.
const ENVELOPE_BYTES: usize = 256;

/// Forwards events to the sink. Events go by their `seq`, and those of a table without one by a negative [`number`] meanwhile.
pub(crate) struct EventPublisher {
    routes: Routes,
    envelope: EnvelopeWriter,
    sink: Sink,
    topics: Topics,
    lookup: TopicLookup,
    options: RelayOptions,
    parked: ParkedSet,
    isolation: BatchIsolation,
    compression: Compression,
    /// Records by route since the last cut.
    counts: Vec<u64>,
    observer: Observer,
    pinned: HashMap<String, i32>,
    /// Topics that are being grown, and until when they are held back.
    held: HashMap<String, Instant>,
    /// The question whether an unreachable cluster is back.
    looking: Option<JoinHandle<()>>,
    clock: Clock,
    stamping: Stamping,
}

/// Records by topic.
type Counts<'r> = Vec<(&'r Route, u64)>;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is under way under this tag.
    Sent(u64),
    /// It is set aside, and is stored before the position passes it.
    Parked,
    /// It would be parked, and as many events are parked as may be: this many.
    NoRoomToPark(u64),
}

/// What became of an event that is not to be set aside.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// It is under way under this tag.
    Sent(u64),
    /// It can never be delivered as things are.
    Undeliverable(String),
    /// It waits for this topic, which cannot be used at present or for which others wait.
    TopicWaits(String),
}

/// Why an event was not published.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// It has to wait, and is published again afterwards.
    Waits(Backpressure),
    /// The session ends.
    Interrupted(Interruption),
}

impl From<Backpressure> for Unsent {
    fn from(hold: Backpressure) -> Self {
        Self::Waits(hold)
    }
}

impl From<Interruption> for Unsent {
    fn from(interruption: Interruption) -> Self {
        Self::Interrupted(interruption)
    }
}

/// Outcome of an attempt to send.
enum Attempt {
    Sent(u64),
    Impossible(String),
    TopicWaits(String),
}

impl EventPublisher {
    /// A forwarder with producers of its own: one for each transactional id, or one without.
    ///
    /// # Errors
    /// Options that the Kafka client refuses.
    pub(crate) fn open(
        options: &RelayOptions,
        event_source: &str,
        observer: &Observer,
        batch_bytes_max: usize,
        transactional: &[Transactional<'_>],
        (clock, stamping): (Clock, Stamping),
    ) -> Result<Self, Interruption> {
        let template = TopicTemplate::parse(&options.topic)
            .map_err(|error| Interruption::Refused(format!("topic template: {error}")))?;
        let sink = Sink::open(options, batch_bytes_max, transactional)?;
        let told = observer.clone();
        sink.acks().watch(move |latency| told.end_to_end(latency));
        observer.pulse().watch(sink.acks());
        Ok(Self {
            routes: Routes::new(template, options.topic_rewrite.clone()),
            envelope: EnvelopeWriter::new(options.envelope, event_source.to_owned())
                .with_own_headers(options.debezium.is_some()),
            topics: Topics::new(&sink.producers()[0], &options.kafka),
            lookup: TopicLookup::new(options),
            sink,
            options: options.clone(),
            parked: ParkedSet::new(limits(options)),
            isolation: BatchIsolation::default(),
            compression: Compression::of(options.kafka.compression()),
            counts: Vec::new(),
            observer: observer.clone(),
            pinned: HashMap::new(),
            held: HashMap::new(),
            looking: None,
            clock,
            stamping,
        })
    }

    /// What the database's clock shows.
    pub(crate) fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Forwards one event: it is sent, or set aside with its aggregate; or why it has to wait. Never waits itself.
    ///
    /// # Errors
    /// An event at which the relay has to stop, or a producer that has failed.
    pub(crate) fn publish(&mut self, row: &Row<'_>) -> Result<Published, Unsent> {
        let Row { seq, event, .. } = row;
        let seq = *seq;
        if !self.parked.is_empty()
            && self
                .parked
                .holds(event.aggregate_type, event.aggregate_id, seq)
        {
            return self.park(seq, event, None);
        }
        match self.deliver(row, true)? {
            Delivery::Sent(tag) => Ok(Published::Sent(tag)),
            Delivery::TopicWaits(topic) => self.wait_for_topic(row, topic),
            Delivery::Undeliverable(reason) => self.park(seq, event, Some(reason)),
        }
    }

    /// Sends one event, whether its aggregate waits or not. One that cannot be delivered is told, if it is to be parked. `queues`: it
    /// goes behind others that wait for its topic.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(crate) fn deliver(&mut self, row: &Row<'_>, queues: bool) -> Result<Delivery, Unsent> {
        let (seq, event) = (number(row.seq, &row.event), &row.event);
        if !self.isolation.is_idle() {
            if self.isolation.watches_acknowledgements() {
                let (next, floor) = self.sink.tags();
                if !self.isolation.may_send(seq, floor, next) {
                    return Err(Backpressure::Alone.into());
                }
            }
            if let Some(Rejected { reason, refusals }) = self.isolation.rejected(seq).cloned() {
                return self.undeliverable(seq, event, reason, refusals, queues);
            }
        }
        if let Some(fault) = &row.fault {
            return self.undeliverable(seq, event, fault.to_string(), 0, queues);
        }
        match self.send(seq, event, queues)? {
            Attempt::Sent(tag) => Ok(Delivery::Sent(tag)),
            Attempt::TopicWaits(topic) => Ok(Delivery::TopicWaits(topic)),
            Attempt::Impossible(reason) => self.undeliverable(seq, event, reason, 0, queues),
        }
    }

    fn send(&mut self, seq: i64, event: &Outgoing<'_>, queues: bool) -> Result<Attempt, Unsent> {
        let (at, route) = match self.routes.find(event) {
            Ok(found) => found,
            Err(unmet) => {
                return match unusable(&unmet) {
                    Some(reason) => Ok(Attempt::Impossible(reason)),
                    None => Ok(self.unmet(unmet, queues)?),
                };
            }
        };
        if !self.held.is_empty() && self.held.contains_key(&route.topic) {
            return Err(Backpressure::Growing(route.topic.clone()).into());
        }
        if queues
            && !self.lookup.faults.is_idle()
            && self.lookup.faults.reason(&route.topic).is_some()
        {
            return Ok(Attempt::TopicWaits(route.topic.clone()));
        }
        let partition = partition_of(event.aggregate_id.as_bytes(), route.partitions);
        let turn = self.sink.turn();
        if !route.may_send(partition, turn, || self.sink.acks().floor()) {
            return Err(Backpressure::FirstContact.into());
        }
        let (headers, value) = match self.envelope.write(event) {
            Ok(written) => written,
            Err(error) => return Ok(Attempt::Impossible(error.to_string())),
        };
        // Of a record that is larger than the relay's own limit, this limit is the reason.
        if self.isolation.has_limits()
            && value.is_none_or(|value| value.len() <= self.options.message_bytes_max)
        {
            let rest = event.aggregate_id.len() + event.headers.len() + ENVELOPE_BYTES;
            let weight = Weight {
                value: value.unwrap_or_default(),
                rest,
                compression: self.compression,
            };
            match self
                .isolation
                .weigh(&route.topic, seq, weight, self.sink.tags())
            {
                Weighed::MayGo => {}
                Weighed::TooLarge(reason) => return Ok(Attempt::Impossible(reason)),
                Weighed::GoesAlone => return Err(Backpressure::Alone.into()),
                Weighed::LimitIsStale => {
                    return Err(Backpressure::SizeLimit(route.topic.clone()).into());
                }
            }
        }
        let record = Record {
            topic: &route.topic,
            partition,
            key: event.aggregate_id.as_bytes(),
            value,
            headers,
            timestamp: self
                .stamping
                .stamp(event.occurred_at / 1000, self.clock.now()),
            label: seq,
        };
        match self.sink.send(record, event.headers.len() + ENVELOPE_BYTES) {
            Ok(Sent::Tag(tag)) => {
                route.sent(partition, turn, tag);
                self.count(at);
                if !self.isolation.is_idle() {
                    self.isolation.sent(seq, tag);
                }
                Ok(Attempt::Sent(tag))
            }
            Ok(Sent::Full(bytes)) => Err(Backpressure::Full(bytes).into()),
            Ok(Sent::Committing) => Err(Backpressure::Committing.into()),
            Err(SendError::TooLarge) => Ok(Attempt::Impossible(format!(
                "larger than the {} bytes that max_message_bytes allows",
                self.options.message_bytes_max
            ))),
            // A producer that has failed takes nothing more.
            Err(error) => Err(self
                .sink
                .failure()
                .unwrap_or_else(|| not_taken(&error))
                .into()),
        }
    }

    /// What becomes of an event whose topic was not met: it waits for a look-up, or for the topic.
    fn unmet(&self, topic: String, queues: bool) -> Result<Attempt, Backpressure> {
        let faults = &self.lookup.faults;
        match faults.reason(&topic) {
            None if !faults.has_room() => Ok(Attempt::Impossible(format!(
                "topic `{topic}` is one of more topics that cannot be used than are remembered: see `tidings parked list`, and the values of aggregatetype"
            ))),
            Some(_) if queues || !faults.is_releasing(&topic) => Ok(Attempt::TopicWaits(topic)),
            _ => Err(Backpressure::NewTopic(topic)),
        }
    }

    fn count(&mut self, route: usize) {
        if self.counts.len() <= route {
            self.counts.resize(route + 1, 0);
        }
        self.counts[route] += 1;
    }

    /// What it was told.
    pub(crate) fn options(&self) -> &RelayOptions {
        &self.options
    }

    /// What is parked.
    pub(crate) fn parked(&self) -> &ParkedSet {
        &self.parked
    }

    /// What is parked, to be told what was stored and released.
    pub(crate) fn parked_mut(&mut self) -> &mut ParkedSet {
        &mut self.parked
    }

    /// Takes up what the table holds.
    pub(crate) fn load_parked(&mut self, loaded: Loaded) {
        self.parked = ParkedSet::new(limits(&self.options));
        let give_up_after = self.options.topic_limits.give_up_after.as_secs_f64();
        for (aggregate, events, range, ready) in loaded.aggregates {
            self.parked.load(aggregate, events, range, ready);
        }
        for (topic, reason, events, seconds) in loaded.topics {
            self.parked.load_waiting(&topic, events.cast_unsigned());
            self.lookup
                .faults
                .waits(&topic, reason, seconds >= give_up_after);
        }
    }

    /// Takes up what earlier producers have learned from refusals.
    pub(crate) fn isolate(&mut self, isolation: BatchIsolation) {
        self.isolation = isolation;
    }

    /// Has an event sent alone, whatever was known of it.
    pub(crate) fn suspect(&mut self, seq: i64) {
        self.isolation.suspect(seq);
    }

    /// What the next producers must know. `drained`: everything that was met is durable.
    pub(crate) fn take_isolation(&mut self, drained: bool) -> BatchIsolation {
        std::mem::take(&mut self.isolation).carry_over(drained)
    }

    /// The sink.
    pub(crate) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// The sink, before the first record.
    pub(crate) fn sink_mut(&mut self) -> &mut Sink {
        &mut self.sink
    }

    /// Takes up a new epoch with a producer whose records are all safe.
    pub(crate) fn go_on(
        &mut self,
        names: &KafkaNames,
        server: &Server,
        ledger: &Ledger,
        number: u64,
    ) {
        self.clock = ledger.clock();
        let journal = Journal::new(
            server.identity.clone(),
            ledger.epoch(),
            number,
            ledger.seal().clone(),
        );
        self.sink.write_positions(names.topic.clone(), journal);
    }

    /// What was sent so far belongs together, and after it the relay stands at `position`. False if the last batch is still being committed.
    pub(crate) fn end_batch(&mut self, position: Position) -> bool {
        let counts = std::mem::take(&mut self.counts);
        match self.sink.cut(Batch {
            position: Box::new(position),
            counts,
            at: self.stamping.stamp(i64::MAX, self.clock.now()),
        }) {
            Ok(()) => {
                self.isolation.cut();
                true
            }
            Err(batch) => {
                self.counts = batch.counts;
                false
            }
        }
    }

    /// What has become durable since the last call, and its records by topic.
    ///
    /// # Errors
    /// When the producer has failed.
    pub(crate) fn durable(&mut self) -> Result<Option<(Durable, Counts<'_>)>, Interruption> {
        self.observe_cluster();
        self.look_after_topics();
        self.observer.in_flight(self.sink.acks().under_way().0);
        let durable = self.sink.durable();
        if durable.is_none()
            && let Some(failure) = self.sink.failure()
        {
            return Err(failure);
        }
        if durable.is_some() && self.sink.is_settled() {
            self.isolation.durable();
        }
        if self.isolation.acknowledged(self.sink.acks().floor()) {
            return Err(Interruption::Isolated);
        }
        Ok(durable.map(|durable| {
            let counts = durable
                .batch
                .counts
                .iter()
                .enumerate()
                .filter(|(_, records)| **records > 0);
            let counts: Vec<_> = counts
                .map(|(at, records)| (&self.routes.all()[at], *records))
                .collect();
            counts
                .iter()
                .for_each(|(route, records)| self.observer.published(&route.topic, *records));
            (durable, counts)
        }))
    }
}

/// What an event goes by on its way: its `seq`; in a table without one something below zero, made of its id.
fn number(seq: i64, event: &Outgoing<'_>) -> i64 {
    let id = event.id.as_u128();
    // Zero is the relay's own position.
    if seq > 0 {
        seq
    } else {
        ((id ^ (id >> 64)) as u64 | 1 << 63).cast_signed()
    }
}

fn limits(options: &RelayOptions) -> Limits {
    let UndeliverableOptions {
        parked_per_aggregate_max,
        parked_max,
        ..
    } = options.undeliverable;
    Limits {
        per_aggregate: parked_per_aggregate_max as u64,
        total: parked_max as u64,
    }
}

fn not_taken(error: &SendError) -> Interruption {
    Interruption::Kafka(match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}
