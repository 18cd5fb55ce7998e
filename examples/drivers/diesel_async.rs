//! A service on diesel-async.

mod shop;

use diesel::{sql_query, sql_types::BigInt};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use shop::{Database, Failure, OrderPlaced};
use tidings::Outbox;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let database = Database::open().await?;
    let mut connection = AsyncPgConnection::establish(&database.url).await?;
    let outbox = Outbox::new();

    connection
        .transaction::<_, Failure, _>(async |connection| {
            sql_query("insert into orders (id, total_cents) values ($1, $2)")
                .bind::<BigInt, _>(7)
                .bind::<BigInt, _>(1999)
                .execute(connection)
                .await?;
            let placed = OrderPlaced {
                order_id: 7,
                total_cents: 1999,
            };
            outbox.publish(connection, &placed).await?;
            Ok(())
        })
        .await?;

    database.show().await
}
