//! The main purpose of a relay: committed events reach the topic once each, in the order of their
//! aggregate, if nothing fails.

use tidings::Outbox;

use crate::support::history::{Moved, Verdict, with_accounts, write_concurrently};
use crate::support::running::Place;
use crate::support::services::migrated_database;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_with_rollbacks_and_savepoints_give_every_committed_event_once_and_in_order()
 {
    let (database, place) = with_accounts(12).await;
    let relay = place.start();
    write_concurrently(&database.pool, 6, 12, 120).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_from_before_the_first_start_come_too_and_the_seam_to_the_log_is_exact() {
    let (database, place) = with_accounts(5).await;
    write_concurrently(&database.pool, 3, 5, 60).await;
    // The relay starts while others write. Events that its snapshot does not contain come from the
    // log.
    let (relay, ()) = tokio::join!(
        async { place.start() },
        write_concurrently(&database.pool, 3, 5, 60)
    );
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_of_a_hundred_thousand_events_arrives_whole_and_a_restart_repeats_none_of_it()
 {
    let (database, place) = with_accounts(7).await;
    let relay = place.start();
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    let events: Vec<Moved> = (0..100_000)
        .map(|n| Moved {
            account: format!("a{}", n % 7),
            version: n / 7 + 1,
        })
        .collect();
    Outbox::new()
        .publish_all(&mut tx, &events)
        .await
        .expect("the event is published");
    sqlx::query("update account set version = (100000 + 6 - substr(id, 2)::int) / 7")
        .execute(&mut *tx)
        .await
        .expect("the statement succeeds");
    tx.commit().await.expect("the commit succeeds");
    let mut reader = place.reader();
    reader.until_distinct(100_000);
    relay.stop().await;
    let relay = place.start();
    write_concurrently(&database.pool, 1, 7, 20).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_follows_a_database_whose_traffic_is_not_events() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    relay.says("stream", "streaming").await;
    sqlx::raw_sql("create table other (n int, pad text)")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    sqlx::raw_sql("insert into other select n, repeat('x', 500) from generate_series(1, 20000) n")
        .execute(&database.pool)
        .await
        .expect("the table is filled");
    let target: String = sqlx::query_scalar("select pg_current_wal_lsn()::text")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    let followed = "select coalesce(bool_or(confirmed_flush_lsn >= $1::pg_lsn), false) \
        from pg_replication_slots where database = current_database()";
    for _ in 0..2_400 {
        if sqlx::query_scalar(followed)
            .bind(&target)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds")
        {
            return relay.stop().await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the slot does not follow to {target}");
}
