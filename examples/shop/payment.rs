//! Payment: takes money from customers' accounts and refunds it.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Json, Router, routing::get};
use serde_json::Value;
use sqlx::PgPool;
use tidings::subscriber::{self, Event, HandlerError, Tx};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::events::{PaymentRefused, PaymentTaken, RefundPayment, TakePayment};
use super::service::{Broken, Service};
use super::{Failure, gateway::internal};

const TABLES: &str = "
create table if not exists account (
    customer text primary key, opened_with bigint not null, cents bigint not null check (cents >= 0)
);
create table if not exists payment (
    order_id uuid primary key, customer text not null, cents bigint not null,
    refunded boolean not null default false
);
insert into account select customer, cents, cents from (
    values ('ada', 1000000000), ('grace', 1000000000), ('alan', 1000000000), ('pauper', 30000)
) c (customer, cents)
on conflict do nothing;";

pub(crate) async fn main() -> Result<(), Failure> {
    let service = Service::start("payment", TABLES).await?;
    let routes = Router::new()
        .route("/payments/{order}", get(show))
        .with_state(service.pool.clone());
    let handling = service
        .subscriber()
        .on(take)
        .on(refund)
        .state(service.broken.clone())
        .run(CancellationToken::new());
    service.run(routes, handling).await
}

async fn take(
    Event(command): Event<TakePayment>,
    subscriber::State(broken): subscriber::State<Broken>,
    mut tx: Tx,
) -> Result<(Option<PaymentTaken>, Option<PaymentRefused>), HandlerError> {
    let TakePayment {
        order_id,
        customer,
        cents,
    } = command;
    if broken.is_set() {
        return Ok((
            None,
            Some(PaymentRefused {
                order_id,
                reason: "the card terminal is out of order".into(),
            }),
        ));
    }
    let take = "update account set cents = cents - $2 where customer = $1 and cents >= $2";
    if sqlx::query(take)
        .bind(&customer)
        .bind(cents)
        .execute(&mut *tx)
        .await?
        .rows_affected()
        == 0
    {
        return Ok((
            None,
            Some(PaymentRefused {
                order_id,
                reason: format!("{customer} cannot pay {cents} cents"),
            }),
        ));
    }
    let pay = "insert into payment (order_id, customer, cents) values ($1, $2, $3)";
    sqlx::query(pay)
        .bind(order_id)
        .bind(customer)
        .bind(cents)
        .execute(&mut *tx)
        .await?;
    Ok((Some(PaymentTaken { order_id }), None))
}

async fn refund(
    Event(RefundPayment { order_id }): Event<RefundPayment>,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    let refund = "with refunded as (
            update payment set refunded = true where order_id = $1 and not refunded
            returning customer, cents
        )
        update account a set cents = a.cents + r.cents
        from refunded r where a.customer = r.customer";
    sqlx::query(refund).bind(order_id).execute(&mut *tx).await?;
    Ok(())
}

async fn show(
    State(pool): State<PgPool>,
    Path(order): Path<Uuid>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let payment = sqlx::query_scalar("select to_jsonb(p) from payment p where order_id = $1")
        .bind(order)
        .fetch_optional(&pool)
        .await;
    payment
        .map_err(internal)?
        .map(Json)
        .ok_or((StatusCode::NOT_FOUND, "not paid".into()))
}
