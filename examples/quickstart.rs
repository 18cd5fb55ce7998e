//! The main task of Tidings on a real Postgres and a real Kafka.
//!
//! Concurrent transactions change orders, and some roll back. The relay publishes the events, a
//! plain consumer reads them, and the verdict compares both.
//!
//! Run it with `cargo run --example quickstart [EVENTS]`. It uses `DATABASE_URL` and
//! `KAFKA_BROKERS` if they are set, and starts both services otherwise. It removes its tables and
//! its slot at the end.

// The runtime of the example owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]
use std::io::{Write as _, stdout};
use std::time::Instant;

use chrono::Utc;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool};
use tidings::relay::{Relay, RelayOptions, TopicOptions};
use tidings::{DomainEvent, Migrations, Outbox, kafka, postgres};
use tokio::sync::watch;

#[path = "quickstart/consumer.rs"]
mod consumer;
#[path = "quickstart/verdict.rs"]
mod verdict;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderChanged {
    order_id: i64,
    version: i64,
    at_micros: i64,
}

type Delivered = Vec<Delivery>;

/// An event as the consumer received it.
struct Delivery {
    event: OrderChanged,
    partition: i32,
    offset: i64,
    latency_ms: f64,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let events: i64 = std::env::args()
        .nth(1)
        .map_or(Ok(20_000), |text| text.parse())?;
    let services = tokio::task::spawn_blocking(dev_services::Services::start).await??;
    writeln!(stdout(), "{}", services.describe())?;
    let name = format!("quickstart_{:x}", Utc::now().timestamp_micros());
    let pool = PgPool::connect(&services.database_url()).await?;
    Migrations::new().schema(&name).run(&pool).await?;
    let orders =
        format!("create table {name}.orders (id bigint primary key, version bigint not null)");
    sqlx::query(AssertSqlSafe(orders)).execute(&pool).await?;

    let brokers = kafka::Settings {
        brokers: services.brokers(),
        ..Default::default()
    };
    let mut options = RelayOptions::new(
        postgres::DatabaseSettings::parse(&services.database_url())?,
        brokers,
    );
    (options.name, options.schema, options.topic) = (name.clone(), name.clone(), name.clone());
    options.topics = TopicOptions {
        create: true,
        partitions: Some(8),
        replication: None,
    };
    let shutdown = tokio_util::sync::CancellationToken::new();
    let mut relay = tokio::spawn(Relay::new(options)?.run(shutdown.clone()));

    let began = Instant::now();
    let bar = ProgressBar::new(events as u64).with_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} events delivered",
    )?);
    let (expect, expected) = watch::channel(usize::MAX);
    let consumer = tokio::spawn(consumer::consume(
        services.brokers(),
        name.clone(),
        bar.clone(),
        expected,
    ));
    let writers: Vec<_> = (0..4)
        .map(|writer| tokio::spawn(write(pool.clone(), name.clone(), writer, events / 20)))
        .collect();
    for writer in writers {
        writer.await??;
    }
    let truth: Vec<(i64, i64)> =
        sqlx::query_as(AssertSqlSafe(format!("select * from {name}.orders")))
            .fetch_all(&pool)
            .await?;
    let committed: i64 = truth.iter().map(|(_, version)| version).sum();
    bar.set_length(committed as u64);
    expect.send(committed as usize)?;
    let delivered = tokio::select! {
        delivered = consumer => delivered??,
        ended = &mut relay => return Ok(ended??), // the error contains the reason
    };
    let seconds = began.elapsed().as_secs_f64();
    shutdown.cancel();
    relay.await??;
    bar.finish();
    // The server may take a moment to detect the end of the stream.
    let names = format!("select slot, publication from {name}.relay");
    let (slot, publication): (String, String) = sqlx::query_as(AssertSqlSafe(names))
        .fetch_one(&pool)
        .await?;
    let end = format!(
        "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots
         where slot_name = '{slot}'"
    );
    let drop = format!(
        "select pg_drop_replication_slot('{slot}'); drop publication {publication};
         drop schema {name} cascade"
    );
    sqlx::raw_sql(AssertSqlSafe(format!("{end}; {drop}")))
        .execute(&pool)
        .await?;
    verdict::print(&truth, &delivered, seconds)
}

/// Changes orders and publishes the changes in the same transactions, five per transaction. Every
/// eighth transaction rolls back, including its events.
async fn write(
    pool: PgPool,
    schema: String,
    writer: i64,
    transactions: i64,
) -> Result<(), Failure> {
    let outbox = Outbox::new().schema(&schema);
    let change = format!(
        "insert into {schema}.orders as o values ($1, 1)
         on conflict (id) do update set version = o.version + 1"
    );
    let change = change + " returning version";
    for n in 0..transactions {
        let mut tx = pool.begin().await?;
        for step in 0..5 {
            // Ascending, so that writers do not deadlock.
            let order_id = (writer * 211 + n * 7) % 990 + step;
            let version = sqlx::query_scalar(AssertSqlSafe(change.clone()))
                .bind(order_id)
                .fetch_one(&mut *tx)
                .await?;
            outbox
                .publish(
                    &mut tx,
                    &OrderChanged {
                        order_id,
                        version,
                        at_micros: Utc::now().timestamp_micros(),
                    },
                )
                .await?;
        }
        if n % 8 == 7 {
            tx.rollback().await?
        } else {
            tx.commit().await?
        }
    }
    Ok(())
}
