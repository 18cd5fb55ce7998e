//! Topics that are created late, deleted, recreated, or lose their oldest records while subscribers
//! run.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tidings::health::{Check, Status, SubscriberCheck};
use tidings::subscriber::{Escalation, Event, HandlerError, Meta, Retry, SubscriberState, Tx};
use tidings::{Bus, kafka};
use uuid::Uuid;

use crate::support::place::{
    Changed, Place, assert_once_and_in_order, count, create_effects, start, until_effects,
};
use crate::support::records::{
    Reader, admin, alter_topic, create_topic, create_topic_with, delete_topic,
};
use crate::support::services::{brokers, migrated_database};

/// Time limit for the discovery of a new topic: a third of the interval of the client's own
/// refresh.
const SOON: Duration = Duration::from_secs(10);

fn quick(attempts: u32) -> Retry {
    Retry::exponential(
        attempts,
        Duration::from_millis(5)..Duration::from_millis(20),
    )
}

/// This also holds next to a topic that exists.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_created_later_is_read_within_seconds() {
    let (database, place, late) = (
        migrated_database().await,
        Place::new(1).await,
        format!("late-{}", Uuid::now_v7().simple()),
    );
    create_effects(&database.pool).await;
    let alone = Place {
        bus: place.bus.clone(),
        brokers: brokers(),
        topic: late.clone(),
        group: format!("{}-alone", place.group),
    };
    let running = start!(
        place
            .subscriber::<()>()
            .topic::<Changed>(&late)
            .on(count)
            .inbox(database.pool.clone())
    );
    let waiting = start!(
        alone
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    );
    running
        .until("it runs", |seen| seen.state() == SubscriberState::Running)
        .await;
    place.publish(1, 1..=1).await;
    until_effects(&database.pool, 1).await;
    let waits_for =
        |reason: String| reason.contains("no topic exists yet") && reason.contains(&late);
    waiting
        .until("its state names the missing topic", |seen| {
            seen.reason().is_some_and(waits_for)
        })
        .await;
    assert_eq!(waiting.statistics.state(), SubscriberState::Starting);
    create_topic(&place.brokers, &late, 2).await;
    let created = Instant::now();
    alone.publish(1, 2..=3).await;
    until_effects(&database.pool, 1 + 2 * 2).await;
    assert!(created.elapsed() < SOON, "{:?}", created.elapsed());
    assert_eq!(waiting.statistics.state(), SubscriberState::Running);
    running.stop().await;
    waiting.stop().await;
}

async fn fail(_: Event<Changed>) -> Result<(), HandlerError> {
    Err(HandlerError::retry("broken"))
}

async fn setting(brokers: &str, topic: &str, name: &str) -> Option<String> {
    let answer = admin(brokers)
        .describe_configs([&ResourceSpecifier::Topic(topic)], &AdminOptions::new())
        .await
        .expect("an answer");
    answer[0]
        .as_ref()
        .expect("the topic is described")
        .get(name)
        .and_then(|entry| entry.value.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_is_deleted_is_created_again_like_its_origin() {
    let place = Place::new(3).await;
    alter_topic(
        &place.brokers,
        &place.topic,
        &[("max.message.bytes", "3000000")],
    )
    .await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(fail)
            .retry(Retry::never())
            .kill_switch(None)
    );
    let letters = format!("{}.{}.dlt", place.topic, place.group);
    for round in 1..=3 {
        place.publish(4, round..=round).await;
        running
            .until("they are dead", |seen| {
                seen.dead_lettered() == 4 * round as u64 && !seen.is_paused()
            })
            .await;
        let mut reader = Reader::new(&place.brokers, &letters);
        assert_eq!(
            (reader.partitions(), reader.read_to_the_end().len()),
            (3, 4),
            "round {round}"
        );
        assert_eq!(
            setting(&place.brokers, &letters, "max.message.bytes")
                .await
                .as_deref(),
            Some("3000000")
        );
        delete_topic(&place.brokers, &letters).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_topic_that_is_deleted_is_created_again_and_read() {
    let place = Place::new(2).await;
    let delay = Duration::from_millis(100);
    let running = start!(
        place
            .subscriber::<()>()
            .on(fail)
            .retry(Retry::never())
            .kill_switch(None)
            .escalation(Escalation::retry_topics([delay]))
    );
    let retries = format!("{}.{}.retry.100ms", place.topic, place.group);
    for round in 1..=2 {
        place.publish(4, round..=round).await;
        running
            .until("they are retried and dead", |seen| {
                seen.dead_lettered() == 4 * round as u64 && !seen.is_paused()
            })
            .await;
        delete_topic(&place.brokers, &retries).await;
    }
    running.stop().await;
}

/// Deletes the records of partition 0 before this offset, as retention does.
async fn remove_before(place: &Place, offset: i64) {
    let mut offsets = TopicPartitionList::new();
    offsets
        .add_partition_offset(&place.topic, 0, Offset::Offset(offset))
        .expect("a partition");
    admin(&place.brokers)
        .delete_records(&offsets, &AdminOptions::new())
        .await
        .expect("the rows are deleted");
}

async fn health(running: &crate::support::place::Running) -> Status {
    SubscriberCheck::new(&running.statistics).check().await
}

/// Records beyond the committed offset are removed while the subscriber is down or paused.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_removed_before_they_are_read_are_counted_and_reported() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let build = || {
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
            .retry(quick(2))
    };
    place.publish(1, 1..=5).await;
    let first = start!(build());
    first
        .until("the first are handled", |seen| seen.handled() == 5)
        .await;
    assert!(matches!(health(&first).await, Status::Ok(_)));
    first.stop().await;
    place.publish(1, 6..=30).await;
    remove_before(&place, 20).await;
    let second = start!(build());
    second
        .until("the rest is handled", |seen| seen.handled() == 10)
        .await;
    assert_eq!(second.statistics.removed_unread(), 15);
    let Status::Degraded(text) = health(&second).await else {
        panic!("the check does not report the loss")
    };
    assert!(text.contains(&format!("{}: 15", place.topic)), "{text}");
    second.stop().await;
    // The offset is committed beyond the gap, so the loss is reported only once.
    let third = start!(build());
    place.publish(1, 31..=31).await;
    third
        .until("the next is handled", |seen| seen.handled() == 1)
        .await;
    assert_eq!(third.statistics.removed_unread(), 0);
    third.stop().await;
    let versions: Vec<i32> = sqlx::query_scalar("select version from effect order by seq")
        .fetch_all(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(versions, (1..=5).chain(21..=31).collect::<Vec<_>>());
}

/// All records are removed. The loss is reported once, although no other record arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_records_are_all_removed_is_reported_once() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let build = || {
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    };
    place.publish(1, 1..=2).await;
    let first = start!(build());
    first
        .until("the first are handled", |seen| seen.handled() == 2)
        .await;
    first.stop().await;
    place.publish(1, 3..=9).await;
    remove_before(&place, 9).await;
    let second = start!(build());
    second
        .until("the loss is counted", |seen| seen.removed_unread() == 7)
        .await;
    second.stop().await;
    let third = start!(build());
    third
        .until("it has its partition", |seen| !seen.partitions().is_empty())
        .await;
    place.publish(1, 10..=10).await;
    until_effects(&database.pool, 3).await;
    assert_eq!(third.statistics.removed_unread(), 0);
    third.stop().await;
}

