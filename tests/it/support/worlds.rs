//! The worlds of a scenario: the in-memory bus, or a real Postgres and a real Kafka with a relay.

use std::collections::BTreeMap;

use sqlx::PgPool;
use tidings::event::Envelope;
use tidings::relay::{Relay, RelayOptions};
use tidings::subscriber::{
    Statistics,
    typestate::{InboxReady, StateReady},
};
use tidings::testing::TestBus;
use tidings::{Bus, DomainEvent, Outbox, Subscriber, kafka, postgres};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::place::until;
use crate::support::records::{Reader, create_topic_with};
use crate::support::services::{TestDatabase, brokers, migrated_database};

/// The result that is compared between worlds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Per subscriber: handled, duplicates, skipped, unknown, retried, failed attempts, dead.
    pub(crate) counts: BTreeMap<String, [u64; 7]>,
    /// Per subscriber: the reasons of its dead letters, sorted.
    pub(crate) dead: BTreeMap<String, Vec<String>>,
    /// Type, aggregate and payload of each event that handlers published, sorted.
    pub(crate) published: Vec<String>,
}

/// A world that runs a scenario.
pub(crate) trait World {
    /// Returns a pool of a database with the tables of Tidings.
    fn pool(&self) -> &PgPool;

    /// Returns the topic of an aggregate, which relay and subscribers share.
    fn topic(&self, aggregate: &str) -> String;

    fn subscriber<S: Send + Sync + 'static>(&self, name: &str) -> Subscriber<S>;

    async fn add<S, G, I>(&mut self, name: &str, subscriber: Subscriber<S, G, I>)
    where
        S: Send + Sync + 'static,
        G: StateReady<S> + Send + 'static,
        I: InboxReady + Send + 'static;

    /// Publishes events as a service does.
    async fn publish(&mut self, envelopes: &[Envelope]);

    /// Delivers events again.
    async fn repeat(&mut self, envelopes: &[Envelope]);

    /// Waits until this number of deliveries have ended, and until no further one ends for a
    /// moment.
    async fn settle(&mut self, ends: u64);

    /// Returns the outcome.
    async fn outcome(self) -> Outcome;
}

/// Returns the number of deliveries that have ended.
fn ends(statistics: &Statistics) -> u64 {
    statistics.handled()
        + statistics.duplicates()
        + statistics.skipped()
        + statistics.unknown_types()
        + statistics.dead_lettered()
}

fn counts(statistics: &Statistics) -> [u64; 7] {
    [
        statistics.handled(),
        statistics.duplicates(),
        statistics.skipped(),
        statistics.unknown_types(),
        statistics.retried(),
        statistics.failed_attempts(),
        statistics.dead_lettered(),
    ]
}

fn sum(all: &[(String, Statistics)]) -> BTreeMap<String, [u64; 7]> {
    let mut sums = BTreeMap::<String, [u64; 7]>::new();
    for (name, statistics) in all {
        let sum = sums.entry(name.clone()).or_default();
        sum.iter_mut()
            .zip(counts(statistics))
            .for_each(|(sum, count)| *sum += count);
    }
    sums
}

/// Returns the envelope of an event.
pub(crate) fn of<E: DomainEvent>(event: &E) -> Envelope {
    Envelope::of(event).expect("a valid event")
}

fn published_line(envelope: &Envelope) -> String {
    format!(
        "{} {} {}",
        envelope.event_type,
        envelope.aggregate_id.as_str(),
        envelope.payload.as_json().unwrap_or("none")
    )
}

/// The in-memory bus.
pub(crate) struct Memory {
    database: TestDatabase,
    bus: TestBus,
    statistics: Vec<(String, Statistics)>,
}

impl Memory {
    pub(crate) async fn new() -> Self {
        Self {
            database: migrated_database().await,
            bus: TestBus::new(),
            statistics: Vec::new(),
        }
    }
}

impl World for Memory {
    fn pool(&self) -> &PgPool {
        &self.database.pool
    }

    fn topic(&self, aggregate: &str) -> String {
        format!("shop.{aggregate}")
    }

    fn subscriber<S: Send + Sync + 'static>(&self, name: &str) -> Subscriber<S> {
        self.bus.subscriber(name)
    }

    async fn add<S, G, I>(&mut self, name: &str, subscriber: Subscriber<S, G, I>)
    where
        S: Send + Sync + 'static,
        G: StateReady<S> + Send + 'static,
        I: InboxReady + Send + 'static,
    {
        self.statistics
            .push((name.to_owned(), subscriber.statistics()));
        self.bus.add(subscriber).await;
    }

    async fn publish(&mut self, envelopes: &[Envelope]) {
        envelopes
            .iter()
            .for_each(|envelope| self.bus.publish_envelope(envelope));
    }

    async fn repeat(&mut self, envelopes: &[Envelope]) {
        self.publish(envelopes).await;
    }

    async fn settle(&mut self, expected: u64) {
        self.bus.settle().await;
        let ended: u64 = self
            .statistics
            .iter()
            .map(|(_, statistics)| ends(statistics))
            .sum();
        assert_eq!(
            ended,
            expected,
            "deliveries that ended: {:?}",
            sum(&self.statistics)
        );
    }

    async fn outcome(self) -> Outcome {
        let names = self.statistics.iter().map(|(name, _)| name.clone());
        let dead = names
            .map(|name| (name.clone(), sorted(self.bus.dead_letters(&name))))
            .filter(|(_, reasons)| !reasons.is_empty());
        Outcome {
            dead: dead.collect(),
            published: sorted(
                self.bus
                    .published_envelopes()
                    .iter()
                    .map(published_line)
                    .collect(),
            ),
            counts: sum(&self.statistics),
        }
    }
}

