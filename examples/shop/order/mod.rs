//! Order: accepts orders and runs their checkout saga.

mod checkout;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Json, Router, routing::get};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tidings::Outbox;
use tidings::saga::{SagaRun, Sagas};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::events::OrderPlaced;
use super::service::Service;
use super::{Failure, gateway::internal};

const TABLES: &str = "
create table if not exists orders (
    id uuid primary key, customer text not null, country text not null, article text not null,
    quantity int not null, cents bigint not null,
    status text not null default 'placed', reason text,
    placed_at timestamptz not null default clock_timestamp()
);
create index if not exists orders_placed_at on orders (placed_at);";

pub(crate) async fn main() -> Result<(), Failure> {
    let service = Service::start("order", TABLES).await?;
    let routes = Router::new()
        .route("/orders", get(newest).post(place))
        .route("/orders/{id}", get(show))
        .with_state(service.pool.clone());
    let handling = service
        .subscriber::<()>()
        .saga(checkout::checkout())
        .run(CancellationToken::new());
    service.run(routes, handling).await
}

#[derive(Deserialize)]
struct NewOrder {
    /// Chosen by the customer, so that an order that is sent twice is placed once.
    order_id: Uuid,
    customer: String,
    country: String,
    article: String,
    quantity: i32,
}

async fn place(
    State(pool): State<PgPool>,
    Json(new): Json<NewOrder>,
) -> Result<(StatusCode, Json<Uuid>), (StatusCode, String)> {
    let NewOrder {
        order_id,
        customer,
        country,
        article,
        quantity,
    } = new;
    let cents = 1_000 * i64::from(quantity);
    let mut tx = pool.begin().await.map_err(internal)?;
    let insert = "insert into orders (id, customer, country, article, quantity, cents)
        values ($1, $2, $3, $4, $5, $6) on conflict do nothing";
    let insert = sqlx::query(insert)
        .bind(order_id)
        .bind(&customer)
        .bind(&country)
        .bind(&article)
        .bind(quantity)
        .bind(cents);
    if insert
        .execute(&mut *tx)
        .await
        .map_err(internal)?
        .rows_affected()
        == 1
    {
        let event = OrderPlaced {
            order_id,
            customer,
            country,
            article,
            quantity,
            cents,
        };
        Outbox::new()
            .publish(&mut tx, &event)
            .await
            .map_err(internal)?;
    }
    // Commits both the order and its event.
    tx.commit().await.map_err(internal)?;
    Ok((StatusCode::CREATED, Json(order_id)))
}

const AS_JSON: &str = "select to_jsonb(o) from orders o";

async fn show(
    State(pool): State<PgPool>,
    Path(id): Path<Uuid>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let sql = format!("{AS_JSON} where id = $1");
    let order: Option<Value> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(&pool)
        .await
        .map_err(internal)?;
    let mut order = order.ok_or((StatusCode::NOT_FOUND, "no such order".into()))?;
    let saga = Sagas::new(pool)
        .find(checkout::NAME, &id.to_string())
        .await
        .map_err(internal)?;
    order["checkout"] = json!(saga.as_ref().map(progress));
    Ok(Json(order))
}

/// Returns the latest orders and their progress.
async fn newest(State(pool): State<PgPool>) -> Result<Json<Value>, (StatusCode, String)> {
    let sql = format!("{AS_JSON} order by placed_at desc limit 15");
    let mut orders: Vec<Value> = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&pool)
        .await
        .map_err(internal)?;
    let sagas = Sagas::new(pool)
        .list(Some(checkout::NAME), &[], 30)
        .await
        .map_err(internal)?;
    for order in &mut orders {
        order["checkout"] = json!(
            sagas
                .iter()
                .find(|saga| order["id"] == saga.key.as_str())
                .map(progress)
        );
    }
    Ok(Json(json!(orders)))
}

fn progress(saga: &SagaRun) -> Value {
    json!({
        "status": saga.status,
        "step": saga.step,
        "done": saga.done,
        "undone": saga.undone,
        "ahead": saga.ahead,
    })
}
