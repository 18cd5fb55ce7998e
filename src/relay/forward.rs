//! From a row to the sink: route, envelope, record. The relay's hot path, shared by both sources.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::task::JoinHandle;

use super::{
    RelayOptions, TopicOptions,
    error::Interruption,
    observe::{Observer, Part},
    position::{Journal, Position},
    resume::Names,
    route::{Route, Routes, TopicTemplate},
    server::Server,
    sink::{Batch, Durable, Sent, Sink},
};
use crate::kafka::{EnvelopeWriter, Outgoing, Record, SendError, TopicError, Topics, partition_of};

/// How far a record's timestamp may lie in the past. Kafka deletes by it (a week by default), so an event that waited out a
/// long outage must not arrive expired. The true time is in `ce_time`.
const OLDEST_TIMESTAMP: Duration = Duration::from_secs(24 * 3600);

/// What the envelope's own headers weigh, about.
const ENVELOPE_BYTES: usize = 256;

/// Between two tries at a topic that cannot be used.
const TOPIC_RETRY: Duration = Duration::from_secs(2);

/// Forwards events to the sink.
pub(super) struct Forwarder {
    routes: Routes,
    envelope: EnvelopeWriter,
    sink: Sink,
    topics: Topics,
    create: TopicOptions,
    message_bytes_max: usize,
    /// Records by route since the last cut.
    counts: Vec<u64>,
    observer: Observer,
    pinned: HashMap<String, i32>,
    /// The question whether an unreachable cluster is back.
    looking: Option<JoinHandle<()>>,
}

/// Why an event has to wait.
#[derive(Debug)]
pub(super) enum Hold {
    /// The window is full for a record of this many bytes.
    Full(usize),
    /// Its topic was not met before.
    NewTopic(String),
    /// Its partition has not acknowledged its first record yet.
    FirstContact,
    /// The last batch is being committed.
    Committing,
}

impl Forwarder {
    /// A forwarder with a producer of its own.
    ///
    /// # Errors
    /// Options that the Kafka client refuses.
    pub(super) fn open(options: &RelayOptions, observer: &Observer, transactional_id: Option<&str>) -> Result<Self, Interruption> {
        let template = TopicTemplate::parse(&options.topic).map_err(|error| Interruption::Refused(format!("topic template: {error}")))?;
        let sink = Sink::open(options, transactional_id)?;
        let told = observer.clone();
        sink.acks().watch(move |latency| told.end_to_end(latency));
        Ok(Self {
            routes: Routes::new(template, options.topic_rewrite.clone()),
            envelope: EnvelopeWriter::new(options.envelope, options.event_source.clone()).with_own_headers(options.debezium.is_some()),
            topics: Topics::new(sink.producer(), &options.kafka),
            sink,
            create: options.topics.clone(),
            message_bytes_max: options.message_bytes_max,
            counts: Vec::new(),
            observer: observer.clone(),
            pinned: HashMap::new(),
            looking: None,
        })
    }

