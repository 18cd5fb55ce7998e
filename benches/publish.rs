//! Cost of publishing compared to plain SQL: `publish` with one INSERT, `publish_all` of 1,000
//! events with COPY.
//!
//! ```sh
//! DATABASE_URL=postgres://… cargo bench --bench publish
//! ```
//!
//! Both sides write the same rows over the same connection in transactions of the same shape. The
//! rounds alternate, so that other load on the machine affects both sides equally. The ratio is
//! that of the medians.

// No future of this benchmark is cancelled.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use chrono::Utc;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use tidings::{DomainEvent, Outbox};
use uuid::Uuid;

const ROUNDS: usize = 40;
/// Transactions with one event per round.
const SINGLES: usize = 250;
/// Events per batch.
const BATCH: usize = 1_000;
/// Batches per round.
const BATCHES: usize = 4;

/// Size of the pieces of a COPY. A single large message sometimes waits 40 ms for a
/// delayed TCP acknowledgement, which would favour Tidings.
const COPY_CHUNK: usize = 60_000;

type Failure = Box<dyn std::error::Error>;

/// An event of about 250 bytes of JSON.
#[derive(Serialize, Deserialize, DomainEvent, Clone)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: Uuid,
    customer_id: Uuid,
    total_cents: i64,
    currency: String,
    note: String,
}

fn event(number: usize) -> OrderPlaced {
    OrderPlaced {
        order_id: Uuid::from_u128((number % 10_000) as u128),
        customer_id: Uuid::from_u128(7),
        total_cents: number as i64,
        currency: "EUR".into(),
        note:
            "leave it with the neighbours on the ground floor, and ring twice please; beware of dog"
                .into(),
    }
}

/// Inserts the row as a service without Tidings would.
const BARE: &str = "insert into tidings.outbox \
    (id, aggregatetype, aggregateid, type, version, payload, headers, occurred_at) \
                    values ($1, $2, $3, $4, $5, $6::text::json, $7::text::jsonb, $8)";

async fn bare_insert(conn: &mut PgConnection, event: &OrderPlaced) -> Result<(), Failure> {
    sqlx::query(BARE)
        .bind(Uuid::now_v7())
        .bind("order")
        .bind(event.order_id.to_string())
        .bind("OrderPlaced")
        .bind(1_i32)
        .bind(serde_json::to_string(event)?)
        .bind("{}")
        .bind(Utc::now())
        .execute(conn)
        .await?;
    Ok(())
}

async fn copy(conn: &mut PgConnection, events: &[OrderPlaced]) -> Result<(), Failure> {
    let mut text = String::with_capacity(events.len() * 400);
    for event in events {
        let json = serde_json::to_string(event)?.replace('\\', "\\\\");
        let (id, aggregate, time) = (Uuid::now_v7(), event.order_id, Utc::now().to_rfc3339());
        text.push_str(&format!(
            "{id}\torder\t{aggregate}\tOrderPlaced\t1\t{json}\t{{}}\t{time}\n"
        ));
    }
    let columns = "id, aggregatetype, aggregateid, type, version, payload, headers, occurred_at";
    let mut copy = conn
        .copy_in_raw(&format!("copy tidings.outbox ({columns}) from stdin"))
        .await?;
    for chunk in text.as_bytes().chunks(COPY_CHUNK) {
        copy.send(chunk).await?;
    }
    copy.finish().await?;
    Ok(())
}

/// Measures `count` transactions, each of which runs `write` once.
async fn time(
    conn: &mut PgConnection,
    count: usize,
    write: impl AsyncFn(&mut PgConnection, usize) -> Result<(), Failure>,
) -> Result<Duration, Failure> {
    let start = Instant::now();
    for number in 0..count {
        let mut tx = conn.begin().await?;
        write(&mut tx, number).await?;
        tx.commit().await?;
    }
    Ok(start.elapsed() / count as u32)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn report(name: &str, target: f64, ours: &mut [Duration], bare: &mut [Duration], bare_name: &str) {
    let (ours, bare) = (median(ours), median(bare));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!(
        "{name:<24} {ours:>10.1?}   {bare_name:<12} {bare:>10.1?}   \
         ratio {ratio:.2} (at most {target})"
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let url = std::env::var("DATABASE_URL")
        .map_err(|_| "set DATABASE_URL to a server on which a database can be created")?;
    let mut admin = PgConnection::connect(&url).await?;
    let name = format!("tidings_bench_{}", Uuid::now_v7().simple());
    sqlx::query(sqlx::AssertSqlSafe(format!("create database {name}")))
        .execute(&mut admin)
        .await?;
    let options = url
        .parse::<sqlx::postgres::PgConnectOptions>()?
        .database(&name);
    let result = measure(options).await;
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "drop database {name} with (force)"
    )))
    .execute(&mut admin)
    .await?;
    result
}

async fn measure(options: sqlx::postgres::PgConnectOptions) -> Result<(), Failure> {
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await?;
    tidings::migrate(&pool).await?;
    let mut conn = pool.acquire().await?;
    let outbox = Outbox::new();
    let events: Vec<_> = (0..BATCH).map(event).collect();
    let (mut publish, mut insert, mut publish_all, mut copied) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        sqlx::query("truncate tidings.outbox")
            .execute(&mut *conn)
            .await?;
        // The order of the sides alternates too.
        for side in [round % 2, (round + 1) % 2] {
            if side == 0 {
                publish.push(
                    time(&mut conn, SINGLES, async |tx, n| {
                        Ok(outbox.publish(tx, &events[n]).await.map(|_| ())?)
                    })
                    .await?,
                );
                publish_all.push(
                    time(&mut conn, BATCHES, async |tx, _| {
                        Ok(outbox.publish_all(tx, &events).await.map(|_| ())?)
                    })
                    .await?,
                );
            } else {
                insert.push(
                    time(&mut conn, SINGLES, async |tx, n| {
                        bare_insert(tx, &events[n]).await
                    })
                    .await?,
                );
                copied.push(time(&mut conn, BATCHES, async |tx, _| copy(tx, &events).await).await?);
            }
        }
    }
    println!(
        "{ROUNDS} rounds; {} bytes of JSON per event; median time of one transaction",
        serde_json::to_string(&events[0])?.len()
    );
    report("publish", 1.1, &mut publish, &mut insert, "INSERT");
    report(
        "publish_all, 1,000",
        1.5,
        &mut publish_all,
        &mut copied,
        "COPY",
    );
    Ok(())
}
