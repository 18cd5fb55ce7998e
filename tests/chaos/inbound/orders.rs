//! Saga that places orders, and the services that it commands. Each movement of stock or money is a
//! row, and the checker compares the sums.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::saga::Saga;
use tidings::subscriber::{
    Event, HandlerError, Meta, Retry, Tx,
    typestate::{HasInbox, NoState},
};
use tidings::{Bus, Subscriber};

use super::events::{
    InspectStock, NoteStock, OrderPlaced, ParcelRefused, ParcelSent, PaymentRefused, PaymentTaken,
    RefundPayment, ReleaseStock, ReserveStock, SHOP, SHOP_TOPICS, SendParcel, StockInspected,
    StockRefused, StockReserved, TakePayment,
};
use super::release;
use super::tables::{anomaly, effect, fail_as_ordered};

/// The name of the saga.
pub(crate) const SAGA: &str = "place-order";

/// The time limit for the reply to a command. A step has two attempts and is then compensated.
/// Faults delay some steps beyond the limit.
const STEP_TIMEOUT: Duration = Duration::from_secs(8);

/// The state of the saga.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct PlaceOrder {
    order: OrderPlaced,
}

/// Returns the subscriber of a release.
pub(crate) fn shop(
    bus: &Bus,
    pool: sqlx::PgPool,
    release: u32,
) -> Subscriber<(), NoState, HasInbox> {
    let [order, stock, payment, parcel] = SHOP_TOPICS;
    let shop = bus
        .subscriber::<()>(SHOP)
        .topic::<OrderPlaced>(order)
        .topic::<StockReserved>(stock);
    let shop = shop
        .topic::<PaymentTaken>(payment)
        .topic::<ParcelSent>(parcel)
        .code_version(format!("r{release}"));
    let shop = shop
        .retry(release::retry(release))
        .escalation(release::park(release))
        .inbox(pool)
        .concurrency(8);
    let shop = shop
        .saga(place_order(release))
        .on(reserve)
        .on(give_back)
        .on(pay)
        .on(refund)
        .on(send);
    let shop = if release >= 2 { shop.on(note) } else { shop };
    if release >= 3 { shop.on(inspect) } else { shop }
}

/// Returns the saga of a release. Each release up to the third adds a step of another kind.
fn place_order(release: u32) -> Saga<PlaceOrder> {
    let patient = || Retry::exponential(2, Duration::from_secs(1)..Duration::from_secs(2));
    let saga = Saga::new(SAGA)
        .version(release + 1)
        .starts_on::<OrderPlaced>(|order| PlaceOrder { order })
        .key(|s| s.order.order_id.to_string())
        .step("accept")
        .compensate_local(cancel)
        .step("reserve")
        .command(|s| ReserveStock {
            order_id: s.order.order_id,
            quantity: s.order.quantity,
            refuse: s.order.refused_by == "stock",
            fails: s.order.fails,
        })
        .on::<StockReserved>(|_, _| ())
        .fails_on::<StockRefused>(|_, _| "no stock".into())
        .compensate(|s| ReleaseStock {
            order_id: s.order.order_id,
        })
        .timeout(STEP_TIMEOUT)
        .retry(patient());
    let saga = if release >= 1 {
        saga.step("audit").local(audit)
    } else {
        saga
    };
    let saga = if release >= 2 {
        saga.step("note").command(|s| NoteStock {
            order_id: s.order.order_id,
        })
    } else {
        saga
    };
    let saga = match release >= 3 {
        true => saga
            .step("inspect")
            .command(|s| InspectStock {
                order_id: s.order.order_id,
            })
            .on::<StockInspected>(|_, _| ())
            .timeout(STEP_TIMEOUT)
            .retry(patient()),
        false => saga,
    };
    saga.step("pay")
        .command(|s| TakePayment {
            order_id: s.order.order_id,
            cents: s.order.cents,
            refuse: s.order.refused_by == "payment",
            silent: s.order.refused_by == "silence",
            fails: s.order.fails,
        })
        .on::<PaymentTaken>(|_, _| ())
        .fails_on::<PaymentRefused>(|_, _| "no money".into())
        .compensate(|s| RefundPayment {
            order_id: s.order.order_id,
        })
        .timeout(STEP_TIMEOUT)
        .retry(patient())
        .step("send")
        .command(|s| SendParcel {
            order_id: s.order.order_id,
            refuse: s.order.refused_by == "parcel",
            fails: s.order.fails,
        })
        .on::<ParcelSent>(|_, _| ())
        .fails_on::<ParcelRefused>(|_, _| "no parcel goes there".into())
        .pivot()
        .step("complete")
        .local(complete)
}

