//! Retention: the rows that are deleted from the outbox, and the rows that never are.

use std::time::Duration;

use sqlx::PgPool;
use tidings::relay::{RelayOptions, RetentionOptions};

use super::operator::insert;
use crate::support::history::{Verdict, caught_up, with_accounts, write_concurrently};
use crate::support::running::{Place, Running};
use crate::support::services::migrated_database;

fn deleting(place: &Place) -> RelayOptions {
    let mut options = place.options();
    options.retention = RetentionOptions {
        keep: Duration::ZERO,
        ..RetentionOptions::default()
    };
    options
}

async fn rows(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from tidings.outbox")
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

async fn until_at_most(pool: &PgPool, most: i64) {
    for _ in 0..6_000 {
        if rows(pool).await <= most {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} rows are left", rows(pool).await);
}

/// Runs a relay with retention until at most `most` rows are left. Retention runs at the start and
/// then every half minute, so the relay is restarted.
async fn delete_all_but(place: &Place, pool: &PgPool, most: i64) {
    for _ in 0..20 {
        let relay = Running::start(deleting(place));
        relay.says("stream", "streaming").await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        relay.stop().await;
        if rows(pool).await <= most {
            return;
        }
    }
    panic!("{} rows are left", rows(pool).await);
}

/// Waits until the relay has examined the rows and deleted those that it may. It then exports the
/// age of the oldest row.
async fn until_retention_ran(relay: &Running) {
    for _ in 0..6_000 {
        let metrics = relay.observer.metrics_text();
        let age = metrics
            .lines()
            .find_map(|line| line.strip_prefix("tidings_relay_oldest_event_seconds "))
            .and_then(|age| age.parse::<f64>().ok())
            .expect("the metric is exported");
        if age > 0.0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("retention does not run");
}

/// Runs a relay until its stored position alone would let every row be deleted. Other relays of the
/// database are then the only reason to keep rows.
async fn until_it_needs_no_row(place: &Place, pool: &PgPool) {
    let needed = "select count(*) from tidings.outbox o, tidings.relay r where r.name = $1 \
        and o.xid >= pg_snapshot_xmin((r.position ->> 'seen')::pg_snapshot)";
    for _ in 0..40 {
        let relay = place.start();
        relay.says("stream", "streaming").await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        relay.stop().await;
        let needed: i64 = sqlx::query_scalar(needed)
            .bind(&place.name)
            .fetch_one(pool)
            .await
            .expect("the query succeeds");
        if needed == 0 {
            return;
        }
    }
    panic!("the position does not pass the rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn published_events_go_in_batches_and_the_last_one_stays_as_the_relays_witness() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    insert(&database.pool, 1..=25_000).await;
    let relay = place.start();
    let mut reader = place.reader();
    reader.until_distinct(25_000);
    relay.says("stream", "streaming").await;
    relay.stop().await;
    let relay = Running::start(deleting(&place));
    until_at_most(&database.pool, 1).await;
    let metrics = relay.observer.metrics_text();
    assert!(
        metrics.contains("tidings_relay_deleted_events_total 24999"),
        "{metrics}"
    );
    insert(&database.pool, 25_001..=25_003).await;
    reader.until_distinct(25_003);
    relay.stop().await;
    // The witness of the relay still exists, so the relay continues.
    let relay = place.start();
    relay.says("stream", "streaming").await;
    relay.stop().await;
    let floor: String = sqlx::query_scalar("select floor::text from tidings.retention")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_ne!(floor, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_relay_has_not_published_stays_until_that_one_is_forgotten() {
    let database = migrated_database().await;
    let (place, other) = (Place::new(&database), Place::new(&database));
    let second = other.start();
    second.says("stream", "streaming").await;
    second.stop().await;
    insert(&database.pool, 1..=50).await;
    until_it_needs_no_row(&place, &database.pool).await;
    place.reader().until_distinct(50);
    let relay = Running::start(deleting(&place));
    until_retention_ran(&relay).await;
    assert_eq!(rows(&database.pool).await, 50);
    relay.stop().await;
    let (code, text) = place.command(&["relay", "forget", &other.name, "--yes"]);
    assert_eq!(code, 0, "{text}");
    delete_all_but(&place, &database.pool, 1).await;
    // A forgotten relay that returns would need the deleted events. It reports this and the remedy.
    let text = other.start().refusal().await;
    assert!(
        text.contains("retention has deleted events") && text.contains("rewind --all"),
        "{text}"
    );
    let (code, text) = other.command(&["relay", "rewind", "--all", "--yes"]);
    assert!(
        code == 0 && text.contains("retention has deleted older events"),
        "{text}"
    );
    for _ in 0..2 {
        let relay = other.start();
        relay.says("stream", "streaming").await;
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_moved_back_keeps_what_it_is_to_publish() {
    let database = migrated_database().await;
    let (place, other) = (Place::new(&database), Place::new(&database));
    insert(&database.pool, 1..=50).await;
    for place in [&place, &other] {
        until_it_needs_no_row(place, &database.pool).await;
        place.reader().until_distinct(50);
    }
    let (code, text) = other.command(&["relay", "rewind", "--all", "--yes"]);
    assert!(
        code == 0
            && text.contains("50 events will be published again")
            && !text.contains("retention"),
        "{text}"
    );
    let relay = Running::start(deleting(&place));
    until_retention_ran(&relay).await;
    assert_eq!(rows(&database.pool).await, 50);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_deleted_beside_writers_and_none_is_lost_or_repeated() {
    let (database, place) = with_accounts(6).await;
    let writing = tokio::spawn({
        let pool = database.pool.clone();
        async move { write_concurrently(&pool, 3, 6, 300).await }
    });
    let mut reader = place.reader();
    // Each start immediately deletes everything that is published by then.
    while !writing.is_finished() {
        let relay = Running::start(deleting(&place));
        relay.says("stream", "streaming").await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        relay.stop().await;
    }
    writing.await.expect("the writers end without an error");
    let relay = Running::start(deleting(&place));
    caught_up(&database.pool, &mut reader).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
    delete_all_but(&place, &database.pool, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_size_deletes_the_oldest_before_their_time_and_switched_off_nothing_is() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    insert(&database.pool, 1..=2_000).await;
    let relay = place.start();
    place.reader().until_distinct(2_000);
    relay.says("stream", "streaming").await;
    relay.stop().await;
    let bytes: f64 =
        sqlx::query_scalar("select avg(pg_column_size(o.*))::float8 from tidings.outbox o")
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
    let mut options = place.options();
    options.retention.size_max = Some((bytes * 500.0) as u64);
    options.retention.enabled = false;
    let relay = Running::start(options.clone());
    relay.says("stream", "streaming").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    relay.stop().await;
    assert_eq!(rows(&database.pool).await, 2_000);
    options.retention.enabled = true;
    let relay = Running::start(options);
    until_at_most(&database.pool, 510).await;
    relay.stop().await;
    assert!(rows(&database.pool).await > 450);
}
