//! Scheduled events: published once when they are due, and never if they are cancelled or rolled
//! back.

use std::time::Duration;

use chrono::{SubsecRound as _, Utc};
use sqlx::PgPool;
use tidings::{Outbox, event::EventId};

use crate::support::history::Moved;
use crate::support::running::{Place, Running};
use crate::support::services::migrated_database;

const SOON: Duration = Duration::from_millis(1_500);

fn moved(account: impl ToString, version: i64) -> Moved {
    Moved {
        account: account.to_string(),
        version,
    }
}

async fn schedule(pool: &PgPool, event: Moved, delay: Duration) -> EventId {
    let mut tx = pool.begin().await.expect("a transaction begins");
    let id = Outbox::new()
        .publish_after(&mut tx, &event, delay)
        .await
        .expect("the event is scheduled");
    tx.commit().await.expect("the commit succeeds");
    id
}

async fn scheduled(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from tidings.scheduled")
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

/// Schedules `events` events of a hundred aggregates for one moment, in one statement, numbered
/// from `first`.
async fn schedule_many(pool: &PgPool, first: i64, events: i64, delay: Duration) {
    let sql = "insert into tidings.scheduled (aggregatetype, aggregateid, type, payload, due_at)
               select 'account', (n % 100)::text, 'Moved', json_build_object('account', \
               (n % 100)::text, 'version', n), now() + make_interval(secs => $3)
               from generate_series($1, $1 + $2 - 1) n order by n";
    sqlx::query(sql)
        .bind(first)
        .bind(events)
        .bind(delay.as_secs_f64())
        .execute(pool)
        .await
        .expect("the event is scheduled");
}

/// Asserts that the topic contains each of `events` events once, in the order of each aggregate.
fn once_and_in_order(place: &Place, events: usize) {
    let mut reader = place.reader();
    reader.until_distinct(events);
    let records = reader.read_to_the_end();
    assert_eq!(records.len(), events, "some events came twice");
    let mut last = std::collections::HashMap::new();
    for record in records {
        let event: Moved = serde_json::from_str(record.text()).expect("its payload");
        let before = last.insert(event.account.clone(), event.version);
        assert!(
            before.is_none_or(|before| before < event.version),
            "{} after {before:?} of {}",
            event.version,
            event.account
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_comes_when_it_is_due_and_says_so_with_its_id_and_its_headers() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    relay.says("stream", "streaming").await;
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    let when = (Utc::now() + SOON).trunc_subsecs(6);
    let outbox = Outbox::new();
    let id = outbox
        .event(&moved("a", 2))
        .header("tenant", "acme")
        .publish_at(&mut tx, when)
        .await
        .expect("the event is scheduled");
    let far = outbox
        .publish_after(&mut tx, &moved("a", 9), Duration::from_secs(86_400))
        .await
        .expect("the event is scheduled");
    outbox
        .publish(&mut tx, &moved("a", 1))
        .await
        .expect("the event is published");
    tx.commit().await.expect("the commit succeeds");
    let mut reader = place.reader();
    let records = reader.until_distinct(2).to_vec();
    let late = Utc::now() - when;
    assert!(
        late >= chrono::TimeDelta::zero(),
        "{late} is before its time"
    );
    let header = |name: &str| {
        records[1]
            .headers
            .iter()
            .find(|(header, _)| *header == name)
            .map(|(_, value)| value.clone())
    };
    assert_eq!(
        (header("ce_id"), header("tenant")),
        (Some(id.to_string()), Some("acme".into()))
    );
    assert_eq!(
        header("ce_time").map(|time| time.parse::<chrono::DateTime<Utc>>().expect("a time")),
        Some(when)
    );
    assert!(
        relay
            .observer
            .metrics_text()
            .contains("tidings_relay_scheduled_moved_total 1"),
        "{}",
        relay.observer.metrics_text()
    );
    relay.stop().await;
    // Read to the end, because the event that is due tomorrow must not be in the topic.
    assert_eq!(place.reader().read_to_the_end().len(), 2);
    let left: Vec<uuid::Uuid> = sqlx::query_scalar("select id from tidings.scheduled")
        .fetch_all(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(left, [far.as_uuid()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_or_rolled_back_never_comes_and_a_cancellation_that_is_rolled_back_is_none()
 {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let outbox = Outbox::new();
    let relay = place.start();
    relay.says("stream", "streaming").await;
    let cancelled = schedule(&database.pool, moved("cancelled", 1), SOON).await;
    let kept = schedule(&database.pool, moved("kept", 1), SOON).await;
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    outbox
        .publish_after(&mut tx, &moved("rolled-back", 1), Duration::ZERO)
        .await
        .expect("the event is scheduled");
    tx.rollback().await.expect("the rollback succeeds");
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    assert!(
        outbox
            .cancel(&mut tx, cancelled)
            .await
            .expect("the event can be cancelled")
    );
    assert!(
        !outbox
            .cancel(&mut tx, cancelled)
            .await
            .expect("the event can be cancelled"),
        "it is cancelled already"
    );
    tx.commit().await.expect("the commit succeeds");
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    assert!(
        outbox
            .cancel(&mut tx, kept)
            .await
            .expect("the event can be cancelled")
    );
    // The transaction stays open beyond the due time of its event. This event waits, and others do
    // not wait for it.
    schedule(&database.pool, moved("other", 1), SOON).await;
    let mut reader = place.reader();
    assert!(reader.until_distinct(1)[0].text().contains("other"));
    tx.rollback().await.expect("the rollback succeeds");
    reader.until_distinct(2);
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    assert!(
        !outbox
            .cancel(&mut tx, kept)
            .await
            .expect("the event can be cancelled"),
        "it is published"
    );
    tx.commit().await.expect("the commit succeeds");
    relay.stop().await;
    let accounts: Vec<String> = reader
        .read_to_the_end()
        .iter()
        .map(|record| String::from_utf8_lossy(&record.key).into_owned())
        .collect();
    assert_eq!(accounts.len(), 2, "{accounts:?}");
    assert!(
        accounts.contains(&"kept".into()) && accounts.contains(&"other".into()),
        "{accounts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_of_one_database_move_each_event_once_and_in_order() {
    let database = migrated_database().await;
    let (place, other) = (Place::new(&database), Place::new(&database));
    let relays = [place.start(), other.start()];
    for relay in &relays {
        relay.says("stream", "streaming").await;
    }
    for round in 0..4 {
        // Both relays wake up for these events at the same moment.
        schedule_many(&database.pool, 1 + round * 2_000, 2_000, SOON).await;
        while scheduled(&database.pool).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    for place in [&place, &other] {
        once_and_in_order(place, 8_000);
    }
    let moved: Vec<u64> = relays.iter().map(moved_by).collect();
    assert!(moved.iter().sum::<u64>() == 8_000, "{moved:?}");
    for relay in relays {
        relay.stop().await;
    }
}

fn moved_by(relay: &Running) -> u64 {
    let text = relay.observer.metrics_text();
    let line = text
        .lines()
        .find(|line| line.starts_with("tidings_relay_scheduled_moved_total"))
        .expect("the metric");
    line.rsplit(' ')
        .next()
        .and_then(|count| count.parse().ok())
        .expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_after_a_batch_was_moved_and_kills_at_any_moment_lose_and_repeat_nothing() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    schedule_many(&database.pool, 1, 10_000, Duration::ZERO).await;
    let mut dying = place.spawn_with(&[("TIDINGS_TEST_DIE_AT", "scheduled-moved:2")]);
    while !dying.has_died() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = scheduled(&database.pool).await;
    assert_eq!(left, 9_000, "two batches of 500 were moved");
    let mut before = left;
    for _ in 0..4 {
        let mut relay = place.spawn();
        while scheduled(&database.pool).await == before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        relay.kill();
        before = scheduled(&database.pool).await;
        if before == 0 {
            break;
        }
    }
    let last = place.spawn();
    once_and_in_order(&place, 10_000);
    drop(last);
    assert_eq!(scheduled(&database.pool).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_published_already_is_dropped_and_keeps_nobody_waiting() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let (outbox, id) = (Outbox::new(), EventId::new());
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    outbox
        .event(&moved("a", 1))
        .id(id)
        .publish(&mut tx)
        .await
        .expect("the event is published");
    outbox
        .event(&moved("a", 2))
        .id(id)
        .publish_after(&mut tx, Duration::ZERO)
        .await
        .expect("the event is scheduled");
    outbox
        .publish_after(&mut tx, &moved("a", 3), Duration::ZERO)
        .await
        .expect("the event is scheduled");
    tx.commit().await.expect("the commit succeeds");
    let relay = place.start();
    let mut reader = place.reader();
    reader.until_distinct(2);
    relay.stop().await;
    let versions: Vec<_> = reader
        .read_to_the_end()
        .iter()
        .map(|record| {
            serde_json::from_str::<Moved>(record.text())
                .expect("its payload")
                .version
        })
        .collect();
    assert_eq!(versions, [1, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_another_schema_goes_to_the_outbox_of_that_schema() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    tidings::Migrations::new()
        .schema("billing")
        .run(&database.pool)
        .await
        .expect("the migration succeeds");
    let mut options = place.options();
    options.schema = "billing".into();
    let relay = Running::start(options);
    let outbox = Outbox::new()
        .schema("billing")
        .header("region", "eu")
        .unprepared();
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    outbox
        .publish_after(&mut tx, &moved("there", 1), Duration::ZERO)
        .await
        .expect("the event is scheduled");
    tx.commit().await.expect("the commit succeeds");
    schedule(&database.pool, moved("here", 1), Duration::ZERO).await;
    let mut reader = place.reader();
    let record = reader.until_distinct(1)[0].clone();
    relay.stop().await;
    assert!(
        record.text().contains("there")
            && record
                .headers
                .get("region")
                .is_some_and(|region| region == "eu"),
        "{record:?}"
    );
    assert_eq!(
        (
            reader.read_to_the_end().len(),
            scheduled(&database.pool).await
        ),
        (1, 1),
        "this relay is not the other schema's"
    );
}

/// The row is older than a rule of the outbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_event_that_the_outbox_refuses_does_not_hold_up_others() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    schedule(&database.pool, moved("before", 1), Duration::ZERO).await;
    place.reader().until_distinct(1);
    let rule: String = sqlx::query_scalar(
        "select pg_get_constraintdef(oid) from pg_constraint \
         where conrelid = 'tidings.scheduled'::regclass and conname = 'outbox_occurred_at_finite'",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the query succeeds");
    let bad = format!(
        "alter table tidings.scheduled drop constraint outbox_occurred_at_finite;
         insert into tidings.scheduled (aggregatetype, aggregateid, type, payload, occurred_at, \
         due_at) values ('account', 'bad', 'Moved', '1', 'infinity', '2020-01-01');
         alter table tidings.scheduled add constraint outbox_occurred_at_finite {rule};"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(bad))
        .execute(&database.pool)
        .await
        .expect("the insert succeeds");
    for account in 1..=3 {
        schedule(&database.pool, moved(account, 1), Duration::ZERO).await;
    }
    place.reader().until_distinct(4);
    schedule(&database.pool, moved("after", 1), Duration::ZERO).await;
    place.reader().until_distinct(5);
    assert_eq!(scheduled(&database.pool).await, 1, "the event still exists");
    relay.stop().await;
}