// === local steps ===

async fn audit(state: PlaceOrder, mut tx: Tx) -> Result<PlaceOrder, HandlerError> {
    sqlx::query("insert into audited values ($1)")
        .bind(state.order.order_id)
        .execute(&mut *tx)
        .await?;
    Ok(state)
}

async fn complete(state: PlaceOrder, mut tx: Tx) -> Result<PlaceOrder, HandlerError> {
    end(&mut tx, state.order.order_id, "completed").await?;
    Ok(state)
}

async fn cancel(state: PlaceOrder, mut tx: Tx) -> Result<PlaceOrder, HandlerError> {
    end(&mut tx, state.order.order_id, "cancelled").await?;
    Ok(state)
}

async fn end(tx: &mut Tx, order_id: i64, status: &str) -> Result<(), HandlerError> {
    let update = "update orders set status = $2 where id = $1 and status = 'placed'";
    if sqlx::query(update)
        .bind(order_id)
        .bind(status)
        .execute(&mut **tx)
        .await?
        .rows_affected()
        != 1
    {
        anomaly(
            tx,
            format!("order {order_id} is {status} although it has ended"),
        )
        .await?;
    }
    Ok(())
}

// === services: a command may be repeated as another event, and an undo may precede its command ===

type Answer<A, B> = Result<(Option<A>, Option<B>), HandlerError>;

async fn reserve(
    Event(command): Event<ReserveStock>,
    meta: Meta,
    mut tx: Tx,
) -> Answer<StockReserved, StockRefused> {
    let ReserveStock {
        order_id,
        quantity,
        refuse,
        fails,
    } = command;
    fail_as_ordered(&meta, fails)?;
    effect(&mut tx, SHOP, &meta).await?;
    if refuse {
        return Ok((None, Some(StockRefused { order_id })));
    }
    if !act(&mut tx, &RESERVATION, order_id, quantity).await? {
        return Ok((None, Some(StockRefused { order_id })));
    }
    Ok((Some(StockReserved { order_id }), None))
}

async fn give_back(
    Event(command): Event<ReleaseStock>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    effect(&mut tx, SHOP, &meta).await?;
    take_back(&mut tx, &RESERVATION, command.order_id).await
}

async fn note(_: Event<NoteStock>, meta: Meta, mut tx: Tx) -> Result<(), HandlerError> {
    effect(&mut tx, SHOP, &meta).await
}

async fn inspect(
    Event(command): Event<InspectStock>,
    meta: Meta,
    mut tx: Tx,
) -> Result<StockInspected, HandlerError> {
    effect(&mut tx, SHOP, &meta).await?;
    Ok(StockInspected {
        order_id: command.order_id,
    })
}

async fn pay(
    Event(command): Event<TakePayment>,
    meta: Meta,
    mut tx: Tx,
) -> Answer<PaymentTaken, PaymentRefused> {
    let TakePayment {
        order_id,
        cents,
        refuse,
        silent,
        fails,
    } = command;
    fail_as_ordered(&meta, fails)?;
    effect(&mut tx, SHOP, &meta).await?;
    if refuse {
        return Ok((None, Some(PaymentRefused { order_id })));
    }
    if !act(&mut tx, &PAYMENT, order_id, cents).await? {
        return Ok((None, Some(PaymentRefused { order_id })));
    }
    // Without a reply, the step is retried and then compensated.
    Ok(((!silent).then_some(PaymentTaken { order_id }), None))
}