    /// Sends one event; its tag, or why it has to wait. Never waits itself.
    ///
    /// # Errors
    /// An event that could never be delivered, or a producer that has failed.
    pub(super) fn forward(&mut self, seq: i64, event: &Outgoing<'_>) -> Result<Result<u64, Hold>, Interruption> {
        let (at, route) = match self.routes.find(event) {
            Ok(found) => found,
            Err(unknown) if crate::event::check_topic_name(&unknown).is_ok() => return Ok(Err(Hold::NewTopic(unknown))),
            Err(illegal) => {
                return Err(undeliverable(seq, event, &format!("`{illegal}` is no name for a topic; change the topic template")));
            }
        };
        let partition = partition_of(event.aggregate_id.as_bytes(), route.partitions);
        if !route.may_send(partition, || self.sink.acks().floor()) {
            return Ok(Err(Hold::FirstContact));
        }
        let (headers, value) = self.envelope.write(event).map_err(|error| undeliverable(seq, event, &error.to_string()))?;
        let record = Record {
            topic: &route.topic,
            partition,
            key: event.aggregate_id.as_bytes(),
            value,
            headers,
            timestamp: acceptable(event.occurred_at / 1000, now_millis()),
        };
        match self.sink.send(record, event.headers.len() + ENVELOPE_BYTES) {
            Ok(Sent::Tag(tag)) => {
                route.sent(partition, tag);
                if self.counts.len() <= at {
                    self.counts.resize(at + 1, 0);
                }
                self.counts[at] += 1;
                Ok(Ok(tag))
            }
            Ok(Sent::Full(bytes)) => Ok(Err(Hold::Full(bytes))),
            Ok(Sent::Committing) => Ok(Err(Hold::Committing)),
            Err(SendError::TooLarge) => {
                let problem = format!("larger than the {} bytes that max_message_bytes allows", self.message_bytes_max);
                Err(undeliverable(seq, event, &problem))
            }
            Err(error) => Err(Interruption::Kafka(match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })),
        }
    }

    /// Waits until what held an event is out of the way. The future borrows nothing, so that the books can be kept meanwhile; give
    /// its result to [`Forwarder::cleared`].
    pub(super) fn clear(&self, hold: Hold) -> Pin<Box<dyn Future<Output = Cleared> + Send>> {
        match hold {
            Hold::Full(bytes) => Box::pin(then_go_on(self.sink.room(bytes))),
            Hold::FirstContact => Box::pin(then_go_on(self.sink.acknowledged())),
            Hold::Committing => Box::pin(then_go_on(self.sink.settled())),
            Hold::NewTopic(topic) => Box::pin(look_up(self.topics.clone(), self.create.clone(), self.observer.clone(), topic)),
        }
    }

    /// Takes note of what was found out while an event was held.
    ///
    /// # Errors
    /// When the producer has failed: then there is room, but not for long.
    pub(super) fn cleared(&mut self, cleared: Cleared) -> Result<(), Interruption> {
        if let Cleared::Topic { topic, partitions } = cleared {
            let pinned = self.pinned.get(&topic).copied().unwrap_or(partitions);
            if pinned != partitions {
                tracing::warn!(topic, partitions, pinned, "the topic has another number of partitions than when this relay first met it");
            }
            // Keys stay where they are when a topic has grown; one that was made anew with fewer has nowhere else to put them.
            self.routes.learn(topic, pinned.min(partitions));
        }
        self.sink.failure().map_or(Ok(()), Err)
    }

    /// Waits until the cluster answers; its id.
    pub(super) async fn reach_cluster(&self) -> String {
        loop {
            match self.topics.cluster_id().await {
                Ok(id) => {
                    self.observer.ok(Part::Kafka, "connected");
                    return id;
                }
                Err(error) => {
                    tracing::warn!("{error}; the relay waits for it");
                    self.observer.failing(Part::Kafka, error.to_string());
                }
            }
        }
    }

    /// The partition counts by which earlier runs of this relay placed keys.
    pub(super) fn pin(&mut self, pinned: HashMap<String, i32>) {
        self.pinned = pinned;
    }

    /// The sink.
    pub(super) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// The sink, before the first record.
    pub(super) fn sink_mut(&mut self) -> &mut Sink {
        &mut self.sink
    }

    /// Takes up a new epoch with a producer whose records are all safe.
    pub(super) fn go_on(&mut self, names: &Names, server: &Server, epoch: i64, number: u64) {
        self.sink.write_positions(names.topic.clone(), Journal::new(server.identity.clone(), epoch, number));
    }

    /// Answers about topics.
    pub(super) fn topics(&self) -> &Topics {
        &self.topics
    }

    /// What was sent so far belongs together, and after it the relay stands at `position`. False if the last batch is still being committed.
    pub(super) fn cut(&mut self, position: Position) -> bool {
        let counts = std::mem::take(&mut self.counts);
        match self.sink.cut(Batch { position, counts }) {
            Ok(()) => true,
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
    pub(super) fn durable(&mut self) -> Result<Option<(Durable, Vec<(&Route, u64)>)>, Interruption> {
        self.observe_cluster();
        self.observer.in_flight(self.sink.acks().under_way().0);
        let durable = self.sink.durable();
        if durable.is_none()
            && let Some(failure) = self.sink.failure()
        {
            return Err(failure);
        }
        Ok(durable.map(|durable| {
            let counts = durable.batch.counts.iter().enumerate().filter(|(_, records)| **records > 0);
            let counts: Vec<_> = counts.map(|(at, records)| (&self.routes.all()[at], *records)).collect();
            counts.iter().for_each(|(route, records)| self.observer.published(&route.topic, *records));
            (durable, counts)
        }))
    }

    fn observe_cluster(&mut self) {
        let Some(reason) = self.sink.acks().unreachable_since_last_ack() else {
            self.observer.ok(Part::Kafka, "connected");
            return;
        };
        self.observer.failing(Part::Kafka, format!("{reason}; events wait in the outbox"));
        if let Some(route) = self.routes.all().first()
            && self.looking.as_ref().is_none_or(JoinHandle::is_finished)
        {
            let (topics, topic) = (self.topics.clone(), route.topic.clone());
            self.looking = Some(tokio::spawn(async move { topics.look_for_cluster(topic).await }));
        }
    }
}

/// What was found out while an event was held.
pub(super) enum Cleared {
    GoOn,
    Topic { topic: String, partitions: i32 },
}

async fn then_go_on(wait: impl Future<Output = ()>) -> Cleared {
    wait.await;
    Cleared::GoOn
}

/// Looks a topic up until it can be used, creating it if that is asked for.
async fn look_up(topics: Topics, create: TopicOptions, observer: Observer, topic: String) -> Cleared {
    loop {
        let mut answer = topics.partitions(&topic).await;
        if matches!(answer, Err(TopicError::Unknown(_))) && create.create {
            answer = match topics.create(&topic, create.partitions, create.replication, &[]).await {
                Ok(()) => topics.partitions(&topic).await,
                Err(error) => Err(error),
            };
        }
        match answer {
            Ok(partitions) => {
                tracing::info!(topic, partitions, "publishes to a topic");
                observer.ok(Part::Kafka, "connected");
                return Cleared::Topic { topic, partitions };
            }
            Err(error) => {
                tracing::warn!("{error}; the relay waits, nothing is lost");
                observer.failing(Part::Kafka, error.to_string());
                tokio::time::sleep(TOPIC_RETRY).await;
            }
        }
    }
}

/// A record's timestamp, milliseconds: the event's own, within what a broker accepts (nothing of the future) and keeps.
fn acceptable(occurred_at: i64, now: i64) -> i64 {
    occurred_at.clamp(now - OLDEST_TIMESTAMP.as_millis() as i64, now)
}

fn now_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn undeliverable(seq: i64, event: &Outgoing<'_>, problem: &str) -> Interruption {
    Interruption::Refused(format!(
        "event {} (seq {seq}, {} of {} {}) cannot be published: {problem}; the relay stops before it, so that nothing is skipped",
        event.id, event.event_type, event.aggregate_type, event.aggregate_id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_the_events_own_unless_a_broker_would_refuse_or_expire_it() {
        let (now, day) = (1_700_000_000_000, 24 * 3_600_000);
        assert_eq!(acceptable(now - 5, now), now - 5);
        assert_eq!(acceptable(now + 2 * 3_600_000, now), now);
        assert_eq!(acceptable(now - 8 * day, now), now - day);
        assert_eq!(acceptable(i64::MIN / 1000, now), now - day);
    }
}
