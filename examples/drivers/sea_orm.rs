//! A service on SeaORM.

mod shop;

use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
use shop::{Database, Failure, OrderPlaced};
use tidings::Outbox;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let database = Database::open().await?;
    let connection = sea_orm::Database::connect(&database.url).await?;
    let outbox = Outbox::new();

    let tx = connection.begin().await?;
    tx.execute_unprepared("insert into orders (id, total_cents) values (7, 1999)")
        .await?;
    let placed = OrderPlaced {
        order_id: 7,
        total_cents: 1999,
    };
    outbox.publish(&tx, &placed).await?;
    tx.commit().await?;

    database.show().await
}
