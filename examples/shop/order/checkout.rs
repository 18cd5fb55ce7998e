//! The checkout, step by step, and back where a step is refused. It sends commands and waits for replies; where each order stands is in its row.
//!
//! ```text
//! reserve stock ─▶ take payment ─▶ ship ─▶ completed
//!      │ refused        │ refused      │ refused
//!      ▼                ▼              ▼
//!  cancelled ◀── release stock ◀── refund payment
//! ```

use sqlx::Row as _;
use tidings::subscriber::{Event, HandlerError, HasInbox, NoState, Subscriber, Tx};
use uuid::Uuid;

use crate::events::{
    OrderCancelled, OrderCompleted, OrderPlaced, OrderShipped, PaymentRefused, PaymentTaken, RefundPayment, ReleaseStock, ReserveStock,
    ShipOrder, ShippingRefused, StockRefused, StockReserved, TakePayment,
};

/// The handlers of one step each. What a handler returns is published by its transaction.
pub(super) fn steer(subscriber: Subscriber<(), NoState, HasInbox>) -> Subscriber<(), NoState, HasInbox> {
    subscriber.on(reserve_stock).on(take_payment).on(ship).on(complete).on(no_stock).on(no_payment).on(no_shipping)
}

async fn reserve_stock(Event(order): Event<OrderPlaced>) -> Result<ReserveStock, HandlerError> {
    Ok(ReserveStock { order_id: order.order_id, article: order.article, quantity: order.quantity })
}

async fn take_payment(Event(StockReserved { order_id }): Event<StockReserved>, mut tx: Tx) -> Result<TakePayment, HandlerError> {
    let order = sqlx::query("select customer, cents from orders where id = $1").bind(order_id).fetch_one(&mut *tx).await?;
    Ok(TakePayment { order_id, customer: order.try_get("customer")?, cents: order.try_get("cents")? })
}

async fn ship(Event(PaymentTaken { order_id }): Event<PaymentTaken>, mut tx: Tx) -> Result<ShipOrder, HandlerError> {
    let country = sqlx::query_scalar("select country from orders where id = $1").bind(order_id).fetch_one(&mut *tx).await?;
    Ok(ShipOrder { order_id, country })
}

async fn complete(Event(OrderShipped { order_id }): Event<OrderShipped>, mut tx: Tx) -> Result<OrderCompleted, HandlerError> {
    let customer = end(&mut tx, order_id, "completed", None).await?;
    Ok(OrderCompleted { order_id, customer })
}

async fn no_stock(Event(refused): Event<StockRefused>, mut tx: Tx) -> Result<OrderCancelled, HandlerError> {
    cancel(&mut tx, refused.order_id, refused.reason).await
}

async fn no_payment(Event(refused): Event<PaymentRefused>, mut tx: Tx) -> Result<(ReleaseStock, OrderCancelled), HandlerError> {
    let order_id = refused.order_id;
    Ok((ReleaseStock { order_id }, cancel(&mut tx, order_id, refused.reason).await?))
}

async fn no_shipping(
    Event(refused): Event<ShippingRefused>,
    mut tx: Tx,
) -> Result<(RefundPayment, ReleaseStock, OrderCancelled), HandlerError> {
    let order_id = refused.order_id;
    Ok((RefundPayment { order_id }, ReleaseStock { order_id }, cancel(&mut tx, order_id, refused.reason).await?))
}

async fn cancel(tx: &mut Tx, order_id: Uuid, reason: String) -> Result<OrderCancelled, HandlerError> {
    let customer = end(tx, order_id, "cancelled", Some(&reason)).await?;
    Ok(OrderCancelled { order_id, customer, reason })
}

/// Writes down how the order ended; its customer.
async fn end(tx: &mut Tx, order_id: Uuid, status: &str, reason: Option<&str>) -> Result<String, HandlerError> {
    let sql = "update orders set status = $2, reason = $3 where id = $1 and status = 'placed' returning customer";
    Ok(sqlx::query_scalar(sql).bind(order_id).bind(status).bind(reason).fetch_one(&mut **tx).await?)
}
