//! The state that one deployment leaves to the next: parked events, and retry topics of other
//! settings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tidings::event::Envelope;
use tidings::subscriber::{
    Escalation, Event, HandlerError, Meta, Order, Retry, State, Tx,
    typestate::{HasInbox, HasState, NoState},
};
use tidings::{DomainEvent, Subscriber};

use crate::support::place::{
    Changed, Place, Running, assert_once_and_in_order, count, create_effects, effect, effects,
    start, until, until_effects,
};
use crate::support::records::Reader;
use crate::support::services::{TestDatabase, migrated_database};

type Broken = Arc<AtomicBool>;
type Service = Subscriber<Broken, HasState, HasInbox>;

fn quick(attempts: u32) -> Retry {
    Retry::exponential(
        attempts,
        Duration::from_millis(5)..Duration::from_millis(20),
    )
}

fn park() -> Escalation {
    Escalation::Park(Retry::exponential(
        1_000,
        Duration::from_millis(200)..Duration::from_millis(200),
    ))
}

/// Fails at the second event of `a1` while `broken` is set.
async fn while_broken(
    Event(changed): Event<Changed>,
    meta: Meta,
    mut tx: Tx,
    State(broken): State<Broken>,
) -> Result<(), HandlerError> {
    if changed.account == "a1" && changed.version == 2 && broken.load(Ordering::SeqCst) {
        return Err(HandlerError::retry("broken"));
    }
    effect(&mut tx, &changed, &meta).await
}

fn service(place: &Place, database: &TestDatabase, broken: &Broken) -> Service {
    place
        .subscriber()
        .on(while_broken)
        .inbox(database.pool.clone())
        .state(broken.clone())
        .retry(quick(2))
}

