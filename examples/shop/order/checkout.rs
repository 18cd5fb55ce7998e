//! The checkout: a saga over three other services. If a service refuses its step, the saga
//! compensates the completed steps in reverse order.
//!
//! ```text
//! reserve stock ─▶ take payment ─▶ ship ─▶ completed
//!      │ refused        │ refused      │ refused
//!      ▼                ▼              ▼
//!  cancelled ◀── release stock ◀── refund payment
//! ```
//!
//! The state of each order is in the order service's own database, so the saga continues after any
//! process is killed. The steps have no timeout: the saga waits for a service that is down, and the
//! customer's order remains placed.

use serde::{Deserialize, Serialize};
use tidings::saga::Saga;
use tidings::subscriber::{HandlerError, Tx};
use uuid::Uuid;

use crate::events::{
    OrderCancelled, OrderCompleted, OrderPlaced, OrderShipped, PaymentRefused, PaymentTaken,
    RefundPayment, ReleaseStock, ReserveStock, ShipOrder, ShippingRefused, StockRefused,
    StockReserved, TakePayment,
};

/// State that the saga passes from step to step.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Checkout {
    order: OrderPlaced,
    /// Reason of a compensation.
    refused: Option<String>,
}

/// Name of the saga, which is stored with each run.
pub(super) const NAME: &str = "checkout";

pub(super) fn checkout() -> Saga<Checkout> {
    Saga::new(NAME)
        .starts_on::<OrderPlaced>(|order| Checkout {
            order,
            refused: None,
        })
        .key(|s| s.order.order_id.to_string())
        // This step does nothing itself. Its compensation runs last.
        .step("accept")
        .compensate_local(cancel)
        .step("reserve-stock")
        .command(|s| ReserveStock {
            order_id: s.id(),
            article: s.order.article.clone(),
            quantity: s.order.quantity,
        })
        .on::<StockReserved>(|_, _| ())
        .fails_on::<StockRefused>(|s, refusal| s.refuse(refusal.reason))
        .compensate(|s| ReleaseStock { order_id: s.id() })
        .step("take-payment")
        .command(|s| TakePayment {
            order_id: s.id(),
            customer: s.order.customer.clone(),
            cents: s.order.cents,
        })
        .on::<PaymentTaken>(|_, _| ())
        .fails_on::<PaymentRefused>(|s, refusal| s.refuse(refusal.reason))
        .compensate(|s| RefundPayment { order_id: s.id() })
        .step("ship")
        .command(|s| ShipOrder {
            order_id: s.id(),
            country: s.order.country.clone(),
        })
        .on::<OrderShipped>(|_, _| ())
        .fails_on::<ShippingRefused>(|s, refusal| s.refuse(refusal.reason))
        .pivot() // a parcel cannot be called back, so the saga can only continue
        .step("complete")
        .local(complete)
}

impl Checkout {
    fn id(&self) -> Uuid {
        self.order.order_id
    }

    fn refuse(&mut self, reason: String) -> String {
        self.refused = Some(reason.clone());
        reason
    }
}

async fn complete(state: Checkout, mut tx: Tx) -> Result<Checkout, HandlerError> {
    sqlx::query("update orders set status = 'completed' where id = $1")
        .bind(state.id())
        .execute(&mut *tx)
        .await?;
    tx.publish(&OrderCompleted {
        order_id: state.id(),
        customer: state.order.customer.clone(),
    })
    .await?;
    Ok(state)
}

async fn cancel(state: Checkout, mut tx: Tx) -> Result<Checkout, HandlerError> {
    let reason = state
        .refused
        .clone()
        .unwrap_or_else(|| "it was aborted".into());
    let cancel = "update orders set status = 'cancelled', reason = $2 where id = $1";
    sqlx::query(cancel)
        .bind(state.id())
        .bind(&reason)
        .execute(&mut *tx)
        .await?;
    tx.publish(&OrderCancelled {
        order_id: state.id(),
        customer: state.order.customer.clone(),
        reason,
    })
    .await?;
    Ok(state)
}
