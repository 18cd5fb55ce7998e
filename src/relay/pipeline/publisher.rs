//! The path from a row to the sink: route, envelope, record. This is the relay's hot path, shared
//! by all sources.
//!
//! | file | content |
//! |---|---|
//! | `outcome` | outcomes of one attempt to publish |
//! | `backpressure` | reasons why an event waits, and the end of each wait |
//! | `topic_lookup`, `creation_budget` | topics that were not used before, and their creation |
//! | `topic_faults` | unusable topics |
//! | `undeliverable` | parking, dead letters, or a stop |
//! | `size_limit`, `batch_isolation` | records that a broker would refuse, or has refused |
//! | `spans` | a span for each sampled event |
//! | `cluster` | reachability of the Kafka cluster |
//! | `batches` | ends of batches, and their durability |

mod backpressure;
mod batch_isolation;
mod batches;
mod cluster;
mod creation_budget;
mod outcome;
mod size_limit;
#[cfg(feature = "otel")]
mod spans;
#[cfg(not(feature = "otel"))]
#[path = "publisher/no_spans.rs"]
mod spans;
#[cfg(test)]
mod tests;
mod topic_faults;
mod topic_lookup;
mod undeliverable;

use std::collections::HashMap;

use tokio::time::Instant;

use super::clock::{Clock, Stamping};
use crate::{
    kafka::{EnvelopeWriter, Outgoing, Record, SendError, Topics, Transactional, partition_of},
    relay::{
        RelayOptions, UndeliverableOptions,
        error::Interruption,
        monitor::metrics::RelayMetrics,
        parked::{
            set::{Limits, ParkedSet},
            store::Loaded,
        },
        routing::template::{NotLookedUp, Routes, TopicTemplate, unusable},
        row::native::Row,
        sink::{Sent, Sink},
    },
    task::OwnedTask,
};
pub(crate) use backpressure::Backpressure;
use batch_isolation::Rejected;
pub(crate) use batch_isolation::{BatchIsolation, until_reported};
use outcome::Attempt;
pub(crate) use outcome::{Delivery, Published, Unsent};
pub(crate) use size_limit::SizeLimit;
use size_limit::{Compression, Weight};
use spans::SendSpans;
pub(crate) use topic_faults::TopicFaults;
use topic_lookup::TopicLookup;

/// Approximate size of the envelope's own headers, in bytes.
const ENVELOPE_BYTES: usize = 256;

/// Sends events to the sink. An event is identified by its `seq`. An event of a table without `seq`
/// is identified by a negative [`number`] made of its id.
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
    /// Number of records by route since the last batch ended.
    counts: Vec<u64>,
    observer: RelayMetrics,
    pinned: HashMap<String, i32>,
    /// Topics that are being grown, and the end of the time for which each is held back.
    held: HashMap<String, Instant>,
    /// The task that checks whether an unreachable cluster is reachable again.
    looking: Option<OwnedTask<()>>,
    clock: Clock,
    stamping: Stamping,
    spans: SendSpans,
}

