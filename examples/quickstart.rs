//! The main job on a real Postgres and a real Kafka: orders from concurrent transactions, some rolled back, through the relay to a
//! plain consumer, and a verdict. `cargo run --example quickstart [EVENTS]`
//!
//! Starts the two services if `DATABASE_URL` and `KAFKA_BROKERS` do not name yours; leaves neither tables nor slot behind.

use std::{collections::HashMap, time::Duration};

use chrono::Utc;
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool};
use tidings::relay::{Relay, RelayOptions, TopicOptions};
use tidings::{DomainEvent, Migrations, Outbox, kafka, postgres};
use tokio_util::sync::CancellationToken;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderChanged {
    order_id: i64,
    version: i64,
    at_micros: i64,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

const WRITERS: i64 = 4;
const PER_TRANSACTION: i64 = 5;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let events: i64 = std::env::args().nth(1).map_or(Ok(20_000), |text| text.parse())?;
    let services = tokio::task::spawn_blocking(dev_services::Services::start).await??;
    println!("{}", services.describe());
    let name = format!("quickstart_{:x}", Utc::now().timestamp_micros());

    let pool = PgPool::connect(&services.database_url()).await?;
    Migrations::new().schema(&name).run(&pool).await?;
    let orders = format!(
        "create table {name}.orders (id bigint primary key, version bigint not null); insert into {name}.orders select n, 0 from generate_series(1, 1000) n"
    );
    sqlx::raw_sql(AssertSqlSafe(orders)).execute(&pool).await?;

    let kafka = kafka::Settings { brokers: services.brokers(), ..Default::default() };
    let mut options = RelayOptions::new(postgres::Settings::parse(&services.database_url())?, kafka);
    (options.name, options.schema, options.topic) = (name.clone(), name.clone(), name.clone());
    options.topics = TopicOptions { create: true, partitions: Some(8), replication: None };
    let shutdown = CancellationToken::new();
    let relay = tokio::spawn(Relay::new(options)?.run(shutdown.clone()));

    let began = std::time::Instant::now();
    let writers: Vec<_> = (0..WRITERS).map(|n| tokio::spawn(write(pool.clone(), name.clone(), n, events / WRITERS))).collect();
    let bar = ProgressBar::new(events as u64).with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} events delivered")?);
    let (brokers, topic, progress) = (services.brokers(), name.clone(), bar.clone());
    let (done, all_written) = tokio::sync::watch::channel(None);
    let consumer = tokio::task::spawn_blocking(move || consume(&brokers, &topic, &progress, &all_written));
    for writer in writers {
        writer.await??;
    }
    let versions: Vec<(i64, i64)> =
        sqlx::query_as(AssertSqlSafe(format!("select id, version from {name}.orders where version > 0"))).fetch_all(&pool).await?;
    let committed: i64 = versions.iter().map(|(_, version)| version).sum();
    bar.set_length(committed as u64);
    done.send(Some(committed))?;
    let (delivered, mut latencies) = consumer.await??;
    let seconds = began.elapsed().as_secs_f64();
    bar.finish();
    shutdown.cancel();
    relay.await??;
    let clean = format!(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'tidings_{name}'; drop publication tidings_{name}; drop schema {name} cascade"
    );
    sqlx::raw_sql(AssertSqlSafe(clean)).execute(&pool).await?;

    let (mut lost, mut repeated, mut misordered) = (0, 0, 0);
    for (order, version) in versions {
        let seen = delivered.get(&order).map_or(&[][..], Vec::as_slice);
        lost += (1..=version).filter(|version| !seen.contains(version)).count();
        repeated += seen.len() - seen.iter().collect::<std::collections::HashSet<_>>().len();
        misordered += seen.windows(2).filter(|pair| pair[1] < pair[0]).count();
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(0) as f64 / 1000.0;
    println!(
        "\ncommitted      {committed:>9}\ndelivered      {:>9}\nlost           {lost:>9}\nrepeated       {repeated:>9}\nout of order   {misordered:>9}",
        latencies.len()
    );
    println!(
        "events/s       {:>9.0}\nlatency p50    {:>9.1} ms (insert to consumer)\nlatency p99    {:>9.1} ms",
        committed as f64 / seconds,
        at(0.5),
        at(0.99)
    );
    if lost + repeated + misordered == 0 { Ok(()) } else { Err("the guarantees do not hold".into()) }
}

/// Changes orders and publishes that in the same transaction; every eighth transaction is rolled back, and its events with it.
async fn write(pool: PgPool, schema: String, writer: i64, events: i64) -> Result<(), sqlx::Error> {
    let outbox = Outbox::new().schema(&schema);
    let change = format!("update {schema}.orders set version = version + 1 where id = $1 returning version");
    for n in 0..events / PER_TRANSACTION {
        let mut tx = pool.begin().await?;
        for step in 0..PER_TRANSACTION {
            let order_id = 1 + (writer * 211 + n * 7) % 990 + step; // ascending, so that writers do not deadlock
            let version = sqlx::query_scalar(AssertSqlSafe(change.clone())).bind(order_id).fetch_one(&mut *tx).await?;
            let event = OrderChanged { order_id, version, at_micros: Utc::now().timestamp_micros() };
            outbox.publish(&mut tx, &event).await.map_err(|error| sqlx::Error::Encode(error.into()))?;
        }
        if n % 8 == 7 { tx.rollback().await? } else { tx.commit().await? }
    }
    Ok(())
}

type Delivered = (HashMap<i64, Vec<i64>>, Vec<i64>);

/// Any consumer will do: the value is the event's JSON, the key the order's id.
fn consume(
    brokers: &str,
    topic: &str,
    bar: &ProgressBar,
    expected: &tokio::sync::watch::Receiver<Option<i64>>,
) -> Result<Delivered, Failure> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", topic)
        .set("auto.offset.reset", "earliest")
        .set("topic.metadata.refresh.interval.ms", "200");
    let consumer: BaseConsumer = config.set("fetch.wait.max.ms", "10").create()?;
    consumer.subscribe(&[topic])?;
    let (mut versions, mut latencies): Delivered = Default::default();
    while !expected.borrow().is_some_and(|expected| latencies.len() as i64 >= expected) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let event: OrderChanged = serde_json::from_slice(message.payload().unwrap_or_default())?;
        latencies.push(Utc::now().timestamp_micros() - event.at_micros);
        versions.entry(event.order_id).or_default().push(event.version);
        bar.inc(1);
    }
    Ok((versions, latencies))
}
