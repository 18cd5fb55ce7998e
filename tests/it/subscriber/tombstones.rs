//! Tombstones: records with a null value, which delete an aggregate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tidings::DomainEvent;
use tidings::event::{AggregateId, Envelope};
use tidings::subscriber::{
    DeadLetters, Escalation, Event, HandlerError, Meta, Retry, State, SubscriberState, Tombstone,
    Tx,
};
use uuid::Uuid;

use super::redrive::dead_letters;
use crate::support::place::{Changed, Place, create_effects, effect, start, until_effects};
use crate::support::records::{Reader, create_topic_with};
use crate::support::services::migrated_database;

/// Another aggregate in the same topic.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "customer", id = "customer")]
struct CustomerChanged {
    customer: String,
}

async fn count(Event(changed): Event<Changed>, meta: Meta, mut tx: Tx) -> Result<(), HandlerError> {
    effect(&mut tx, &changed, &meta).await
}

/// Records a deletion as version -1.
async fn delete(erased: Tombstone<Changed>, mut tx: Tx) -> Result<(), HandlerError> {
    let changed = Changed {
        account: erased.aggregate_id().into_owned(),
        version: -1,
    };
    effect(&mut tx, &changed, erased.meta()).await
}

fn tombstone(place: &Place, account: &str) -> Envelope {
    let mut envelope =
        Envelope::tombstone("account", AggregateId::new(account).expect("a valid id"));
    envelope.topic = Some(place.topic.clone());
    envelope
}