/// The recreated topic has fewer records than the group has read.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_created_again_is_read_from_its_beginning() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    );
    place.publish(1, 1..=8).await;
    until_effects(&database.pool, 8).await;
    delete_topic(&place.brokers, &place.topic).await;
    create_topic_with(&place.brokers, &place.topic, 1, &[]).await;
    place.publish(1, 9..=11).await;
    until_effects(&database.pool, 11).await;
    assert_eq!(running.statistics.removed_unread(), 0);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 1, 11).await;
}

/// The recreated topic has more records than the group has read, and the client's position is valid
/// in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_created_again_with_more_records_is_read_from_its_beginning() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    );
    let mut version = 1;
    for _ in 0..3 {
        let until = version + 2 + version;
        place.publish(1, version..=until).await;
        until_effects(&database.pool, i64::from(until)).await;
        version = until + 1;
        delete_topic(&place.brokers, &place.topic).await;
        create_topic_with(&place.brokers, &place.topic, 1, &[]).await;
    }
    place.publish(1, version..=version).await;
    until_effects(&database.pool, i64::from(version)).await;
    running.stop().await;
    assert_once_and_in_order(&database.pool, 1, version).await;
}

/// Has its effect in the retry topic alone.
async fn second_time(event: Event<Changed>, meta: Meta, tx: Tx) -> Result<(), HandlerError> {
    if meta.attempt() == 1 {
        return Err(HandlerError::retry("the first time"));
    }
    count(event, meta, tx).await
}

/// One member creates the retry topic again while the other one owns partitions of it and has not
/// noticed the deletion.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_topic_that_is_deleted_while_members_run_loses_no_event() {
    let (database, place) = (migrated_database().await, Place::new(4).await);
    create_effects(&database.pool).await;
    let build = || {
        // Each member has its own bus, as in its own process.
        let bus = Bus::new(kafka::Settings {
            brokers: place.brokers.clone(),
            ..kafka::Settings::default()
        });
        bus.subscriber::<()>(&place.group)
            .topic::<Changed>(&place.topic)
            .on(second_time)
            .inbox(database.pool.clone())
            .retry(Retry::never())
            .kill_switch(None)
            .escalation(Escalation::retry_topics([Duration::from_millis(100)]))
    };
    let members = [start!(build()), start!(build())];
    for member in &members {
        member
            .until("it has partitions", |seen| !seen.partitions().is_empty())
            .await;
    }
    let retries = format!("{}.{}.retry.100ms", place.topic, place.group);
    for round in 1..=4 {
        place.publish(16, round..=round).await;
        until_effects(&database.pool, i64::from(16 * round)).await;
        delete_topic(&place.brokers, &retries).await;
    }
    for member in members {
        member.stop().await;
    }
    assert_once_and_in_order(&database.pool, 16, 4).await;
}

/// A member that had not noticed the deletion committed its old offset in the new topic, and was
/// killed.
#[tokio::test(flavor = "multi_thread")]
async fn an_offset_of_a_deleted_topic_is_ignored() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let build = || {
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    };
    place.publish(1, 1..=3).await;
    let first = start!(build());
    until_effects(&database.pool, 3).await;
    first.stop().await;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .set("group.id", &place.group)
        .create()
        .expect("a consumer");
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition(&place.topic, 0);
    let stale = consumer
        .committed_offsets(partitions, SOON)
        .expect("the coordinator answers");
    assert_eq!(stale.elements()[0].offset(), Offset::Offset(3));
    delete_topic(&place.brokers, &place.topic).await;
    create_topic_with(&place.brokers, &place.topic, 1, &[]).await;
    place.publish(1, 4..=8).await;
    consumer
        .commit(&stale, CommitMode::Sync)
        .expect("the coordinator accepts the offset");
    let second = start!(build());
    until_effects(&database.pool, 8).await;
    second.stop().await;
    assert_once_and_in_order(&database.pool, 1, 8).await;
}
