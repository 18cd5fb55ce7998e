//! A service on diesel, which blocks: `publish` returns the result itself.

mod shop;

use diesel::{Connection as _, RunQueryDsl as _, sql_query, sql_types::BigInt};
use shop::{Database, Failure, OrderPlaced};
use tidings::Outbox;

fn place(url: &str, outbox: &Outbox) -> Result<(), Failure> {
    let mut connection = diesel::PgConnection::establish(url)?;
    connection.transaction(|connection| {
        sql_query("insert into orders (id, total_cents) values ($1, $2)")
            .bind::<BigInt, _>(7)
            .bind::<BigInt, _>(1999)
            .execute(connection)?;
        let placed = OrderPlaced {
            order_id: 7,
            total_cents: 1999,
        };
        outbox.publish(connection, &placed)?;
        Ok(())
    })
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let database = Database::open().await?;
    let url = database.url.clone();
    tokio::task::spawn_blocking(move || place(&url, &Outbox::new())).await??;
    database.show().await
}
