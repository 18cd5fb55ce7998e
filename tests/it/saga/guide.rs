//! The code of docs/sagas.md, word for word: it compiles, and its test passes.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::saga::{Saga, SagaMetrics, SagaStatus, Sagas};
use tidings::subscriber::{Event, HandlerError, RunError, Tx};
use tidings::{Bus, DomainEvent};
use tokio_util::sync::CancellationToken;

macro_rules! events {
    ($($aggregate:literal $Event:ident { $($field:ident: $ty:ty),* })*) => {$(
        #[derive(Debug, Serialize, Deserialize, DomainEvent)]
        #[event(aggregate = $aggregate, id = "order_id")]
        struct $Event { order_id: i64, $($field: $ty),* }
    )*};
}

events! {
    "order" OrderPlaced { total_cents: i64 }
    "stock" ReserveStock {}
    "stock" StockReserved { shelf: String }
    "stock" StockRefused { reason: String }
    "stock" ReleaseStock {}
    "payment" TakePayment { total_cents: i64 }
    "payment" PaymentTaken {}
    "payment" PaymentRefused { reason: String }
    "payment" ReturnPayment {}
    "parcel" SendParcel {}
    "parcel" ParcelSent {}
}

#[derive(Clone, Serialize, Deserialize)]
struct PlaceOrder {
    order_id: i64,
    total_cents: i64,
    shelf: Option<String>,
}

fn place_order() -> Saga<PlaceOrder> {
    Saga::new("place-order")
        .starts_on::<OrderPlaced>(|order| PlaceOrder {
            order_id: order.order_id,
            total_cents: order.total_cents,
            shelf: None,
        })
        .key(|s| s.order_id.to_string())
        .step("reserve-stock")
        .command(|s| ReserveStock {
            order_id: s.order_id,
        })
        .on::<StockReserved>(|s, reserved| s.shelf = Some(reserved.shelf))
        .fails_on::<StockRefused>(|_, refused| refused.reason)
        .compensate(|s| ReleaseStock {
            order_id: s.order_id,
        })
        .timeout(Duration::from_secs(30))
        .step("take-payment")
        .command(|s| TakePayment {
            order_id: s.order_id,
            total_cents: s.total_cents,
        })
        .on::<PaymentTaken>(|_, _| ())
        .fails_on::<PaymentRefused>(|_, refused| refused.reason)
        .compensate(|s| ReturnPayment {
            order_id: s.order_id,
        })
        .step("confirm")
        .local(confirm)
        .pivot()
        .step("send-parcel")
        .command(|s| SendParcel {
            order_id: s.order_id,
        })
        .on::<ParcelSent>(|_, _| ())
}

async fn confirm(state: PlaceOrder, mut tx: Tx) -> Result<PlaceOrder, HandlerError> {
    sqlx::query("update orders set confirmed = true where id = $1")
        .bind(state.order_id)
        .execute(&mut *tx)
        .await?;
    Ok(state)
}

async fn reserve(
    Event(command): Event<ReserveStock>,
    mut tx: Tx,
) -> Result<StockReserved, HandlerError> {
    let reserve = "insert into reservation (order_id, shelf) values ($1, 'A1') on conflict (order_id) do update set shelf = reservation.shelf returning shelf";
    let shelf = sqlx::query_scalar(reserve)
        .bind(command.order_id)
        .fetch_one(&mut *tx)
        .await?;
    Ok(StockReserved {
        order_id: command.order_id,
        shelf,
    })
}

/// The code around the excerpts of the page. It is compiled and never called.
#[allow(dead_code)]
async fn run(bus: Bus, pool: sqlx::PgPool, shutdown: CancellationToken) -> Result<(), RunError> {
    bus.subscriber("inventory")
        .on(reserve)
        .inbox(pool.clone())
        .run(shutdown.clone())
        .await?;
    bus.subscriber("orders")
        .saga(place_order())
        .inbox(pool)
        .run(shutdown)
        .await?;
    Ok(())
}

#[allow(dead_code)]
async fn start(pool: sqlx::PgPool) -> Result<bool, Box<dyn std::error::Error>> {
    let state = PlaceOrder {
        order_id: 7,
        total_cents: 1999,
        shelf: None,
    };
    let mut tx = pool.begin().await?;
    let id = place_order().start(&mut tx, state).await?;
    tx.commit().await?;
    let run = Sagas::new(pool).get(id).await?;
    Ok(run.is_some_and(|run| run.status == SagaStatus::Completed))
}

#[allow(dead_code)]
fn measure(registry: &mut prometheus_client::registry::Registry) -> Saga<PlaceOrder> {
    let saga = place_order();
    SagaMetrics::default()
        .saga(&saga.statistics())
        .register(registry);
    saga
}

#[test]
fn the_pages_test_passes() {
    place_order()
        .given(PlaceOrder {
            order_id: 7,
            total_cents: 1999,
            shelf: None,
        })
        .expect::<ReserveStock>()
        .reply(StockReserved {
            order_id: 7,
            shelf: "A1".into(),
        })
        .expect::<TakePayment>()
        .advance(Duration::from_secs(31))
        .expect_nothing()
        .reply(PaymentRefused {
            order_id: 7,
            reason: "no money".into(),
        })
        .expect::<ReleaseStock>()
        .expect_compensated(["reserve-stock"]);
}

/// Removes comments, white space, and commas before a closing bracket.
fn bare(code: &str) -> String {
    let code: String = code
        .lines()
        .map(|line| line.split(" // ").next().unwrap_or_default())
        .flat_map(str::split_whitespace)
        .collect();
    code.replace(",}", "}").replace(",)", ")")
}

#[test]
fn every_line_of_rust_on_the_page_is_compiled_here() {
    let here = bare(include_str!("guide.rs"));
    let page = include_str!("../../../docs/sagas.md");
    let blocks: Vec<&str> = page
        .split("```rust\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect();
    assert!(blocks.len() >= 5, "{}", blocks.len());
    for block in blocks {
        // Paragraphs that are separate on the page may be separate here.
        for paragraph in block.split("\n\n") {
            assert!(
                here.contains(&bare(paragraph)),
                "guide.rs does not contain:\n{paragraph}"
            );
        }
    }
}
