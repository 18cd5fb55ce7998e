//! From a row to the sink: route, envelope, record. The relay's hot path, shared by both sources.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    RelayOptions, TopicOptions,
    error::{Interruption, RelayError},
    observe::{Observer, Part},
    route::{Route, Routes, TopicTemplate},
    sink::{AtLeastOnce, Sent},
    tally::Tally,
};
use crate::kafka::{EnvelopeWriter, Outgoing, Record, SendError, Topics, partition_of};

/// How far a record's timestamp may lie in the past. Kafka deletes by it (a week by default), so an event that waited out a
/// long outage must not arrive expired. The true time is in `ce_time`.
const OLDEST_TIMESTAMP: Duration = Duration::from_secs(24 * 3600);

/// Between two tries at a topic that cannot be used.
const TOPIC_RETRY: Duration = Duration::from_secs(2);

/// Forwards events to the sink.
pub(super) struct Forwarder {
    routes: Routes,
    envelope: EnvelopeWriter,
    sink: AtLeastOnce,
    topics: Topics,
    create: TopicOptions,
    message_bytes_max: usize,
    tally: Tally,
    observer: Observer,
}

/// Why an event has to wait.
#[derive(Debug)]
pub(super) enum Hold {
    /// The window is full.
    Full,
    /// Its topic was not met before.
    NewTopic(String),
    /// Its partition has not acknowledged its first record yet.
    FirstContact,
}

impl Forwarder {
    /// A forwarder with a producer of its own.
    ///
    /// # Errors
    /// Options that the Kafka client refuses.
    pub(super) fn open(options: &RelayOptions, observer: &Observer) -> Result<Self, Interruption> {
        let template = TopicTemplate::parse(&options.topic).map_err(|error| Interruption::Refused(format!("topic template: {error}")))?;
        let sink = AtLeastOnce::open(options)?;
        let told = observer.clone();
        sink.acks().watch(move |latency| told.end_to_end(latency));
        Ok(Self {
            routes: Routes::new(template),
            envelope: EnvelopeWriter::new(options.envelope, options.event_source.clone()),
            topics: Topics::new(sink.producer(), &options.kafka),
            sink,
            create: options.topics.clone(),
            message_bytes_max: options.message_bytes_max,
            tally: Tally::default(),
            observer: observer.clone(),
        })
    }

    /// Sends one event; its tag, or why it has to wait. Never waits itself.
    ///
    /// # Errors
    /// An event that could never be delivered, or a producer that has failed.
    pub(super) fn forward(&mut self, seq: i64, event: &Outgoing<'_>) -> Result<Result<u64, Hold>, Interruption> {
        let (at, route) = match self.routes.find(event) {
            Ok(found) => found,
            Err(unknown) => return Ok(Err(Hold::NewTopic(unknown))),
        };
        let partition = partition_of(event.aggregate_id.as_bytes(), route.partitions);
        if !route.may_send(partition, || self.sink.durable()) {
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
        match self.sink.send(record) {
            Ok(Sent::Tag(tag)) => {
                route.sent(partition, tag);
                self.tally.sent(tag, at);
                Ok(Ok(tag))
            }
            Ok(Sent::Full) => Ok(Err(Hold::Full)),
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

    /// Waits until what held an event is out of the way.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn clear(&mut self, hold: &Hold) {
        match hold {
            Hold::Full => self.sink.room().await,
            Hold::FirstContact => self.sink.drained().await,
            Hold::NewTopic(topic) => self.learn(topic).await,
        }
    }

    /// Looks a topic up until it can be used, creating it if that is asked for.
    async fn learn(&mut self, topic: &str) {
        loop {
            let mut answer = self.topics.partitions(topic).await;
            if matches!(answer, Err(crate::kafka::TopicError::Unknown(_))) && self.create.create {
                answer = match self.topics.create(topic, self.create.partitions, self.create.replication).await {
                    Ok(()) => self.topics.partitions(topic).await,
                    Err(error) => Err(error),
                };
            }
            match answer {
                Ok(partitions) => {
                    tracing::info!(topic, partitions, "publishes to a topic");
                    self.observer.ok(Part::Kafka, "connected");
                    return self.routes.learn(topic.to_owned(), partitions);
                }
                Err(error) => {
                    tracing::warn!("{error}; the relay waits, nothing is lost");
                    self.observer.failing(Part::Kafka, error.to_string());
                    tokio::time::sleep(TOPIC_RETRY).await;
                }
            }
        }
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

    /// The sink.
    pub(super) fn sink(&self) -> &AtLeastOnce {
        &self.sink
    }

    /// Takes note of acknowledgements.
    ///
    /// # Errors
    /// When the producer has failed.
    pub(super) fn acknowledged(&mut self) -> Result<Acknowledged<'_>, Interruption> {
        if let Some(reason) = self.sink.acks().failure() {
            return Err(Interruption::Kafka(reason));
        }
        match self.sink.acks().unreachable_since_last_ack() {
            Some(reason) => self.observer.failing(Part::Kafka, format!("{reason}; events wait in the outbox")),
            None => self.observer.ok(Part::Kafka, "connected"),
        }
        self.observer.in_flight(self.sink.acks().under_way().0);
        let floor = self.sink.durable();
        self.tally.acknowledged(floor);
        let counts: Vec<_> = self.tally.take().into_iter().map(|(at, records)| (&self.routes.all()[at], records)).collect();
        for (route, records) in &counts {
            self.observer.published(&route.topic, *records);
        }
        Ok(Acknowledged { floor, counts })
    }
}

/// What Kafka has acknowledged.
pub(super) struct Acknowledged<'r> {
    /// Every record below this tag.
    pub(super) floor: u64,
    /// Records by topic, since the last time.
    pub(super) counts: Vec<(&'r Route, u64)>,
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

// === impl From ===

impl From<Interruption> for RelayError {
    fn from(interruption: Interruption) -> Self {
        Self::Refused(interruption.full())
    }
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
