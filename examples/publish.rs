//! A service that changes a row and publishes an event about the change in one transaction.
//!
//! ```sh
//! DATABASE_URL=postgres://localhost/shop cargo run --example publish
//! curl localhost:3000/orders -H 'content-type: application/json' \
//!   -d '{"customer": "ada", "total_cents": 1999}'
//! curl -X POST localhost:3000/orders/1/cancel
//! ```

// The server ends a transaction that a cancelled `begin` leaves open: see `main`.
#![allow(clippy::disallowed_methods)]

use std::str::FromStr as _;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::post};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tidings::{DomainEvent, Outbox};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
enum OrderEvent {
    #[event(type = "OrderPlaced")]
    Placed {
        order_id: i64,
        customer: String,
        total_cents: i64,
    },
    #[event(type = "OrderCancelled")]
    Cancelled { order_id: i64 },
}

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    outbox: Outbox,
}

#[derive(Deserialize)]
struct NewOrder {
    customer: String,
    total_cents: i64,
}

async fn place(
    State(shop): State<Shop>,
    Json(new): Json<NewOrder>,
) -> Result<(StatusCode, Json<i64>), Failure> {
    let mut tx = shop.pool.begin().await?;
    let order_id = sqlx::query_scalar(
        "insert into orders (customer, total_cents) values ($1, $2) returning id",
    )
    .bind(&new.customer)
    .bind(new.total_cents)
    .fetch_one(&mut *tx)
    .await?;
    let event = OrderEvent::Placed {
        order_id,
        customer: new.customer,
        total_cents: new.total_cents,
    };
    shop.outbox.publish(&mut tx, &event).await?;
    tx.commit().await?; // commits both the order and its event
    Ok((StatusCode::CREATED, Json(order_id)))
}

async fn cancel(
    State(shop): State<Shop>,
    Path(order_id): Path<i64>,
) -> Result<StatusCode, Failure> {
    let mut tx = shop.pool.begin().await?;
    // The update locks the row, so the events of an order have the order of its changes.
    let cancelled =
        sqlx::query("update orders set cancelled = true where id = $1 and not cancelled")
            .bind(order_id)
            .execute(&mut *tx)
            .await?;
    if cancelled.rows_affected() == 0 {
        return Ok(StatusCode::CONFLICT);
    }
    shop.outbox
        .publish(&mut tx, &OrderEvent::Cancelled { order_id })
        .await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Any error. Nothing was changed or published.
struct Failure(Box<dyn std::error::Error>);

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL")
        .map_err(|_| "set DATABASE_URL, e.g. postgres://localhost/shop")?;
    // A request whose client disconnects may leave its transaction open (docs/publishing.md).
    let options =
        PgConnectOptions::from_str(&url)?.options([("idle_in_transaction_session_timeout", "10s")]);
    let pool = PgPool::connect_with(options).await?;
    tidings::migrate(&pool).await?;
    let orders = "create table if not exists orders (
        id bigint generated always as identity primary key, customer text not null,
        total_cents bigint not null, cancelled boolean not null default false
    )";
    sqlx::query(orders).execute(&pool).await?;

    let shop = Shop {
        pool,
        outbox: Outbox::new(),
    };
    let app = Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}/cancel", post(cancel))
        .with_state(shop);
    let listener = tokio::net::TcpListener::bind((
        "127.0.0.1",
        std::env::var("PORT").map_or(Ok(3000), |port| port.parse())?,
    ))
    .await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
