//! Many records that make a broker refuse batches: a few sessions find them all, and all other
//! events are published.

use sqlx::PgPool;
use tidings::relay::DeliveryGuarantee;

use super::parked::{retry_until_released, sql, strict, until_parked};
use crate::support::records::{alter_topic, create_topic_with};
use crate::support::running::{Place, Running};
use crate::support::services::migrated_database;

/// Inserts `events` events of one aggregate each in one statement. Every eleventh event has about
/// `bytes` bytes that do not compress.
async fn insert_mixed(pool: &PgPool, events: i32, bytes: i32) {
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
        select 'order', (case when n % 11 = 0 then 'bad' else 'good' end) || n, 'T', \
        json_build_object('n', n, 'pad', case when n % 11 = 0
            then (select string_agg(md5(n::text || k::text), '') \
            from generate_series(1, $2 / 32) k) else 'x' end)
        from generate_series(1, $1) n";
    sqlx::query(insert)
        .bind(events)
        .bind(bytes)
        .execute(pool)
        .await
        .expect("the insert succeeds");
}

/// Returns the number of sessions that ended because of Kafka.
fn sessions(relay: &Running) -> u32 {
    let metrics = relay.observer.metrics_text();
    let reconnects = metrics
        .lines()
        .find_map(|line| line.strip_prefix("tidings_relay_reconnects_total{side=\"kafka\"} "));
    reconnects.map_or(0, |count| count.parse().expect("a number"))
}

fn bad(events: i32) -> Vec<(String, i64, bool)> {
    (1..=i64::from(events))
        .filter(|n| n % 11 == 0)
        .map(|n| (format!("bad{n}"), n, true))
        .collect()
}

/// Runs a relay until exactly the bad ones of 110 events are parked and the others are published.
/// Returns the number of sessions that ended because of Kafka.
async fn isolated(pool: &PgPool, place: &Place, relay: Running) -> u32 {
    let wanted = bad(110);
    let wanted: Vec<(&str, i64, bool)> = wanted
        .iter()
        .map(|(id, n, wrong)| (id.as_str(), *n, *wrong))
        .collect();
    until_parked(pool, &wanted).await;
    let mut reader = place.reader();
    reader.until_distinct(100);
    let sessions = sessions(&relay);
    relay.stop().await;
    assert!(
        reader
            .read_to_the_end()
            .iter()
            .all(|record| record.key.starts_with(b"good"))
    );
    sessions
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_events_ten_that_the_topic_finds_too_large_are_parked_and_the_others_published()
 {
    for (delivery, compression) in [
        (DeliveryGuarantee::ExactlyOnce, "lz4"),
        (DeliveryGuarantee::ExactlyOnce, "none"),
        (DeliveryGuarantee::AtLeastOnce, "lz4"),
    ] {
        let database = migrated_database().await;
        let (place, mut options) = strict(&database, "20000", delivery).await;
        options
            .kafka
            .properties
            .insert("compression.type".into(), compression.into());
        insert_mixed(&database.pool, 110, 40_000).await;
        let sessions = isolated(&database.pool, &place, Running::start(options)).await;
        // One session determines the limit. Without isolation, each of the ten bad events would
        // cost a session.
        assert!(
            sessions <= 2,
            "{sessions} sessions with {delivery:?}, {compression}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_refused_although_they_seem_to_fit_are_found_and_the_others_published() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    // Repetitive payloads are small in transit and too large in the form that the topic stores.
    create_topic_with(
        &place.brokers,
        &place.topic,
        4,
        &[
            ("max.message.bytes", "20000"),
            ("compression.type", "uncompressed"),
        ],
    )
    .await;
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
        select 'order', (case when n % 11 = 0 then 'bad' else 'good' end) || n, 'T',
               json_build_object('n', n, 'pad', repeat('x', case when n % 11 = 0 then 40000 else \
               1 end))
        from generate_series(1, 110) n";
    sql(&database.pool, insert).await;
    isolated(&database.pool, &place, place.start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_compresses_well_is_published_however_large_it_is_uncompressed() {
    let database = migrated_database().await;
    let (pool, (place, mut options)) = (
        &database.pool,
        strict(&database, "20000", DeliveryGuarantee::ExactlyOnce).await,
    );
    options
        .kafka
        .properties
        .insert("compression.type".into(), "lz4".into());
    insert_mixed(pool, 11, 40_000).await;
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
        select 'order', 'good' || n, 'T', json_build_object('n', n, 'pad', repeat('x', 200000)) \
        from generate_series(101, 110) n";
    sql(pool, insert).await;
    let relay = Running::start(options);
    until_parked(pool, &[("bad11", 11, true)]).await;
    place.reader().until_distinct(20);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_was_raised_lets_all_go_by_one_command() {
    let database = migrated_database().await;
    let (pool, (place, options)) = (
        &database.pool,
        strict(&database, "20000", DeliveryGuarantee::ExactlyOnce).await,
    );
    insert_mixed(pool, 110, 40_000).await;
    let relay = Running::start(options);
    let mut reader = place.reader();
    reader.until_distinct(100);
    alter_topic(
        &place.brokers,
        &place.topic,
        &[("max.message.bytes", "1000000")],
    )
    .await;
    retry_until_released(pool).await;
    reader.until_distinct(110);
    relay.stop().await;
    assert_eq!(reader.read_to_the_end().len(), 110);
}
