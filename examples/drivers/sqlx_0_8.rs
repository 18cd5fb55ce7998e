//! A service on a driver that Tidings does not support, here the version of sqlx before: it
//! executes the statements itself.

mod shop;

use shop::{Database, Failure, OrderPlaced};
use sqlx_before::{PgPool, Postgres, postgres::PgArguments, query::Query};
use tidings::{
    Outbox,
    outbox::{Parameter, Statement},
};

/// Binds the parameters by their types. A service that publishes one event at a time needs these.
fn query<'q>(statement: &'q Statement<'_>) -> Query<'q, Postgres, PgArguments> {
    let query = sqlx_before::query(statement.sql());
    let parameters = statement.parameters().iter();
    parameters.fold(query, |query, parameter| match parameter {
        Parameter::Uuid(id) => query.bind(id),
        Parameter::Text(text) => query.bind(text.as_deref()),
        Parameter::Int(number) => query.bind(number),
        Parameter::Bytes(bytes) => query.bind(bytes.as_deref()),
        Parameter::Time(time) => query.bind(time),
        other => unreachable!("{other:?} is a parameter of other statements"),
    })
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let database = Database::open().await?;
    let pool = PgPool::connect(&database.url).await?;
    let outbox = Outbox::new();

    let mut tx = pool.begin().await?;
    sqlx_before::query("insert into orders (id, total_cents) values ($1, $2)")
        .bind(7_i64)
        .bind(1999_i64)
        .execute(&mut *tx)
        .await?;
    let placed = OrderPlaced {
        order_id: 7,
        total_cents: 1999,
    };
    let envelope = outbox.event(&placed).correlation_id("req-1").build()?;
    if let Some(statement) = outbox.statement(std::slice::from_ref(&envelope))? {
        query(&statement).execute(&mut *tx).await?;
    }
    tx.commit().await?;

    database.show().await
}
