//! Notification: informs customers of the outcome of their orders. It only listens, and no other
//! service refers to it.

use axum::Router;
use tidings::subscriber::{Event, HandlerError, Tx};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Failure;
use super::events::{OrderCancelled, OrderCompleted};
use super::service::Service;

// No primary key, so that a letter that was written twice appears twice.
const TABLES: &str = "create table if not exists letter (
    order_id uuid not null, customer text not null, words text not null
);";

pub(crate) async fn main() -> Result<(), Failure> {
    let service = Service::start("notification", TABLES).await?;
    let handling = service
        .subscriber::<()>()
        .on(good_news)
        .on(bad_news)
        .run(CancellationToken::new());
    service.run(Router::new(), handling).await
}

async fn good_news(Event(order): Event<OrderCompleted>, tx: Tx) -> Result<(), HandlerError> {
    write(
        tx,
        order.order_id,
        order.customer,
        "It is on its way.".into(),
    )
    .await
}

async fn bad_news(Event(order): Event<OrderCancelled>, tx: Tx) -> Result<(), HandlerError> {
    write(
        tx,
        order.order_id,
        order.customer,
        format!("We are sorry: {}.", order.reason),
    )
    .await
}

async fn write(
    mut tx: Tx,
    order: Uuid,
    customer: String,
    words: String,
) -> Result<(), HandlerError> {
    let letter = "insert into letter (order_id, customer, words) values ($1, $2, $3)";
    sqlx::query(letter)
        .bind(order)
        .bind(customer)
        .bind(words)
        .execute(&mut *tx)
        .await?;
    Ok(())
}
