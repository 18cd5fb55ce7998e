//! Shipping: sends parcels to most countries.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Json, Router, routing::get};
use serde_json::Value;
use sqlx::PgPool;
use tidings::subscriber::{self, Event, HandlerError, Tx};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::events::{OrderShipped, ShipOrder, ShippingRefused};
use super::service::{Broken, Service};
use super::{Failure, gateway::internal};

const TABLES: &str =
    "create table if not exists parcel (order_id uuid primary key, country text not null);";

pub(crate) async fn main() -> Result<(), Failure> {
    let service = Service::start("shipping", TABLES).await?;
    let routes = Router::new()
        .route("/parcels/{order}", get(show))
        .with_state(service.pool.clone());
    let handling = service
        .subscriber()
        .on(ship)
        .state(service.broken.clone())
        .run(CancellationToken::new());
    service.run(routes, handling).await
}

async fn ship(
    Event(command): Event<ShipOrder>,
    subscriber::State(broken): subscriber::State<Broken>,
    mut tx: Tx,
) -> Result<(Option<OrderShipped>, Option<ShippingRefused>), HandlerError> {
    let ShipOrder { order_id, country } = command;
    if broken.is_set() {
        return Ok((
            None,
            Some(ShippingRefused {
                order_id,
                reason: "the van is out of order".into(),
            }),
        ));
    }
    if country == "Atlantis" {
        return Ok((
            None,
            Some(ShippingRefused {
                order_id,
                reason: "no ship goes to Atlantis".into(),
            }),
        ));
    }
    sqlx::query("insert into parcel (order_id, country) values ($1, $2)")
        .bind(order_id)
        .bind(country)
        .execute(&mut *tx)
        .await?;
    Ok((Some(OrderShipped { order_id }), None))
}

async fn show(
    State(pool): State<PgPool>,
    Path(order): Path<Uuid>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let parcel = sqlx::query_scalar("select to_jsonb(p) from parcel p where order_id = $1")
        .bind(order)
        .fetch_optional(&pool)
        .await;
    parcel
        .map_err(internal)?
        .map(Json)
        .ok_or((StatusCode::NOT_FOUND, "not sent".into()))
}
