//! A service that reserves stock for each placed order: once, in order, and with an event about the
//! reservation.
//!
//! ```sh
//! DATABASE_URL=postgres://localhost/shop KAFKA_BROKERS=localhost:9092 \
//!   cargo run --example subscribe
//! ```

// The runtime of the example owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tidings::subscriber::{Event, HandlerError, Retry, Tx};
use tidings::{Bus, DomainEvent, kafka};
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: i64,
    total_cents: i64,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "stock", id = "order_id")]
struct StockReserved {
    order_id: i64,
}

async fn reserve(
    Event(order): Event<OrderPlaced>,
    mut tx: Tx,
) -> Result<StockReserved, HandlerError> {
    sqlx::query("insert into reservation (order_id) values ($1)")
        .bind(order.order_id)
        .execute(&mut *tx)
        .await?;
    // The returned event goes to the outbox in the same transaction, with the handled event as its
    // cause.
    Ok(StockReserved {
        order_id: order.order_id,
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    tidings::migrate(&pool).await?;
    sqlx::query("create table if not exists reservation (order_id bigint primary key)")
        .execute(&pool)
        .await?;

    let shutdown = CancellationToken::new();
    tokio::spawn({
        let shutdown = shutdown.clone();
        let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
        async move {
            tokio::select! { _ = tokio::signal::ctrl_c() => {} _ = terminate.recv() => {} }
            shutdown.cancel();
        }
    });

    let bus = Bus::new(kafka::Settings {
        brokers: std::env::var("KAFKA_BROKERS")?,
        ..Default::default()
    });
    let retry = Retry::exponential(5, Duration::from_millis(50)..Duration::from_secs(5));
    bus.subscriber("inventory")
        .on(reserve)
        .inbox(pool)
        .retry(retry)
        .run(shutdown)
        .await?;
    Ok(())
}