/// Postgres, Kafka, a relay and subscribers.
pub(crate) struct Real {
    database: TestDatabase,
    bus: Bus,
    id: String,
    topics: Vec<String>,
    statistics: Vec<(String, Statistics)>,
    shutdown: CancellationToken,
    running: Vec<JoinHandle<()>>,
    /// Ids of the events that the test itself published, which are not those of handlers.
    sent: Vec<Uuid>,
}

impl Real {
    pub(crate) async fn new() -> Self {
        let (database, id) = (
            migrated_database().await,
            Uuid::now_v7().simple().to_string(),
        );
        let settings = kafka::Settings {
            brokers: brokers(),
            ..kafka::Settings::default()
        };
        let mut real = Self {
            bus: Bus::new(settings.clone()),
            id,
            topics: Vec::new(),
            statistics: Vec::new(),
            shutdown: CancellationToken::new(),
            running: Vec::new(),
            sent: Vec::new(),
            database,
        };
        for aggregate in ["order", "stock", "parcel"] {
            let topic = real.topic(aggregate);
            create_topic_with(&brokers(), &topic, 1, &[]).await;
            real.topics.push(topic);
        }
        let mut options = RelayOptions::new(
            postgres::DatabaseSettings::parse(&real.database.url).expect("a URL"),
            settings,
        );
        options.name = format!("r{}", &real.id);
        options.topic = format!("{}-{{aggregatetype}}", real.id);
        let relay = Relay::new(options)
            .expect("a relay")
            .run(real.shutdown.clone());
        real.running.push(tokio::spawn(async move {
            relay.await.expect("the subscriber ends without an error")
        }));
        real
    }
}

impl World for Real {
    fn pool(&self) -> &PgPool {
        &self.database.pool
    }

    fn topic(&self, aggregate: &str) -> String {
        format!("{}-{aggregate}", self.id)
    }

    fn subscriber<S: Send + Sync + 'static>(&self, name: &str) -> Subscriber<S> {
        self.bus.subscriber(format!("{name}-{}", self.id))
    }

    async fn add<S, G, I>(&mut self, name: &str, subscriber: Subscriber<S, G, I>)
    where
        S: Send + Sync + 'static,
        G: StateReady<S> + Send + 'static,
        I: InboxReady + Send + 'static,
    {
        self.statistics
            .push((name.to_owned(), subscriber.statistics()));
        let run = subscriber.run(self.shutdown.clone());
        self.running.push(tokio::spawn(async move {
            run.await.expect("the subscriber ends without an error")
        }));
    }

    async fn publish(&mut self, envelopes: &[Envelope]) {
        let mut tx = self
            .database
            .pool
            .begin()
            .await
            .expect("a transaction begins");
        Outbox::new()
            .publish_envelopes(&mut tx, envelopes)
            .await
            .expect("the event is published");
        tx.commit().await.expect("the commit succeeds");
        self.sent
            .extend(envelopes.iter().map(|envelope| envelope.id.as_uuid()));
    }

    async fn repeat(&mut self, envelopes: &[Envelope]) {
        for envelope in envelopes {
            let mut envelope = envelope.clone();
            envelope.topic = Some(self.topic(&envelope.aggregate_type));
            // The relay writes this source.
            let bus = self
                .bus
                .clone()
                .source(format!("/tidings/{}", self.database.name));
            bus.publish_envelope(&envelope)
                .await
                .expect("the record is sent");
        }
    }

    async fn settle(&mut self, expected: u64) {
        let ended = || {
            self.statistics
                .iter()
                .map(|(_, statistics)| ends(statistics))
                .sum::<u64>()
        };
        until(&format!("{expected} deliveries end"), async || {
            (ended() >= expected).then_some(())
        })
        .await;
        assert_eq!(
            ended(),
            expected,
            "deliveries that ended: {:?}",
            sum(&self.statistics)
        );
    }

    async fn outcome(self) -> Outcome {
        self.shutdown.cancel();
        for task in self.running {
            task.await.expect("the task does not panic");
        }
        let mut dead = BTreeMap::<String, Vec<String>>::new();
        for (name, _) in self
            .statistics
            .iter()
            .filter(|(_, statistics)| statistics.dead_lettered() > 0)
        {
            for topic in &self.topics {
                let letters = format!("{topic}.{name}-{}.dlt", self.id);
                let mut reader = Reader::new(&brokers(), &letters);
                if reader.partitions() == 0 {
                    continue;
                }
                let reasons = reader
                    .read_to_the_end()
                    .iter()
                    .map(|record| record.headers["kafka_dlt-exception-message"].clone());
                dead.entry(name.clone()).or_default().extend(reasons);
            }
        }
        let rows: Vec<(String, String, Option<String>)> = sqlx::query_as(
            "select type, aggregateid, payload::text from tidings.outbox where id <> all ($1)",
        )
        .bind(&self.sent)
        .fetch_all(&self.database.pool)
        .await
        .expect("the query succeeds");
        let line = |(event_type, id, payload): (String, String, Option<String>)| {
            format!("{event_type} {id} {}", payload.as_deref().unwrap_or("none"))
        };
        Outcome {
            counts: sum(&self.statistics),
            dead: dead
                .into_iter()
                .map(|(name, reasons)| (name, sorted(reasons)))
                .collect(),
            published: sorted(rows.into_iter().map(line).collect()),
        }
    }
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_unstable();
    lines
}