async fn parked(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from tidings.subscriber_parked")
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

async fn until_nothing_is_parked(pool: &PgPool) {
    until("nothing is parked", async || {
        (parked(pool).await == 0).then_some(())
    })
    .await;
}

/// Parks the versions 2 to 5 of `a1` with a subscriber and stops it.
async fn with_parked_events() -> (TestDatabase, Place, Broken) {
    let (database, place, broken) = (
        migrated_database().await,
        Place::new(2).await,
        Broken::new(true.into()),
    );
    create_effects(&database.pool).await;
    place.publish(4, 1..=5).await;
    let parking = start!(service(&place, &database, &broken).escalation(park()));
    parking
        .until("the aggregate is parked", |seen| seen.parked() == 4)
        .await;
    until_effects(&database.pool, 16).await;
    parking.stop().await;
    (database, place, broken)
}

async fn parked_events_are_handled_after_a_change_to(change: impl Fn(Service) -> Service) {
    let (database, place, broken) = with_parked_events().await;
    assert_eq!(parked(&database.pool).await, 4);
    broken.store(false, Ordering::SeqCst);
    place.publish(4, 6..=6).await;
    let next = start!(change(service(&place, &database, &broken)));
    until_effects(&database.pool, 24).await;
    until_nothing_is_parked(&database.pool).await;
    place.publish(4, 7..=7).await;
    until_effects(&database.pool, 28).await;
    assert_eq!(
        (next.statistics.dead_lettered(), next.statistics.discarded()),
        (0, 0)
    );
    next.stop().await;
    assert_once_and_in_order(&database.pool, 4, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_are_handled_in_order_by_a_version_that_dead_letters() {
    parked_events_are_handled_after_a_change_to(|next| next.escalation(Escalation::DeadLetter))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_are_handled_in_order_by_a_version_with_retry_topics() {
    let topics = || Escalation::retry_topics([Duration::from_millis(100)]);
    parked_events_are_handled_after_a_change_to(|next| next.escalation(topics())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_are_handled_in_order_by_a_version_without_order() {
    parked_events_are_handled_after_a_change_to(|next| next.order(Order::None)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_are_handled_in_order_by_a_version_that_orders_partitions() {
    parked_events_are_handled_after_a_change_to(|next| next.order(Order::Partition)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_parked_events_of_a_topic_that_no_instance_reads() {
    let (database, place, broken) = with_parked_events().await;
    let check = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidings"));
        command
            .arg("check")
            .env_clear()
            .env("COLUMNS", "1000")
            .env("KAFKA_BROKERS", &place.brokers)
            .env("DATABASE_URL", &database.url);
        let output = tokio::task::block_in_place(|| command.output()).expect("the binary runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(
        check().contains("no instance of the subscriber is running"),
        "{}",
        check()
    );
    let other = Place::new(1).await;
    let elsewhere = other
        .bus
        .subscriber(&place.group)
        .topic::<Changed>(&other.topic)
        .on(while_broken);
    let elsewhere = start!(elsewhere.inbox(database.pool.clone()).state(broken.clone()));
    elsewhere
        .until("it runs", |seen| !seen.partitions().is_empty())
        .await;
    let found = check();
    assert!(
        found.contains("4 parked events of 1 aggregates")
            && found.contains("no running instance subscribes to the topic"),
        "{found}"
    );
    elsewhere.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_that_still_fails_ends_as_the_new_version_escalates_and_later_ones_follow() {
    let (database, place, broken) = with_parked_events().await;
    let attempts: i32 = sqlx::query_scalar(
        "select attempts_before + attempts from tidings.subscriber_parked order by seq limit 1",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the first of them");
    assert!(attempts >= 2, "{attempts}");
    let next = start!(
        service(&place, &database, &broken)
            .retry(quick(3))
            .escalation(Escalation::DeadLetter)
    );
    until_effects(&database.pool, 19).await;
    until_nothing_is_parked(&database.pool).await;
    assert_eq!(next.statistics.dead_lettered(), 1);
    next.stop().await;
    let mut reader = Reader::new(
        &place.brokers,
        &format!("{}.{}.dlt", place.topic, place.group),
    );
    assert_eq!(
        reader.until_distinct(1)[0].headers["tidings_attempts"],
        (attempts + 3).to_string()
    );
    let handled: Vec<(i32, i32)> =
        sqlx::query_as("select version, attempt from effect where account = 'a1' order by seq")
            .fetch_all(&database.pool)
            .await
            .expect("the query succeeds");
    assert_eq!(
        handled,
        [(1, 1), (3, 1), (4, 1), (5, 1)],
        "the events behind it had no attempt of their own"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_topics_of_an_earlier_deployment_are_read_until_they_are_empty() {
    let (database, place, broken) = (
        migrated_database().await,
        Place::new(1).await,
        Broken::new(true.into()),
    );
    create_effects(&database.pool).await;
    place.publish(2, 1..=2).await;
    let delay = Duration::from_secs(5);
    let retrying =
        start!(service(&place, &database, &broken).escalation(Escalation::retry_topics([delay])));
    retrying
        .until("it waits in a topic", |seen| seen.retried() == 1)
        .await;
    retrying.stop().await;
    broken.store(false, Ordering::SeqCst);
    let next = start!(service(&place, &database, &broken).escalation(park()));
    until_effects(&database.pool, 4).await;
    next.stop().await;
    let (account, attempt): (String, i32) = sqlx::query_as(
        "select account, attempt from effect where version = 2 order by seq desc limit 1",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the last one");
    assert_eq!(
        (account.as_str(), attempt),
        ("a1", 3),
        "two attempts before the retry topic count"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_across_retry_topics() {
    async fn at_the_sixth(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        if changed.version == 1 && meta.attempt() < 6 {
            return Err(HandlerError::retry("not yet"));
        }
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(1, 1..=2).await;
    let tiers = Escalation::retry_topics([50, 60, 70].map(Duration::from_millis));
    let running = start!(
        place
            .subscriber::<()>()
            .on(at_the_sixth)
            .inbox(database.pool.clone())
            .retry(quick(2))
            .escalation(tiers)
    );
    until_effects(&database.pool, 2).await;
    running.stop().await;
    let attempts: Vec<(i32, i32)> =
        sqlx::query_as("select version, attempt from effect order by version")
            .fetch_all(&database.pool)
            .await
            .expect("the query succeeds");
    assert_eq!(attempts, [(1, 6), (2, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_from_the_first_through_parking_and_start_at_one_behind_it() {
    async fn at_the_fourth(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        if changed.version == 1 && meta.attempt() < 4 {
            return Err(HandlerError::retry("not yet"));
        }
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(1, 1..=3).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(at_the_fourth)
            .inbox(database.pool.clone())
            .retry(quick(2))
            .escalation(park())
    );
    until_effects(&database.pool, 3).await;
    running.stop().await;
    let attempts: Vec<(i32, i32)> =
        sqlx::query_as("select version, attempt from effect order by seq")
            .fetch_all(&database.pool)
            .await
            .expect("the query succeeds");
    assert_eq!(attempts, [(1, 4), (2, 1), (3, 1)]);
}

/// A type of the same aggregate that only a newer version handles.
#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "account", id = "account")]
struct Renamed {
    account: String,
    version: i32,
}

async fn rename(
    Event(renamed): Event<Renamed>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    effect(
        &mut tx,
        &Changed {
            account: renamed.account,
            version: renamed.version,
        },
        &meta,
    )
    .await
}

fn old_version(
    place: &Place,
    database: &TestDatabase,
    order: Order,
) -> Subscriber<(), NoState, HasInbox> {
    place
        .subscriber::<()>()
        .on(count)
        .inbox(database.pool.clone())
        .order(order)
}

fn new_version(
    place: &Place,
    database: &TestDatabase,
    order: Order,
) -> Subscriber<(), NoState, HasInbox> {
    old_version(place, database, order).on(rename)
}

/// Publishes three events for each account. The second one has the new type.
async fn publish_both_types(place: &Place, accounts: usize, from: i32) {
    let event = |account: usize, version: i32| {
        let account = format!("a{account}");
        if version == from + 1 {
            let mut envelope = Envelope::of(&Renamed { account, version }).expect("a valid event");
            envelope.topic = Some(place.topic.clone());
            envelope
        } else {
            place.envelope(&Changed { account, version })
        }
    };
    let all: Vec<_> = (from..from + 3)
        .flat_map(|version| (0..accounts).map(move |account| event(account, version)))
        .collect();
    place.send(&all).await;
}

async fn until_both_have_partitions(one: &Running, other: &Running) {
    for running in [one, other] {
        running
            .until("it has partitions", |seen| !seen.partitions().is_empty())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_deployment_older_members_leave_a_new_type_to_newer_ones_and_keep_the_order() {
    let (database, place) = (migrated_database().await, Place::new(4).await);
    create_effects(&database.pool).await;
    let old = start!(old_version(&place, &database, Order::Aggregate));
    old.until("it runs", |seen| seen.partitions().len() == 4)
        .await;
    let new = start!(new_version(&place, &database, Order::Aggregate));
    until_both_have_partitions(&old, &new).await;
    publish_both_types(&place, 20, 1).await;
    old.until("the new type waits", |seen| {
        seen.waiting_for_another_version() > 0
    })
    .await;
    new.until("the new type is handled", |seen| seen.handled() > 0)
        .await;
    assert!(
        effects(&database.pool).await < 60,
        "an older member has no handler for it"
    );
    old.stop().await;
    until_effects(&database.pool, 60).await;
    publish_both_types(&place, 20, 4).await;
    until_effects(&database.pool, 120).await;
    until_nothing_is_parked(&database.pool).await;
    new.stop().await;
    assert_once_and_in_order(&database.pool, 20, 6).await;
}

/// If parking would break the order, the events wait in place.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_type_waits_in_place_where_the_whole_partition_is_in_order_or_nothing_is() {
    for order in [Order::Partition, Order::None] {
        let (database, place) = (migrated_database().await, Place::new(4).await);
        create_effects(&database.pool).await;
        let old = start!(old_version(&place, &database, order));
        old.until("it runs", |seen| seen.partitions().len() == 4)
            .await;
        let new = start!(new_version(&place, &database, order));
        until_both_have_partitions(&old, &new).await;
        publish_both_types(&place, 20, 1).await;
        old.until("something waits", |seen| {
            seen.partitions()
                .iter()
                .any(|partition| partition.unfinished > 0)
        })
        .await;
        assert_eq!(
            (old.statistics.unknown_types(), parked(&database.pool).await),
            (0, 0),
            "{order:?}"
        );
        old.stop().await;
        until_effects(&database.pool, 60).await;
        new.stop().await;
        let distinct: i64 =
            sqlx::query_scalar("select count(distinct (account, version)) from effect")
                .fetch_one(&database.pool)
                .await
                .expect("the query succeeds");
        assert_eq!(
            (effects(&database.pool).await, distinct),
            (60, 60),
            "{order:?}"
        );
        if order == Order::Partition {
            assert_once_and_in_order(&database.pool, 20, 3).await;
        }
    }
}

/// The newer member restarts while the older one has all partitions.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_type_is_kept_while_its_only_member_restarts() {
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    let old = start!(old_version(&place, &database, Order::Aggregate));
    old.until("it runs", |seen| seen.partitions().len() == 2)
        .await;
    let new = start!(new_version(&place, &database, Order::Aggregate));
    new.until("it has partitions", |seen| !seen.partitions().is_empty())
        .await;
    new.stop().await;
    publish_both_types(&place, 10, 1).await;
    old.until("the new type waits", |seen| {
        seen.waiting_for_another_version() == 10
    })
    .await;
    assert_eq!(effects(&database.pool).await, 10, "later events wait too");
    let new = start!(new_version(&place, &database, Order::Aggregate));
    old.stop().await;
    until_effects(&database.pool, 30).await;
    new.stop().await;
    assert_once_and_in_order(&database.pool, 10, 3).await;
}

/// One version removes a handler, so that no instance handles the type.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_no_instance_handles_any_more_is_skipped_and_counted() {
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    let both = start!(new_version(&place, &database, Order::Aggregate));
    both.until("it runs", |seen| seen.partitions().len() == 2)
        .await;
    both.stop().await;
    let less = start!(old_version(&place, &database, Order::Aggregate).code_version("2.0"));
    publish_both_types(&place, 10, 1).await;
    less.until("all have ended", |seen| {
        seen.handled() == 20 && seen.unknown_types() == 10
    })
    .await;
    assert_eq!(less.statistics.waiting_for_another_version(), 0);
    let registered: (String, Vec<String>, Vec<String>, bool) = sqlx::query_as(
        "select version, types, topics, stopped_at is null \
         and seen_at > now() - interval '1 minute' from tidings.subscriber \
         where consumer = $1 order by started_at desc limit 1",
    )
    .bind(&place.group)
    .fetch_one(&database.pool)
    .await
    .expect("it is registered");
    assert!(
        registered.0.starts_with("2.0 ") && registered.2.contains(&place.topic) && registered.3,
        "{registered:?}"
    );
    assert_eq!(registered.1, ["Changed"]);
    less.stop().await;
    let stopped: i64 = sqlx::query_scalar(
        "select count(*) from tidings.subscriber where consumer = $1 and stopped_at is not null",
    )
    .bind(&place.group)
    .fetch_one(&database.pool)
    .await
    .expect("the query succeeds");
    assert_eq!(stopped, 2);
}