async fn refund(
    Event(command): Event<RefundPayment>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    effect(&mut tx, SHOP, &meta).await?;
    take_back(&mut tx, &PAYMENT, command.order_id).await
}

async fn send(
    Event(command): Event<SendParcel>,
    meta: Meta,
    mut tx: Tx,
) -> Answer<ParcelSent, ParcelRefused> {
    let SendParcel {
        order_id,
        refuse,
        fails,
    } = command;
    fail_as_ordered(&meta, fails)?;
    effect(&mut tx, SHOP, &meta).await?;
    if refuse {
        return Ok((None, Some(ParcelRefused { order_id })));
    }
    sqlx::query("insert into parcel values ($1)")
        .bind(order_id)
        .execute(&mut *tx)
        .await?;
    Ok((Some(ParcelSent { order_id }), None))
}

/// An action on a balance that an undo takes back.
struct Moving {
    /// The table with the state of each order's action.
    table: &'static str,
    moves: &'static str,
    back: &'static str,
    /// The anomaly of an action after its undo.
    after_undo: &'static str,
}

const RESERVATION: Moving = Moving {
    table: "reservation",
    moves: "insert into stock_move values ($1, -$2)",
    back: "insert into stock_move select order_id, -quantity from stock_move \
           where order_id = $1 and quantity < 0",
    after_undo: "stock is reserved after its release",
};

const PAYMENT: Moving = Moving {
    table: "payment",
    moves: "insert into money_move values ($1, $2)",
    back: "insert into money_move select order_id, -cents from money_move \
           where order_id = $1 and cents > 0",
    after_undo: "the payment is taken after its refund",
};

/// Moves the amount unless an earlier record has. Returns `false` if the action is undone already.
async fn act(
    tx: &mut Tx,
    moving: &Moving,
    order_id: i64,
    amount: i64,
) -> Result<bool, HandlerError> {
    if begin(tx, moving.table, order_id).await? {
        sqlx::query(moving.moves)
            .bind(order_id)
            .bind(amount)
            .execute(&mut **tx)
            .await?;
    } else if state(tx, moving.table, order_id).await?.as_deref() == Some("undone") {
        anomaly(tx, format!("order {order_id}: {}", moving.after_undo)).await?;
        return Ok(false);
    }
    Ok(true)
}

/// Moves the amount back if it was moved.
async fn take_back(tx: &mut Tx, moving: &Moving, order_id: i64) -> Result<(), HandlerError> {
    if undo(tx, moving.table, order_id).await? {
        sqlx::query(moving.back)
            .bind(order_id)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

/// Marks the action of this order as done. Returns whether this is its first record.
async fn begin(tx: &mut Tx, table: &str, order_id: i64) -> Result<bool, HandlerError> {
    let insert = sqlx::AssertSqlSafe(format!(
        "insert into {table} values ($1, 'done') on conflict do nothing"
    ));
    Ok(sqlx::query(insert)
        .bind(order_id)
        .execute(&mut **tx)
        .await?
        .rows_affected()
        == 1)
}

async fn state(tx: &mut Tx, table: &str, order_id: i64) -> Result<Option<String>, HandlerError> {
    let select = sqlx::AssertSqlSafe(format!("select state from {table} where order_id = $1"));
    Ok(sqlx::query_scalar(select)
        .bind(order_id)
        .fetch_optional(&mut **tx)
        .await?)
}

/// Marks the action of this order as undone. Returns whether it was done before. A later action is
/// refused in both cases.
async fn undo(tx: &mut Tx, table: &str, order_id: i64) -> Result<bool, HandlerError> {
    let was = state(tx, table, order_id).await?;
    let upsert = sqlx::AssertSqlSafe(format!(
        "insert into {table} values ($1, 'undone') on conflict (order_id) do update \
         set state = 'undone'"
    ));
    sqlx::query(upsert)
        .bind(order_id)
        .execute(&mut **tx)
        .await?;
    Ok(was.as_deref() == Some("done"))
}
