//! A saga that places an order: it reserves stock, takes the payment, confirms the order and sends
//! a parcel, or compensates the completed steps.
//!
//! The services that it commands and a relay run in the same process, so that one command runs the
//! whole example. Start it twice with different `INSTANCE`s and kill one: no order is lost, and no
//! effect happens twice.
//!
//! ```sh
//! DATABASE_URL=postgres://localhost/shop KAFKA_BROKERS=localhost:9092 cargo run --example saga
//! psql "$DATABASE_URL" -c "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
//!   values ('order', '7', 'OrderPlaced', '{\"order_id\": 7, \"total_cents\": 1999}')"
//! tidings sagas list --all
//! ```

// The runtime of the example owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tidings::relay::{Relay, RelayOptions};
use tidings::saga::Saga;
use tidings::subscriber::{Event, HandlerError, Retry, Tx};
use tidings::{Bus, DomainEvent, kafka, postgres};
use tokio_util::sync::CancellationToken;

/// Events of an order, identified by its id.
macro_rules! events {
    ($($aggregate:literal $Event:ident { $($field:ident: $ty:ty),* })*) => {$(
        #[derive(Serialize, Deserialize, DomainEvent)]
        #[event(aggregate = $aggregate, id = "order_id")]
        struct $Event { order_id: i64, $($field: $ty),* }
    )*};
}

events! {
    "order" OrderPlaced { total_cents: i64 }
    "stock" ReserveStock {}
    "stock" StockReserved {}
    "stock" ReleaseStock {}
    "payment" TakePayment { total_cents: i64 }
    "payment" PaymentTaken {}
    "payment" PaymentRefused { reason: String }
    "parcel" SendParcel {}
    "parcel" ParcelSent { tracking: String }
}

// === the service that places orders ===

#[derive(Clone, Serialize, Deserialize)]
struct PlaceOrder {
    order_id: i64,
    total_cents: i64,
    tracking: Option<String>,
}

fn place_order() -> Saga<PlaceOrder> {
    let patient = Retry::exponential(5, Duration::from_secs(5)..Duration::from_secs(60));
    Saga::new("place-order")
        .starts_on::<OrderPlaced>(|order| PlaceOrder {
            order_id: order.order_id,
            total_cents: order.total_cents,
            tracking: None,
        })
        .key(|s| s.order_id.to_string())
        .locks("order", |s| s.order_id.to_string())
        .step("reserve-stock")
        .command(|s| ReserveStock {
            order_id: s.order_id,
        })
        .on::<StockReserved>(|_, _| ())
        .compensate(|s| ReleaseStock {
            order_id: s.order_id,
        })
        .timeout(Duration::from_secs(60))
        .retry(patient.clone())
        .step("take-payment")
        .command(|s| TakePayment {
            order_id: s.order_id,
            total_cents: s.total_cents,
        })
        .on::<PaymentTaken>(|_, _| ())
        .fails_on::<PaymentRefused>(|_, refused| refused.reason)
        .timeout(Duration::from_secs(60))
        .retry(patient)
        .step("confirm")
        .local(confirm)
        .pivot()
        .step("send-parcel")
        .command(|s| SendParcel {
            order_id: s.order_id,
        })
        .on::<ParcelSent>(|s, sent| s.tracking = Some(sent.tracking))
}

async fn confirm(state: PlaceOrder, mut tx: Tx) -> Result<PlaceOrder, HandlerError> {
    sqlx::query("insert into confirmed (order_id) values ($1)")
        .bind(state.order_id)
        .execute(&mut *tx)
        .await?;
    Ok(state)
}

// === the services that it commands: ordinary handlers ===

async fn reserve(
    Event(command): Event<ReserveStock>,
    mut tx: Tx,
) -> Result<StockReserved, HandlerError> {
    let insert = "insert into reservation (order_id) values ($1) on conflict do nothing";
    sqlx::query(insert)
        .bind(command.order_id)
        .execute(&mut *tx)
        .await?;
    Ok(StockReserved {
        order_id: command.order_id,
    }) // the correlation id is added automatically
}

async fn release(Event(command): Event<ReleaseStock>, mut tx: Tx) -> Result<(), HandlerError> {
    sqlx::query("delete from reservation where order_id = $1")
        .bind(command.order_id)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

async fn pay(
    Event(command): Event<TakePayment>,
    mut tx: Tx,
) -> Result<(Option<PaymentTaken>, Option<PaymentRefused>), HandlerError> {
    let order_id = command.order_id;
    if command.total_cents > 10_000 {
        return Ok((
            None,
            Some(PaymentRefused {
                order_id,
                reason: "more than the card allows".into(),
            }),
        ));
    }
    let insert = "insert into payment (order_id, cents) values ($1, $2) on conflict do nothing";
    sqlx::query(insert)
        .bind(order_id)
        .bind(command.total_cents)
        .execute(&mut *tx)
        .await?;
    Ok((Some(PaymentTaken { order_id }), None))
}

async fn send(Event(command): Event<SendParcel>) -> Result<ParcelSent, HandlerError> {
    Ok(ParcelSent {
        order_id: command.order_id,
        tracking: format!("T{}", command.order_id),
    })
}

const TABLES: &str = "create table if not exists reservation (order_id bigint primary key);
    create table if not exists payment (order_id bigint primary key, cents bigint not null);
    create table if not exists confirmed (order_id bigint primary key)";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (url, brokers) = (
        std::env::var("DATABASE_URL")?,
        std::env::var("KAFKA_BROKERS")?,
    );
    // Identifies this process among several. A restarted process gets its partitions back at once.
    let instance = std::env::var("INSTANCE").unwrap_or_else(|_| "one".into());
    let (pool, settings) = (
        PgPool::connect(&url).await?,
        kafka::Settings {
            brokers,
            ..Default::default()
        },
    );
    tidings::migrate(&pool).await?;
    if instance == "one" {
        sqlx::raw_sql(TABLES).execute(&pool).await?;
    }
    let shutdown = CancellationToken::new();
    let mut options = RelayOptions::new(postgres::DatabaseSettings::parse(&url)?, settings.clone());
    options.topics.create = true;
    let relay = Relay::new(options)?.run(shutdown.clone());

    let bus = Bus::new(settings);
    let orders = bus
        .subscriber("orders")
        .saga(place_order())
        .inbox(pool.clone())
        .instance_id(&instance);
    let inventory = bus
        .subscriber("inventory")
        .on(reserve)
        .on(release)
        .inbox(pool.clone())
        .instance_id(&instance);
    let payments = bus
        .subscriber("payments")
        .on(pay)
        .inbox(pool.clone())
        .instance_id(&instance);
    let parcels = bus
        .subscriber("parcels")
        .on(send)
        .inbox(pool)
        .instance_id(&instance);

    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            let _ = tokio::signal::ctrl_c().await;
            shutdown.cancel();
        }
    });
    let (relay, orders, inventory, payments, parcels) = tokio::join!(
        relay,
        orders.run(shutdown.clone()),
        inventory.run(shutdown.clone()),
        payments.run(shutdown.clone()),
        parcels.run(shutdown.clone()),
    );
    relay?;
    orders.and(inventory).and(payments).and(parcels)?;
    Ok(())
}
