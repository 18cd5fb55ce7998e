//! A service on sqlx.

mod shop;

use shop::{Database, Failure, OrderPlaced};
use tidings::Outbox;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let database = Database::open().await?;
    let pool = sqlx::PgPool::connect(&database.url).await?;
    let outbox = Outbox::new();

    let mut tx = pool.begin().await?;
    sqlx::query("insert into orders (id, total_cents) values ($1, $2)")
        .bind(7_i64)
        .bind(1999_i64)
        .execute(&mut *tx)
        .await?;
    let placed = OrderPlaced {
        order_id: 7,
        total_cents: 1999,
    };
    outbox.publish(&mut tx, &placed).await?;
    tx.commit().await?;

    database.show().await
}