impl EventPublisher {
    /// Creates a publisher with its own producers: one for each transactional id, or a single one
    /// without a transactional id.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the topic template is invalid or the Kafka client refuses an
    /// option.
    pub(crate) fn open(
        options: &RelayOptions,
        event_source: &str,
        observer: &RelayMetrics,
        batch_bytes_max: usize,
        transactional: &[Transactional<'_>],
        (clock, stamping): (Clock, Stamping),
    ) -> Result<Self, Interruption> {
        let template = TopicTemplate::parse(&options.topic)
            .map_err(|error| Interruption::Refused(format!("topic template: {error}")))?;
        let sink = Sink::open(options, batch_bytes_max, transactional)?;
        let told = observer.clone();
        sink.acks().watch(move |latency| told.end_to_end(latency));
        observer.pulse().watch(sink.outstanding());
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
            spans: SendSpans::new(options.trace),
        })
    }

    /// Sets the time of the database.
    pub(crate) fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Publishes one event: sends it, or parks it with its aggregate. Never waits: if the event has
    /// to wait, the reason is returned.
    ///
    /// # Errors
    ///
    /// Returns [`Unsent`] if the event has to wait, if the relay has to stop at it, or if the
    /// producer has failed.
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

    /// Sends one event, even if its aggregate has parked events. If the policy is to park and the
    /// event is undeliverable, its reason is returned. With `queues`, the event waits if others
    /// already wait for its topic.
    ///
    /// # Errors
    ///
    /// Returns an error under the same conditions as [`publish`](Self::publish).
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
        match self.send(seq, row, queues)? {
            Attempt::Sent(tag) => Ok(Delivery::Sent(tag)),
            Attempt::TopicWaits(topic) => Ok(Delivery::TopicWaits(topic)),
            Attempt::Impossible(reason) => self.undeliverable(seq, event, reason, 0, queues),
        }
    }

    fn send(&mut self, seq: i64, row: &Row<'_>, queues: bool) -> Result<Attempt, Unsent> {
        let event = &row.event;
        let (at, route) = match self.routes.find(event) {
            Ok(found) => found,
            Err(NotLookedUp(topic)) => return Ok(self.unrouted(topic, queues)?),
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
        // A record that exceeds the relay's own limit is refused by the sink, with that limit as
        // the reason.
        if self.isolation.has_limits()
            && value.is_none_or(|value| value.len() <= self.options.message_bytes_max)
        {
            let rest = event.aggregate_id.len() + event.headers.len() + ENVELOPE_BYTES;
            let weight = Weight {
                value: value.unwrap_or_default(),
                rest,
                compression: self.compression,
            };
            let tags = self.sink.tags();
            let weighed = self.isolation.weigh(&route.topic, seq, weight, tags);
            if let Some(impossible) = weighed.attempt(&route.topic)? {
                return Ok(impossible);
            }
        }
        let now = self.clock.now();
        let record = Record {
            topic: &route.topic,
            partition,
            key: event.aggregate_id.as_bytes(),
            value,
            headers,
            timestamp: self.stamping.stamp(event.occurred_at / 1000, now),
            label: seq,
        };
        match self.sink.send(record, event.headers.len() + ENVELOPE_BYTES) {
            Ok(Sent::Tag(tag)) => {
                route.sent(partition, turn, tag);
                self.spans.sent(row, &route.topic, partition);
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
            Err(error) => Err(self.not_taken(&error).into()),
        }
    }

    /// A failed producer accepts no further record, so its failure is returned as the cause.
    fn not_taken(&self, error: &SendError) -> Interruption {
        self.sink.failure().unwrap_or_else(|| {
            Interruption::Kafka(match std::error::Error::source(error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })
        })
    }

    /// Decides about an event without a route: its topic cannot be used, or was not used before.
    fn unrouted(&self, topic: String, queues: bool) -> Result<Attempt, Backpressure> {
        match unusable(&topic) {
            Some(reason) => Ok(Attempt::Impossible(reason)),
            None => self.unmet(topic, queues),
        }
    }

    /// Decides about an event whose topic was not used before: it waits for a look-up, or for the
    /// topic.
    fn unmet(&self, topic: String, queues: bool) -> Result<Attempt, Backpressure> {
        if self.lookup.unregistered.contains_key(&topic) {
            return Err(Backpressure::Unregistered(topic));
        }
        let faults = &self.lookup.faults;
        match faults.reason(&topic) {
            None if !faults.has_room() => Ok(Attempt::Impossible(format!(
                "topic `{topic}` is not looked up, because the relay already tracks the maximum \
                 number of unusable topics: see `tidings parked list`, and the values of \
                 aggregatetype"
            ))),
            Some(_) if queues || !faults.is_releasing(&topic) => Ok(Attempt::TopicWaits(topic)),
            _ => Err(Backpressure::NewTopic(topic)),
        }
    }

    /// Returns the numbers of partitions that must be stored before the first records.
    pub(crate) fn unregistered(&self) -> &HashMap<String, i32> {
        &self.lookup.unregistered
    }

    /// Returns the relay's options.
    pub(crate) fn options(&self) -> &RelayOptions {
        &self.options
    }

    /// Returns the set of parked events.
    pub(crate) fn parked(&self) -> &ParkedSet {
        &self.parked
    }

    /// Returns the set of parked events, to record which events were stored and released.
    pub(crate) fn parked_mut(&mut self) -> &mut ParkedSet {
        &mut self.parked
    }

    /// Loads the content of the table of parked events.
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

    /// Returns the sink.
    pub(crate) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Returns the sink for changes before the first record.
    pub(crate) fn sink_mut(&mut self) -> &mut Sink {
        &mut self.sink
    }
}

/// Returns the number that identifies an event in the publisher: its `seq`, or a negative number
/// made of its id in a table without `seq`.
fn number(seq: i64, event: &Outgoing<'_>) -> i64 {
    let id = event.id.as_u128();
    // Zero identifies the record of the relay's own position.
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
