//! A service on tokio-postgres.

mod shop;

use shop::{Database, Failure, OrderPlaced};
use tidings::Outbox;
use tokio_postgres::NoTls;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let database = Database::open().await?;
    let (mut client, connection) = tokio_postgres::connect(&database.url, NoTls).await?;
    tokio::spawn(connection);
    let outbox = Outbox::new();

    let tx = client.transaction().await?;
    let insert = "insert into orders (id, total_cents) values ($1, $2)";
    tx.execute(insert, &[&7_i64, &1999_i64]).await?;
    let placed = OrderPlaced {
        order_id: 7,
        total_cents: 1999,
    };
    outbox.publish(&tx, &placed).await?;
    tx.commit().await?;

    database.show().await
}
