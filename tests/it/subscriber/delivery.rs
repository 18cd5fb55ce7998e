//! Order, deduplication, and state that survives a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidings::subscriber::{Batch, Event, HandlerError, Inbox, Meta, State, Tx};
use tokio::sync::Notify;

use crate::support::place::{
    Changed, Place, assert_once_and_in_order, count, create_effects, effect, effects, start, until,
    until_effects,
};
use crate::support::services::migrated_database;

#[tokio::test(flavor = "multi_thread")]
async fn each_event_has_its_effect_once_and_in_order_though_each_is_delivered_twice() {
    let (database, place) = (migrated_database().await, Place::new(4).await);
    create_effects(&database.pool).await;
    let envelopes = place.publish(20, 1..=10).await;
    place.send(&envelopes).await;
    let running = start!(place.subscriber().on(count).inbox(database.pool.clone()));
    running
        .until("all are seen", |seen| {
            seen.handled() + seen.duplicates() == 400
        })
        .await;
    assert_eq!(running.statistics.duplicates(), 200);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 20, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_its_effect_once_and_in_order_and_one_that_fails_is_handled_singly() {
    async fn count_all(batch: Batch<Changed>, mut tx: Tx) -> Result<(), HandlerError> {
        for (changed, meta) in batch.with_meta() {
            if changed.version == 3 && batch.len() > 1 {
                return Err(HandlerError::retry("not together with others"));
            }
            effect(&mut tx, changed, meta).await?;
        }
        Ok(())
    }
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    let envelopes = place.publish(20, 1..=6).await;
    place.send(&envelopes[..60]).await;
    let running = start!(
        place
            .subscriber()
            .on(count_all)
            .inbox(database.pool.clone())
            .batch(16)
    );
    until_effects(&database.pool, 120).await;
    running
        .until("the repeated ones are seen", |seen| {
            seen.handled() + seen.duplicates() >= 120
        })
        .await;
    running.stop().await;
    assert_once_and_in_order(&database.pool, 20, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_of_single_events_share_a_transaction_if_they_may() {
    async fn fail_once(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        effect(&mut tx, &changed, &meta).await?;
        if changed.version == 2 && changed.account == "a3" && meta.attempt() < 3 {
            return Err(HandlerError::retry("the third time"));
        }
        Ok(())
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(10, 1..=5).await;
    let running = start!(
        place
            .subscriber()
            .on(fail_once)
            .inbox(database.pool.clone())
            .batch(8)
            .concurrency(2)
    );
    until_effects(&database.pool, 50).await;
    running.stop().await;
    assert_once_and_in_order(&database.pool, 10, 5).await;
    let together: i64 =
        sqlx::query_scalar("select count(*) - count(distinct xmin::text) from effect")
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
    assert!(together > 0, "some events shared a transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_that_another_member_handles_at_this_moment_has_no_effect() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let envelope = place.envelope(&Changed {
        account: "a".into(),
        version: 1,
    });
    // The other member has inserted its row and is still at work.
    let mut other = database.pool.begin().await.expect("a transaction");
    sqlx::query(
        "insert into tidings.inbox (consumer, source, event_id) values ($1, '/tidings', $2)",
    )
    .bind(&place.group)
    .bind(envelope.id.to_string())
    .execute(&mut *other)
    .await
    .expect("the insert succeeds");
    place.send(&[envelope]).await;
    let running = start!(place.subscriber().on(count).inbox(database.pool.clone()));
    let blocked = "select count(*) from pg_stat_activity where datname = current_database() \
        and wait_event_type = 'Lock'";
    until("it waits for the other member", async || {
        let waiting: i64 = sqlx::query_scalar(blocked)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        (waiting > 0).then_some(())
    })
    .await;
    assert_eq!(running.statistics.duplicates(), 0);
    other.commit().await.expect("the commit succeeds");
    running
        .until("it is a duplicate", |seen| seen.duplicates() == 1)
        .await;
    assert_eq!(
        (effects(&database.pool).await, running.statistics.handled()),
        (0, 0)
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_aggregate_keeps_nobody_else_waiting() {
    #[derive(Clone)]
    struct Gate(Arc<Notify>, Arc<AtomicUsize>);
    async fn wait(
        Event(changed): Event<Changed>,
        State(gate): State<Gate>,
    ) -> Result<(), HandlerError> {
        if changed.account == "a0" {
            gate.0.notified().await;
        }
        gate.1.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    let place = Place::new(1).await;
    let gate = Gate(Arc::default(), Arc::default());
    place.publish(50, 1..=4).await;
    let running = start!(place.subscriber().on(wait).state(gate.clone()));
    running
        .until("all others are handled", |seen| seen.handled() == 196)
        .await;
    for done in 197..=200 {
        gate.0.notify_one();
        running
            .until("the slow ones follow one by one", |seen| {
                seen.handled() == done
            })
            .await;
    }
    assert_eq!(gate.1.load(Ordering::SeqCst), 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_repeats_no_finished_event_though_an_earlier_one_is_not_finished() {
    async fn all_but_one(
        Event(changed): Event<Changed>,
        State(first): State<bool>,
    ) -> Result<(), HandlerError> {
        if first && changed.account == "a0" && changed.version == 1 {
            return Err(HandlerError::snooze(
                Duration::from_secs(3_600),
                "not in the first run",
            ));
        }
        Ok(())
    }
    // Without an inbox, only the metadata of the commit prevents a repeat.
    let place = Place::new(1).await;
    place.publish(30, 1..=3).await;
    let first = start!(place.subscriber().on(all_but_one).state(true));
    first
        .until("all others are handled", |seen| seen.handled() == 87)
        .await;
    first.stop().await;
    let second = start!(place.subscriber().on(all_but_one).state(false));
    second
        .until("the rest is handled", |seen| seen.handled() == 3)
        .await;
    place.publish(1, 4..=4).await;
    second
        .until("later events are handled", |seen| seen.handled() == 4)
        .await;
    second.stop().await;
    let third = start!(place.subscriber().on(all_but_one).state(false));
    place.publish(1, 5..=5).await;
    third
        .until("later events are handled", |seen| seen.handled() == 1)
        .await;
    assert_eq!(third.statistics.handled(), 1);
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_forgets_what_is_old_and_nothing_else() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    let rows = "insert into tidings.inbox select c, '/s', g::text, now() - g * interval '1 hour' \
        from generate_series(1, 12000) g, unnest($1::text[]) c";
    sqlx::query(rows)
        .bind(vec![place.group.clone(), "another".into()])
        .execute(&database.pool)
        .await
        .expect("the insert succeeds");
    let inbox = Inbox::new(database.pool.clone()).keep(Duration::from_secs(100 * 3_600 + 60));
    let running = start!(place.subscriber::<()>().on(count).inbox(inbox));
    until("old rows are deleted", async || {
        let counts: (i64, i64) = sqlx::query_as(
            "select count(*) filter (where consumer = $1), count(*) \
                filter (where consumer <> $1) from tidings.inbox",
        )
        .bind(&place.group)
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
        (counts == (100, 12_000)).then_some(())
    })
    .await;
    running.stop().await;
}
