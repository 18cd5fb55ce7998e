//! The outbox without a driver: a service on another version of sqlx executes the statements
//! itself, and both versions are in one program.

use sqlx_before::{Postgres, postgres::PgArguments, query::Query};
use tidings::{
    Outbox,
    event::EventId,
    outbox::{Parameter, Statement},
};

use crate::{
    database::Database,
    suite::{OrderPlaced, each_kind, expected},
};

/// Binds the parameters of a statement with sqlx 0.8.
fn query<'q>(statement: &'q Statement<'_>) -> Query<'q, Postgres, PgArguments> {
    let query = sqlx_before::query(statement.sql()).persistent(statement.is_prepared());
    let texts = |all: &'q [std::borrow::Cow<'_, str>]| -> Vec<&'q str> {
        all.iter().map(AsRef::as_ref).collect()
    };
    statement
        .parameters()
        .iter()
        .fold(query, |query, parameter| match parameter {
            Parameter::Uuid(id) => query.bind(id),
            Parameter::Text(text) => query.bind(text.as_deref()),
            Parameter::Int(number) => query.bind(number),
            Parameter::BigInt(number) => query.bind(number),
            Parameter::Bytes(bytes) => query.bind(bytes.as_deref()),
            Parameter::Time(time) => query.bind(time),
            Parameter::Float(number) => query.bind(number),
            Parameter::Uuids(ids) => query.bind(ids),
            Parameter::Texts(all) => query.bind(texts(all)),
            Parameter::Ints(numbers) => query.bind(numbers),
            Parameter::Bools(flags) => query.bind(flags),
            Parameter::ByteStrings(all) => {
                query.bind(all.iter().map(|bytes| bytes.to_vec()).collect::<Vec<_>>())
            }
            Parameter::Times(times) => query.bind(times),
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_on_sqlx_0_8_publishes_schedules_and_cancels() {
    let (database, outbox) = (Database::new().await, Outbox::new().serialize_aggregates());
    let pool = sqlx_before::PgPool::connect(&database.url)
        .await
        .expect("connected");
    let mut tx = pool.begin().await.expect("begun");
    let envelopes = each_kind();
    let (one, many) = envelopes.split_at(1);
    for some in [one, many] {
        let statement = outbox.statement(some).expect("valid").expect("not empty");
        let done = query(&statement).execute(&mut *tx).await.expect("inserted");
        assert_eq!(done.rows_affected(), some.len() as u64);
    }
    let event = OrderPlaced {
        order_id: 1,
        customer: "c".into(),
    };
    let later = outbox.event(&event).build().expect("valid");
    let when = chrono::Utc::now() + std::time::Duration::from_secs(3_600);
    let statement = outbox.statement_at(&later, when).expect("valid");
    query(&statement)
        .execute(&mut *tx)
        .await
        .expect("scheduled");
    tx.commit().await.expect("committed");
    let rows: Vec<_> = envelopes.iter().map(expected).collect();
    assert_eq!(database.rows("outbox").await, rows);
    assert_eq!(database.rows("scheduled").await[0].id, later.id.as_uuid());
    let statement = outbox.cancel_statement(later.id).expect("valid");
    let done = query(&statement).execute(&pool).await.expect("cancelled");
    assert_eq!(done.rows_affected(), 1);
    assert!(outbox.statement(&[]).expect("valid").is_none());
    let _: EventId = later.id;
}
