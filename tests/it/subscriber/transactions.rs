//! The transaction of a handler: savepoints without an import, and the isolation level.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgPoolOptions;
use tidings::DomainEvent;
use tidings::subscriber::{Event, HandlerError, Inbox, Isolation, Meta, Retry, Tx};

use crate::support::place::{
    Changed, Place, assert_once_and_in_order, create_effects, effect, start,
};
use crate::support::services::migrated_database;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "audit", id = "account")]
struct Audited {
    account: String,
}

/// Polls a future once.
async fn is_ready<F: Future>(mut future: Pin<&mut F>) -> bool {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

fn quick(attempts: u32) -> Retry {
    Retry::exponential(
        attempts,
        Duration::from_millis(1)..Duration::from_millis(20),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_keeps_or_undoes_its_part_and_the_events_it_published() {
    async fn in_parts(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        let mut kept = tx.savepoint().await?;
        kept.publish(&Audited {
            account: "kept".into(),
        })
        .await?;
        kept.commit().await?;
        let mut undone = tx.savepoint().await?;
        undone
            .publish(&Audited {
                account: "undone".into(),
            })
            .await?;
        assert!(
            sqlx::query("select 1 / 0")
                .execute(&mut *undone)
                .await
                .is_err()
        );
        undone.rollback().await?;
        let mut dropped = tx.savepoint().await?;
        dropped
            .publish(&Audited {
                account: "dropped".into(),
            })
            .await?;
        drop(dropped);
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let sent = place.publish(1, 1..=2).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(in_parts)
            .inbox(database.pool.clone())
    );
    running
        .until("both are handled", |seen| seen.handled() == 2)
        .await;
    assert_eq!(running.statistics.failed_attempts(), 0);
    running.stop().await;
    let published: Vec<(String, String)> = sqlx::query_as(
        "select aggregateid, headers ->> 'causationid' from tidings.outbox order by seq",
    )
    .fetch_all(&database.pool)
    .await
    .expect("the query succeeds");
    let expected: Vec<_> = sent
        .iter()
        .map(|cause| ("kept".to_owned(), cause.id.to_string()))
        .collect();
    assert_eq!(published, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_savepoint_could_not_begin_does_nothing_more() {
    async fn careless(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        if meta.attempt() == 1 {
            if changed.account == "a0" {
                let begins = std::pin::pin!(tx.savepoint());
                assert!(!is_ready(begins).await, "it is cancelled");
            } else {
                let _ = sqlx::query("select 1 / 0").execute(&mut *tx).await;
                assert!(tx.savepoint().await.is_err(), "the transaction has failed");
            }
            if changed.version == 1 {
                return Ok(());
            }
        }
        // Outside its transaction, this effect would be committed on its own.
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(3, 1..=2).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(careless)
            .inbox(database.pool.clone())
            .retry(quick(3))
    );
    running
        .until("all are handled", |seen| seen.handled() == 6)
        .await;
    assert_eq!(running.statistics.failed_attempts(), 6);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 3, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_run_in_the_isolation_level_that_the_inbox_says_and_conflicts_are_tried_again() {
    /// Reads and then writes. Two concurrent runs would lose an update unless one of them fails.
    async fn add(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        let level: String = sqlx::query_scalar("show transaction_isolation")
            .fetch_one(&mut *tx)
            .await?;
        let n: i32 = sqlx::query_scalar("select n from counter where level = $1")
            .bind(&level)
            .fetch_one(&mut *tx)
            .await?;
        sqlx::query("update counter set n = $2 where level = $1")
            .bind(&level)
            .bind(n + 1)
            .execute(&mut *tx)
            .await?;
        effect(&mut tx, &changed, &meta).await
    }
    let database = migrated_database().await;
    create_effects(&database.pool).await;
    sqlx::raw_sql("create table counter (level text primary key, n int not null)")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    sqlx::raw_sql(
        "insert into counter values ('read committed', 0), ('repeatable read', 0), \
        ('serializable', 0)",
    )
    .execute(&database.pool)
    .await
    .expect("the table is filled");
    for (isolation, level, concurrency, batch) in [
        (None, "read committed", 1, 1),
        (Some(Isolation::ReadCommitted), "read committed", 1, 1),
        (Some(Isolation::RepeatableRead), "repeatable read", 4, 1),
        (Some(Isolation::Serializable), "serializable", 4, 1),
        (Some(Isolation::Serializable), "serializable", 1, 16),
    ] {
        let place = Place::new(1).await;
        let events = place.publish(10, 1..=3).await;
        place.send(&events).await; // each is there twice
        let before: i32 = sqlx::query_scalar("select n from counter where level = $1")
            .bind(level)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        let inbox = Inbox::new(database.pool.clone());
        let inbox = isolation.map_or(inbox.clone(), |isolation| inbox.isolation(isolation));
        let subscriber = place
            .subscriber::<()>()
            .on(add)
            .inbox(inbox)
            .concurrency(concurrency)
            .batch(batch);
        let running = start!(subscriber.retry(quick(1_000)).kill_switch(None));
        running
            .until("all have ended", |seen| {
                seen.handled() + seen.duplicates() == 60
            })
            .await;
        assert_eq!(running.statistics.dead_lettered(), 0, "{level}");
        running.stop().await;
        let after: i32 = sqlx::query_scalar("select n from counter where level = $1")
            .bind(level)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        assert_eq!(after - before, 30, "{level} {batch}");
    }
}

/// The pool has one connection, so each query would see a transaction that was left open.
#[tokio::test(flavor = "multi_thread")]
async fn a_begin_that_is_cancelled_leaves_no_transaction_open() {
    let database = migrated_database().await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_with((*database.pool.connect_options()).clone())
        .await
        .expect("the database answers");
    for polls in 1..=12 {
        let mut begins = Box::pin(Tx::begin(&pool));
        for _ in 0..polls {
            if is_ready(begins.as_mut()).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(begins);
        // Outside of a transaction, a message of the simple protocol is one.
        let row = sqlx::raw_sql("select statement_timestamp() = now()")
            .fetch_one(&pool)
            .await
            .expect("the query succeeds");
        let is_alone: bool = row.get(0);
        assert!(is_alone, "the begin was cancelled after {polls} polls");
    }
}
