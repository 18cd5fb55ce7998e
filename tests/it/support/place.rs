//! The topic and group of a test's subscriber, and the check of its effects.

use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord},
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tidings::{
    Bus, DomainEvent, Subscriber,
    event::Envelope,
    kafka,
    subscriber::{Event, HandlerError, Meta, Statistics, Tx},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use crate::support::eventually::{PATIENCE, until};
use crate::support::records::create_topic;

/// The event that the tests publish: the `version`th event of an account.
#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "account", id = "account")]
pub(crate) struct Changed {
    pub(crate) account: String,
    pub(crate) version: i32,
}

/// The topic and group of one test.
pub(crate) struct Place {
    pub(crate) bus: Bus,
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) group: String,
}

impl Place {
    /// Creates a topic with this number of partitions.
    pub(crate) async fn new(partitions: i32) -> Self {
        Self::on(crate::support::services::brokers(), partitions).await
    }

    pub(crate) async fn on(brokers: String, partitions: i32) -> Self {
        let id = Uuid::now_v7().simple();
        let bus = Bus::new(kafka::Settings {
            brokers: brokers.clone(),
            ..kafka::Settings::default()
        });
        let place = Self {
            bus,
            topic: format!("test-{id}"),
            group: format!("g-{id}"),
            brokers,
        };
        create_topic(&place.brokers, &place.topic, partitions).await;
        place
    }

    /// Returns a subscriber of this place's topic.
    pub(crate) fn subscriber<S: Send + Sync + 'static>(&self) -> Subscriber<S> {
        self.bus
            .subscriber(&self.group)
            .topic::<Changed>(&self.topic)
    }

    /// Publishes the `versions` of accounts `0..accounts` and returns their envelopes.
    pub(crate) async fn publish(
        &self,
        accounts: usize,
        versions: std::ops::RangeInclusive<i32>,
    ) -> Vec<Envelope> {
        let events = versions.flat_map(|version| {
            (0..accounts).map(move |account| Changed {
                account: format!("a{account}"),
                version,
            })
        });
        let envelopes: Vec<_> = events.map(|event| self.envelope(&event)).collect();
        self.send(&envelopes).await;
        envelopes
    }

    pub(crate) fn envelope(&self, event: &Changed) -> Envelope {
        let mut envelope = Envelope::of(event).expect("a valid event");
        envelope.topic = Some(self.topic.clone());
        envelope
    }

    /// Sends envelopes in this order.
    pub(crate) async fn send(&self, envelopes: &[Envelope]) {
        for sent in join_all(
            envelopes
                .iter()
                .map(|envelope| self.bus.publish_envelope(envelope)),
        )
        .await
        {
            sent.expect("the event is published");
        }
    }

    /// Sends a record as another program would.
    pub(crate) async fn send_raw(&self, key: &str, value: Option<&str>, headers: &[(&str, &str)]) {
        self.send_record(Some(key), value, headers).await;
    }

    /// Sends a record as another program would, with or without a key.
    pub(crate) async fn send_record(
        &self,
        key: Option<&str>,
        value: Option<&str>,
        headers: &[(&str, &str)],
    ) {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()
            .expect("a producer");
        let mut all = rdkafka::message::OwnedHeaders::new();
        for (key, value) in headers {
            all = all.insert(rdkafka::message::Header {
                key,
                value: Some(*value),
            });
        }
        let mut record = FutureRecord::<str, str>::to(&self.topic).headers(all);
        (record.key, record.payload) = (key, value);
        producer
            .send(record, Duration::from_secs(30))
            .await
            .expect("the record is sent");
    }
}

/// A subscriber that runs in this process.
pub(crate) struct Running {
    pub(crate) statistics: Statistics,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), tidings::subscriber::RunError>>,
}

/// Runs a subscriber whose type is complete.
macro_rules! start {
    ($subscriber:expr) => {{
        let (subscriber, shutdown) = ($subscriber, tokio_util::sync::CancellationToken::new());
        $crate::support::place::Running::new(
            subscriber.statistics(),
            shutdown.clone(),
            tokio::spawn(subscriber.run(shutdown)),
        )
    }};
}
pub(crate) use start;

impl Running {
    pub(crate) fn new(
        statistics: Statistics,
        shutdown: CancellationToken,
        task: JoinHandle<Result<(), tidings::subscriber::RunError>>,
    ) -> Self {
        Self {
            statistics,
            shutdown,
            task,
        }
    }

    /// Waits until the statistics satisfy `holds`.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Statistics) -> bool) {
        until(what, async || holds(&self.statistics).then_some(())).await;
    }

    /// Shuts the subscriber down as SIGTERM would.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task
            .await
            .expect("the task does not panic")
            .expect("the subscriber ends without an error");
    }
}

/// Returns the reasons for which a subscriber refuses to run.
pub(crate) async fn refused(
    running: impl Future<Output = Result<(), tidings::subscriber::RunError>>,
) -> String {
    let ended = tokio::time::timeout(PATIENCE, running).await;
    match ended.expect("it does not wait") {
        Err(tidings::subscriber::RunError::Settings(reasons)) => reasons.join("; "),
        other => panic!("expected a refusal: {other:?}"),
    }
}

/// Creates the table that counts the effects.
pub(crate) async fn create_effects(pool: &PgPool) {
    let table = "create table effect (seq bigint generated always as identity, account text, \
        version int, attempt int)";
    sqlx::query(table).execute(pool).await.expect("a new table");
}

/// The handler whose effect is counted.
pub(crate) async fn count(
    Event(changed): Event<Changed>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    effect(&mut tx, &changed, &meta).await
}

pub(crate) async fn effect(
    tx: &mut Tx,
    changed: &Changed,
    meta: &Meta,
) -> Result<(), HandlerError> {
    sqlx::query("insert into effect (account, version, attempt) values ($1, $2, $3)")
        .bind(&changed.account)
        .bind(changed.version)
        .bind(i32::try_from(meta.attempt()).expect("the number fits"))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Returns the number of effects.
pub(crate) async fn effects(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from effect")
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

/// Waits until there are at least `count` effects.
pub(crate) async fn until_effects(pool: &PgPool, count: i64) {
    until(&format!("{count} effects"), async || {
        (effects(pool).await >= count).then_some(())
    })
    .await;
}

/// Asserts that each account has the effects of versions `1..=versions`, each once and in order.
pub(crate) async fn assert_once_and_in_order(pool: &PgPool, accounts: usize, versions: i32) {
    let rows: Vec<(String, Vec<i32>)> = sqlx::query_as(
        "select account, array_agg(version order by seq) from effect \
            group by account order by account",
    )
    .fetch_all(pool)
    .await
    .expect("the query succeeds");
    let expected: Vec<i32> = (1..=versions).collect();
    for (account, found) in &rows {
        assert_eq!(found, &expected, "the effects of {account}");
    }
    assert_eq!(rows.len(), accounts);
}
