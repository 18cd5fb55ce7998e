//! The inbox as statements, for handlers with a driver of their own. sqlx stands for that driver.

use sqlx::{PgConnection, PgPool};
use tidings::{
    outbox::{Parameter, Statement},
    subscriber::{Event, HandlerError, InboxStatements, Meta, Retry, State},
};

use super::identity::{beside, event};
use crate::support::place::{Changed, Place, create_effects, effects, start, until_effects};
use crate::support::records::Reader;
use crate::support::services::migrated_database;

#[derive(Clone)]
struct Database {
    pool: PgPool,
    inbox: InboxStatements,
}

/// Executes a statement without knowledge of its purpose. Returns the number of its rows.
async fn execute(
    connection: &mut PgConnection,
    statement: &Statement<'_>,
) -> Result<u64, sqlx::Error> {
    let query = sqlx::query(sqlx::AssertSqlSafe(statement.sql()));
    let query = statement
        .parameters()
        .iter()
        .fold(query, |query, parameter| match parameter {
            Parameter::Text(text) => query.bind(text.as_deref()),
            Parameter::BigInt(number) => query.bind(number),
            Parameter::Float(number) => query.bind(number),
            other => panic!("{other:?}"),
        });
    Ok(query.execute(connection).await?.rows_affected())
}

async fn once(
    Event(changed): Event<Changed>,
    meta: Meta,
    State(database): State<Database>,
) -> Result<(), HandlerError> {
    let mut tx = database.pool.begin().await?;
    let record = database.inbox.record(&meta)?;
    let rows = execute(&mut tx, &record.statement()).await?;
    if record.is_new(rows)? {
        sqlx::query("insert into effect (account, version, attempt) values ($1, $2, 1)")
            .bind(&changed.account)
            .bind(changed.version)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_with_its_own_driver_records_events_and_takes_effect_once() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let other = beside(&place).await;
    let own = Database {
        pool: database.pool.clone(),
        inbox: InboxStatements::new(place.group.as_str()),
    };
    let running = start!(
        place
            .subscriber()
            .topic::<Changed>(&other.topic)
            .on(once)
            .state(own.clone())
            .retry(Retry::never())
    );
    let (v1, v2) = (
        r#"{"account":"a","version":1}"#,
        r#"{"account":"a","version":2}"#,
    );
    place.send_raw("a", Some(v1), &event("1", "/shop")).await;
    until_effects(&database.pool, 1).await;
    // The same event again; another one with its id in another topic, twice; then a forged one.
    place.send_raw("a", Some(v1), &event("1", "/shop")).await;
    other.send_raw("a", Some(v2), &event("1", "/shop")).await;
    until_effects(&database.pool, 2).await;
    other.send_raw("a", Some(v2), &event("1", "/shop")).await;
    place.send_raw("a", Some(v2), &event("1", "/shop")).await;
    place.send_raw("a", Some(v1), &event("2", "/shop")).await;
    until_effects(&database.pool, 3).await;
    running
        .until("all have ended", |seen| seen.handled() == 5)
        .await;
    running.stop().await;
    assert_eq!(effects(&database.pool).await, 3);
    let dead = format!("{}.{}.dlt", place.topic, place.group);
    let mut reader = Reader::new(&place.brokers, &dead);
    let letter = &reader.until_distinct(1)[0];
    let reason = &letter.headers["kafka_dlt-exception-message"];
    assert!(reason.contains("share one id"), "{reason}");
    // Retention.
    let mut connection = database.pool.acquire().await.expect("a connection");
    let forget = own.inbox.forget(std::time::Duration::ZERO);
    execute(&mut connection, &forget).await.expect("deleted");
    let left: i64 = sqlx::query_scalar(
        "select (select count(*) from tidings.inbox) \
         + (select count(*) from tidings.inbox_collision)",
    )
    .fetch_one(&mut *connection)
    .await
    .expect("the query succeeds");
    assert_eq!(left, 0);
}

/// Two members handle events with one id at the same time, from two topics. The second waits for
/// the first and cannot see its row.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_id_another_member_has_just_recorded_is_tried_again_and_not_skipped() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let inbox = InboxStatements::new(place.group.as_str());
    let own = Database {
        pool: database.pool.clone(),
        inbox,
    };
    let mut first = database.pool.begin().await.expect("begun");
    place
        .send_raw(
            "a",
            Some(r#"{"account":"a","version":1}"#),
            &event("1", "/shop"),
        )
        .await;
    sqlx::query(
        "insert into tidings.inbox (consumer, source, event_id, topic) \
         values ($1, '/shop', '1', 'elsewhere')",
    )
    .bind(&place.group)
    .execute(&mut *first)
    .await
    .expect("inserted");
    let running = start!(place.subscriber().on(once).state(own));
    // It waits for the first member's lock.
    crate::support::eventually::until("the second waits", async || {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
             and datname = current_database()",
        )
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
        (waiting > 0).then_some(())
    })
    .await;
    first.commit().await.expect("committed");
    running
        .until("it has ended", |seen| seen.handled() == 1)
        .await;
    running.stop().await;
    assert_eq!(effects(&database.pool).await, 1, "another event");
}
