//! The connections that run one inbox transaction after another.
//!
//! A failed transaction leaves no trace in the next one, and other users of the pool get their
//! share of the connections.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgPool};
use tidings::subscriber::{Event, HandlerError, Inbox, Meta, Retry, Tx};
use tower::timeout::TimeoutLayer;

use crate::support::place::{
    Changed, Place, assert_once_and_in_order, create_effects, effect, effects, start, until,
    until_effects,
};
use crate::support::services::migrated_database;

fn quick(attempts: u32) -> Retry {
    Retry::exponential(
        attempts,
        Duration::from_millis(1)..Duration::from_millis(10),
    )
}

/// Returns the number of connections to this database that are idle in a transaction.
async fn in_transaction(watcher: &PgPool) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_stat_activity where state like 'idle in transaction%'
         and datname = current_database() and pid <> pg_backend_pid() \
         and backend_type = 'client backend'",
    )
    .fetch_one(watcher)
    .await
    .expect("the query succeeds")
}

/// A handler that counts its effect and takes some time.
async fn count_slowly(
    Event(changed): Event<Changed>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    effect(&mut tx, &changed, &meta).await?;
    tokio::time::sleep(Duration::from_millis(8)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_of_a_handler_are_savepoints_in_each_transaction_of_a_connection() {
    async fn in_parts(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        let mut part = tx.savepoint().await?;
        sqlx::query("insert into effect (account, version, attempt) values ($1, $2, 1)")
            .bind(&changed.account)
            .bind(changed.version)
            .execute(&mut *part)
            .await?;
        part.commit().await?;
        let mut other = tx.savepoint().await?;
        assert!(
            sqlx::query("select 1 / 0")
                .execute(&mut *other)
                .await
                .is_err()
        );
        if changed.version % 2 == 0 {
            other.rollback().await?;
        } else {
            drop(other);
        }
        if meta.attempt() == 1 {
            Err(HandlerError::retry("what was committed was only a part"))
        } else {
            Ok(())
        }
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(5, 1..=10).await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let running = start!(
        place
            .subscriber::<()>()
            .on(in_parts)
            .inbox(pool)
            .concurrency(1)
            .retry(quick(3))
    );
    running
        .until("all are handled", |seen| seen.handled() == 50)
        .await;
    running.stop().await;
    assert_once_and_in_order(&database.pool, 5, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_cut_off_within_its_transaction_leaves_no_effect_and_no_lock() {
    async fn slow_at_first(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        effect(&mut tx, &changed, &meta).await?;
        if meta.attempt() == 1 {
            sqlx::query("select pg_sleep(0.5)")
                .execute(&mut *tx)
                .await?;
        }
        Ok(())
    }
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    place.publish(10, 1..=2).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let subscriber = place
        .subscriber::<()>()
        .on(slow_at_first)
        .inbox(pool.clone())
        .concurrency(4)
        .retry(quick(1_000));
    let running = start!(subscriber.layer(TimeoutLayer::new(Duration::from_millis(100))));
    // An event whose commit succeeded but was cut off is a duplicate when it is retried.
    running
        .until("all are handled", |seen| {
            seen.handled() + seen.duplicates() == 20
        })
        .await;
    running.stop().await;
    assert_once_and_in_order(&database.pool, 10, 2).await;
    until("no transaction is left", async || {
        (in_transaction(&database.pool).await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_refused_is_a_failed_attempt_and_the_next_transaction_is_a_new_one() {
    async fn refused_at_first(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        effect(&mut tx, &changed, &meta).await?;
        if meta.attempt() == 1 {
            sqlx::query("insert into unpaired values (1)")
                .execute(&mut *tx)
                .await?;
        }
        Ok(())
    }
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    let pairs = "create table pair (id int primary key);
        create table unpaired (pair int references pair deferrable initially deferred)";
    sqlx::raw_sql(pairs)
        .execute(&database.pool)
        .await
        .expect("new tables");
    place.publish(10, 1..=3).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let running = start!(
        place
            .subscriber::<()>()
            .on(refused_at_first)
            .inbox(pool)
            .concurrency(8)
            .retry(quick(3))
    );
    running
        .until("all are handled", |seen| seen.handled() == 30)
        .await;
    assert_eq!(running.statistics.failed_attempts(), 30);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 10, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_thinks_nothing_of_errors_has_its_effect_once_and_harms_nobody() {
    async fn careless(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        effect(&mut tx, &changed, &meta).await?;
        if meta.attempt() > 1 {
            return Ok(());
        }
        match changed.version {
            // The savepoint fails, the transaction is aborted, and sqlx does not count the
            // savepoint.
            1 | 2 => {
                let _ = sqlx::query("select 1 / 0").execute(&mut *tx).await;
                assert!(tx.begin().await.is_err());
            }
            3 => {
                sqlx::query("rollback").execute(&mut *tx).await?;
            }
            // The answer to the abandoned statement is an error, and it arrives while another
            // answer is awaited.
            4 => {
                let mut part = tx.begin().await?;
                let update = sqlx::query("update locked set n = n + 1").execute(&mut *part);
                assert!(
                    tokio::time::timeout(Duration::from_millis(100), update)
                        .await
                        .is_err()
                );
            }
            5 => {
                let update = sqlx::query("update locked set n = n + 1").execute(&mut *tx);
                assert!(
                    tokio::time::timeout(Duration::from_millis(100), update)
                        .await
                        .is_err()
                );
            }
            _ => {}
        }
        if changed.version == 2 {
            Err(HandlerError::retry("after that"))
        } else {
            Ok(())
        }
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    sqlx::raw_sql("create table locked (n int); insert into locked values (0)")
        .execute(&database.pool)
        .await
        .expect("a table");
    let mut holder = database.pool.begin().await.expect("a transaction begins");
    sqlx::query("select from locked for update")
        .execute(&mut *holder)
        .await
        .expect("the statement succeeds");
    let events = place.publish(4, 1..=6).await;
    place.send(&events).await;
    // With one connection, the next event meets everything that an event leaves behind, because its
    // transaction begins with the message that commits the previous one.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let inbox = Inbox::new(pool.clone()).lock_timeout(Duration::from_millis(300));
    let running = start!(
        place
            .subscriber::<()>()
            .on(careless)
            .inbox(inbox)
            .concurrency(4)
            .retry(quick(3))
    );
    running
        .until("all are handled", |seen| {
            seen.handled() + seen.duplicates() == 48
        })
        .await;
    assert_eq!(
        (
            running.statistics.handled(),
            running.statistics.dead_lettered(),
            running.statistics.parked()
        ),
        (24, 0, 0)
    );
    // Version 4 alone succeeds at once, because its failure was within its savepoint.
    assert_eq!(running.statistics.failed_attempts(), 4 * 4);
    running.stop().await;
    holder.rollback().await.expect("the rollback succeeds");
    assert_once_and_in_order(&database.pool, 4, 6).await;
    until("no transaction is left", async || {
        (in_transaction(&database.pool).await == 0).then_some(())
    })
    .await;
    let mut connection = pool.acquire().await.expect("the connection");
    sqlx::query("insert into effect (account, version) values ('z', 1)")
        .execute(&mut *connection)
        .await
        .expect("the insert succeeds");
    assert_eq!(effects(&database.pool).await, 25, "it is in no transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_another_member_handles_at_this_moment_keeps_no_commit_waiting() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(6, 1..=1).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let running = start!(
        place
            .subscriber::<()>()
            .on(count_slowly)
            .inbox(Inbox::new(pool).lock_timeout(Duration::from_secs(600)))
            .concurrency(6)
            .retry(Retry::never())
    );
    until_effects(&database.pool, 6).await;
    let changes = (2..=20).flat_map(|version| {
        (0..6).map(move |account| Changed {
            account: format!("a{account}"),
            version,
        })
    });
    let events: Vec<_> = changes.map(|changed| place.envelope(&changed)).collect();
    // The state that another member leaves while it handles an event from the middle of the batch
    // and does not end.
    let mut other = database.pool.begin().await.expect("a transaction begins");
    sqlx::query(
        "insert into tidings.inbox (consumer, source, event_id) \
        select distinct consumer, source, $1 from tidings.inbox",
    )
    .bind(events[60].id.to_string())
    .execute(&mut *other)
    .await
    .expect("the row is inserted");
    place.send(&events).await;
    // The event that is committed with the same message is reported first, so its aggregate
    // continues. The wait for the lock is longer than the time limit of `until`.
    running
        .until("all others are handled", |seen| seen.handled() == 120 - 9)
        .await;
    assert_eq!(
        (
            running.statistics.failed_attempts(),
            running.statistics.parked()
        ),
        (0, 0)
    );
    other.rollback().await.expect("the rollback succeeds");
    until_effects(&database.pool, 120).await;
    running.stop().await;
    assert_once_and_in_order(&database.pool, 6, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_have_their_share_of_a_pool_that_is_in_full_use_and_all_of_it_when_nothing_is_to_do()
{
    let (database, place) = (migrated_database().await, Place::new(4).await);
    create_effects(&database.pool).await;
    place.publish(50, 1..=40).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let running = start!(
        place
            .subscriber::<()>()
            .on(count_slowly)
            .inbox(pool.clone())
            .concurrency(8)
    );
    until_effects(&database.pool, 1).await;
    // The subscriber alone needs both connections for eight seconds.
    let mut shares = 0;
    while effects(&database.pool).await < 1_800 {
        let mut other = pool.acquire().await.expect("a connection");
        shares += 1;
        let timeout: String = sqlx::query_scalar("show lock_timeout")
            .fetch_one(&mut *other)
            .await
            .expect("the query succeeds");
        assert_eq!(
            timeout, "0",
            "nothing of the inbox is set beyond its transactions"
        );
        other
            .begin()
            .await
            .expect("the connection is in no transaction")
            .commit()
            .await
            .expect("the connection is left in no transaction");
    }
    assert!(
        shares > 3,
        "without a share, the only connection is free only when the subscriber is done: {shares}"
    );
    running
        .until("all are handled", |seen| seen.handled() == 2_000)
        .await;
    until("the pool has all of its connections", async || {
        (pool.num_idle() == pool.size() as usize).then_some(())
    })
    .await;
    assert_eq!(in_transaction(&database.pool).await, 0);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 50, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_cost_no_event_an_attempt_and_no_effect() {
    let (database, place) = (migrated_database().await, Place::new(4).await);
    create_effects(&database.pool).await;
    place.publish(50, 1..=40).await;
    let options = database
        .url
        .parse::<PgConnectOptions>()
        .expect("a URL")
        .application_name("to be cut");
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .connect_with(options)
        .await
        .expect("the connection succeeds");
    let running = start!(
        place
            .subscriber::<()>()
            .on(count_slowly)
            .inbox(pool)
            .concurrency(8)
            .retry(Retry::never())
    );
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
        where datname = current_database() and application_name = 'to be cut'";
    let mut cuts = 0;
    while effects(&database.pool).await < 1_900 {
        cuts += sqlx::query_scalar::<_, i64>(cut)
            .fetch_one(&database.pool)
            .await
            .expect("cut");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    running
        .until("all are handled", |seen| {
            seen.handled() + seen.duplicates() >= 2_000
        })
        .await;
    assert_eq!(
        (
            running.statistics.dead_lettered(),
            running.statistics.parked()
        ),
        (0, 0)
    );
    assert!(cuts > 8, "{cuts} connections were cut");
    running.stop().await;
    assert_once_and_in_order(&database.pool, 50, 40).await;
}
