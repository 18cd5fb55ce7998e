//! The identity of events: the inbox treats equal ones as duplicates.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool};
use tidings::subscriber::{Escalation, Inbox, Order, Retry};

use crate::support::place::{Changed, Place, count, create_effects, effects, start, until_effects};
use crate::support::records::{Reader, create_topic};
use crate::support::services::{database, migrated_database};

const V1: &str = r#"{"account":"a","version":1}"#;

/// Returns the headers of a CloudEvent of the type that the tests handle.
pub(super) fn event<'a>(id: &'a str, source: &'a str) -> [(&'static str, &'a str); 4] {
    [
        ("ce_specversion", "1.0"),
        ("ce_type", "Changed"),
        ("ce_source", source),
        ("ce_id", id),
    ]
}

/// Returns a place with another topic for the same group.
pub(super) async fn beside(place: &Place) -> Place {
    let topic = format!("{}-beside", place.topic);
    create_topic(&place.brokers, &topic, 1).await;
    Place {
        bus: place.bus.clone(),
        brokers: place.brokers.clone(),
        topic,
        group: place.group.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_with_the_source_and_id_of_one_of_another_topic_is_handled_once_too() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let other = beside(&place).await;
    let running = start!(
        place
            .subscriber::<()>()
            .topic::<Changed>(&other.topic)
            .on(count)
            .inbox(database.pool.clone())
    );
    other
        .send_raw(
            "a",
            Some(r#"{"account":"forged","version":1}"#),
            &event("1", "/shop"),
        )
        .await;
    until_effects(&database.pool, 1).await;
    place.send_raw("a", Some(V1), &event("1", "/shop")).await;
    until_effects(&database.pool, 2).await;
    // Each event arrives again, in the opposite order.
    place.send_raw("a", Some(V1), &event("1", "/shop")).await;
    running
        .until("the second is a duplicate", |seen| seen.duplicates() == 1)
        .await;
    other
        .send_raw(
            "a",
            Some(r#"{"account":"forged","version":1}"#),
            &event("1", "/shop"),
        )
        .await;
    running
        .until("the first is a duplicate", |seen| seen.duplicates() == 2)
        .await;
    // An event with other data is not a duplicate of either.
    place
        .send_raw(
            "a",
            Some(r#"{"account":"a","version":2}"#),
            &event("1", "/shop"),
        )
        .await;
    running
        .until("it conflicts", |seen| seen.conflicting() == 1)
        .await;
    assert_eq!(
        (effects(&database.pool).await, running.statistics.handled()),
        (2, 2)
    );
    running.stop().await;
}

/// The kinds of difference, one by one and in batches.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_event_of_one_id_with_another_key_type_or_data_is_a_dead_letter_and_a_duplicate_is_not()
 {
    for batch in [1, 8] {
        let (database, place) = (migrated_database().await, Place::new(1).await);
        create_effects(&database.pool).await;
        place.send_raw("a", Some(V1), &event("1", "/shop")).await;
        place.send_raw("a", Some(V1), &event("1", "/shop")).await;
        place.send_raw("b", Some(V1), &event("1", "/shop")).await;
        place
            .send_raw(
                "a",
                Some(r#"{"account":"a","version":2}"#),
                &event("1", "/shop"),
            )
            .await;
        place
            .send_raw(
                "a",
                Some(r#"{"account":"a","version":3}"#),
                &event("2", "/shop"),
            )
            .await;
        let running = start!(
            place
                .subscriber::<()>()
                .on(count)
                .inbox(database.pool.clone())
                .batch(batch)
                .order(Order::Partition)
                .concurrency(1)
        );
        running
            .until("all have ended", |seen| {
                seen.handled() == 2 && seen.conflicting() == 2 && seen.duplicates() == 1
            })
            .await;
        assert_eq!(
            (
                running.statistics.dead_lettered(),
                running.statistics.failed_attempts()
            ),
            (2, 0)
        );
        running.stop().await;
        let handled: Vec<i32> = sqlx::query_scalar("select version from effect order by seq")
            .fetch_all(&database.pool)
            .await
            .expect("the query succeeds");
        assert_eq!(handled, [1, 3], "batch of {batch}");
        let mut reader = Reader::new(
            &place.brokers,
            &format!("{}.{}.dlt", place.topic, place.group),
        );
        for letter in reader.until_distinct(2) {
            assert_eq!(
                letter.headers["kafka_dlt-exception-fqcn"],
                "tidings.duplicate"
            );
            assert!(
                letter.headers["kafka_dlt-exception-message"].contains("share one id"),
                "{:?}",
                letter.headers
            );
        }
    }
}

/// An event that returns through a retry topic is the event that was sent there.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_retry_topic_is_a_duplicate_of_the_one_that_was_read_first() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let back = Place {
        bus: place.bus.clone(),
        brokers: place.brokers.clone(),
        topic: format!("{}.{}.retry.1s", place.topic, place.group),
        group: place.group.clone(),
    };
    create_topic(&back.brokers, &back.topic, 1).await;
    let escalation = Escalation::retry_topics([Duration::from_secs(1)]);
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
            .retry(Retry::never())
            .escalation(escalation)
    );
    place.send_raw("a", Some(V1), &event("1", "/shop")).await;
    until_effects(&database.pool, 1).await;
    back.send_raw("a", Some(V1), &event("1", "/shop")).await;
    running
        .until("it is a duplicate", |seen| seen.duplicates() == 1)
        .await;
    running.stop().await;
    assert_eq!(effects(&database.pool).await, 1);
}

/// Creates the tables of a version whose inbox did not distinguish topics.
async fn migrate_to_23(pool: &PgPool) {
    let mut sql = String::from("begin; create schema tidings; set local search_path = tidings;");
    for step in [
        include_str!("../../../migrations/0001_outbox.sql"),
        include_str!("../../../migrations/0002_relay.sql"),
        include_str!("../../../migrations/0003_inbox.sql"),
        include_str!("../../../migrations/0010_parked.sql"),
        include_str!("../../../migrations/0011_operation.sql"),
        include_str!("../../../migrations/0012_relay_table.sql"),
        include_str!("../../../migrations/0020_sagas.sql"),
        include_str!("../../../migrations/0021_scheduled.sql"),
        include_str!("../../../migrations/0022_open_sagas.sql"),
        include_str!("../../../migrations/0023_inbox_collation.sql"),
    ] {
        sql.push_str(step);
    }
    sql.push_str("commit;");
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(pool)
        .await
        .expect("the tables of an earlier version");
}

/// Inserts the inbox row of a version whose inbox did not distinguish topics.
async fn remember_as_before(pool: &PgPool, consumer: &str, id: &str) -> Result<(), sqlx::Error> {
    let insert = "insert into tidings.inbox (consumer, source, event_id) values ($1, '/shop', $2)";
    sqlx::query(insert)
        .bind(consumer)
        .bind(id)
        .execute(pool)
        .await
        .map(drop)
}

/// An upgrade, and a deployment while both versions run.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_earlier_version_count_for_their_events_and_it_finds_those_of_this_one() {
    let (database, place) = (database().await, Place::new(1).await);
    migrate_to_23(&database.pool).await;
    remember_as_before(&database.pool, &place.group, "before the upgrade")
        .await
        .expect("the row is inserted");
    tidings::migrate(&database.pool)
        .await
        .expect("the migration succeeds");
    remember_as_before(&database.pool, &place.group, "during the deployment")
        .await
        .expect("the row is inserted");
    create_effects(&database.pool).await;
    for id in ["before the upgrade", "during the deployment", "new"] {
        place.send_raw("a", Some(V1), &event(id, "/shop")).await;
    }
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(Inbox::new(database.pool.clone()))
    );
    running
        .until("all have ended", |seen| {
            seen.handled() == 1 && seen.duplicates() == 2
        })
        .await;
    running.stop().await;
    assert_eq!(effects(&database.pool).await, 1);
    let error = remember_as_before(&database.pool, &place.group, "new")
        .await
        .expect_err("the row exists");
    let constraint = error
        .as_database_error()
        .and_then(|error| error.constraint().map(str::to_owned));
    assert_eq!(
        constraint.as_deref(),
        Some("inbox_pkey"),
        "the row that shows an earlier version a duplicate"
    );
}