async fn effects_of(pool: &PgPool, account: &str) -> Vec<i32> {
    let read = sqlx::query_scalar("select version from effect where account = $1 order by seq")
        .bind(account);
    read.fetch_all(pool).await.expect("the query succeeds")
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_of_any_publisher_reach_their_handler_once_and_in_the_order_of_their_aggregate()
{
    let (database, mut place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.topic = format!("compacted-{}", Uuid::now_v7().simple());
    create_topic_with(
        &place.brokers,
        &place.topic,
        1,
        &[("cleanup.policy", "compact")],
    )
    .await;
    let event = |version| {
        place.envelope(&Changed {
            account: "a".into(),
            version,
        })
    };
    let gone = tombstone(&place, "a");
    // The second tombstone repeats the first.
    for envelope in [event(1), gone.clone(), gone, event(2)] {
        place.send(&[envelope]).await;
    }
    place.send_raw("a", None, &[]).await;
    place
        .send_raw(
            "a",
            None,
            &[("content-type", "application/cloudevents+json")],
        )
        .await;
    let cloud_event = [
        ("ce_specversion", "1.0"),
        ("ce_id", "e-1"),
        ("ce_source", "/bank"),
        ("ce_type", "Changed"),
    ];
    place.send_raw("a", None, &cloud_event).await;
    place
        .send_raw(
            "a",
            None,
            &[("ce_specversion", "9"), ("ce_type", "Changed")],
        )
        .await;
    place.send(&[event(3)]).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .on(delete)
            .inbox(database.pool.clone())
    );
    running
        .until("all are handled", |seen| {
            seen.handled() == 8 && seen.duplicates() == 1
        })
        .await;
    assert_eq!(
        (
            running.statistics.dead_lettered(),
            running.statistics.unknown_types()
        ),
        (0, 0)
    );
    running.stop().await;
    assert_eq!(
        effects_of(&database.pool, "a").await,
        [1, -1, 2, -1, -1, -1, -1, 3]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_without_a_handler_are_skipped_and_counted_and_never_dead() {
    async fn of_customers(_: Tombstone<CustomerChanged>) -> Result<(), HandlerError> {
        Ok(())
    }
    async fn changed(_: Event<Changed>) -> Result<(), HandlerError> {
        Ok(())
    }
    let place = Place::new(1).await;
    place.send(&[tombstone(&place, "a")]).await;
    place
        .send_raw(
            "a",
            None,
            &[
                ("ce_specversion", "1.0"),
                ("ce_id", "1"),
                ("ce_source", "/s"),
                ("ce_type", "Changed"),
            ],
        )
        .await;
    // Several aggregates share the topic, and nothing identifies the aggregate of this tombstone.
    place.send_raw("a", None, &[]).await;
    let mut customer = Envelope::tombstone("customer", AggregateId::new("c").expect("a valid id"));
    customer.topic = Some(place.topic.clone());
    place
        .send(&[
            customer,
            place.envelope(&Changed {
                account: "a".into(),
                version: 1,
            }),
        ])
        .await;
    let subscriber = place
        .subscriber::<()>()
        .topic::<CustomerChanged>(&place.topic)
        .on(changed)
        .on(of_customers);
    let running = start!(subscriber);
    running
        .until("all have ended", |seen| {
            seen.handled() == 2 && seen.unknown_types() == 3
        })
        .await;
    assert_eq!(running.statistics.dead_lettered(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_tombstone_is_retried_parked_with_what_follows_dead_and_replayed() {
    async fn while_broken(
        erased: Tombstone<Changed>,
        mut tx: Tx,
        State(broken): State<Arc<AtomicBool>>,
    ) -> Result<(), HandlerError> {
        if broken.load(Ordering::SeqCst) {
            return Err(HandlerError::retry("the archive is closed"));
        }
        let changed = Changed {
            account: erased.aggregate_id().into_owned(),
            version: -1,
        };
        effect(&mut tx, &changed, erased.meta()).await
    }
    let (database, place, broken) = (
        migrated_database().await,
        Place::new(1).await,
        Arc::new(AtomicBool::new(true)),
    );
    create_effects(&database.pool).await;
    place.send_raw("a", None, &[]).await;
    place.publish(1, 1..=1).await;
    place
        .send(&[
            tombstone(&place, "a0"),
            place.envelope(&Changed {
                account: "a0".into(),
                version: 2,
            }),
        ])
        .await;
    let quick = |attempts| {
        Retry::exponential(
            attempts,
            Duration::from_millis(5)..Duration::from_millis(20),
        )
    };
    let subscriber = place
        .subscriber()
        .on(count)
        .on(while_broken)
        .inbox(database.pool.clone())
        .state(broken.clone());
    let running = start!(
        subscriber
            .retry(quick(2))
            .escalation(Escalation::Park(quick(2)))
            .dead_letters(DeadLetters::topic())
    );
    // Version 2 of a0 waits behind the tombstone, which is parked until its next attempt.
    running
        .until("both are dead", |seen| seen.dead_lettered() == 2)
        .await;
    assert_eq!(running.statistics.failed_attempts(), 8);
    until_effects(&database.pool, 2).await;
    let topic = format!("{}.{}.dlt", place.topic, place.group);
    let letters = Reader::new(&place.brokers, &topic)
        .read_to_the_end()
        .to_vec();
    assert!(
        letters.len() == 2 && letters.iter().all(|letter| letter.value.is_none()),
        "{letters:?}"
    );
    let listed = dead_letters(&place, &["list", &topic]);
    assert_eq!(
        listed.matches("the archive is closed").count(),
        2,
        "{listed}"
    );
    broken.store(false, Ordering::SeqCst);
    assert!(dead_letters(&place, &["replay", &topic, "--all"]).ends_with("2 replayed\n"));
    until_effects(&database.pool, 4).await;
    running.stop().await;
    assert_eq!(effects_of(&database.pool, "a0").await, [1, 2, -1]);
    assert_eq!(effects_of(&database.pool, "a").await, [-1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_tombstone_handler_leaves_tombstones_to_a_version_that_has_one() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let older = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    );
    place.publish(1, 1..=1).await;
    until_effects(&database.pool, 1).await;
    // The newer version registers while the older one still has the partition.
    let newer = start!(
        place
            .subscriber::<()>()
            .on(count)
            .on(delete)
            .inbox(database.pool.clone())
    );
    // By then no member's view of the others is older than this registration.
    newer
        .until("the newer one runs", |seen| {
            seen.state() == SubscriberState::Running
        })
        .await;
    place
        .send(&[
            tombstone(&place, "a0"),
            place.envelope(&Changed {
                account: "a0".into(),
                version: 2,
            }),
        ])
        .await;
    crate::support::place::until("the tombstone is handled or waits", async || {
        let waits = older.statistics.waiting_for_another_version() > 0;
        (waits || crate::support::place::effects(&database.pool).await == 3).then_some(())
    })
    .await;
    assert_eq!(older.statistics.unknown_types(), 0);
    older.stop().await;
    until_effects(&database.pool, 3).await;
    newer.stop().await;
    assert_eq!(effects_of(&database.pool, "a0").await, [1, -1, 2]);
}
