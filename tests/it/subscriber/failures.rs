//! Failures: retries in place, parking, retry topics, dead letters, and outages, which are not the
//! fault of an event.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dev_services::{KafkaOptions, PostgresOptions};
use tidings::subscriber::{
    Escalation, Event, HandlerError, KillSwitch, Meta, Order, Retry, State, SubscriberState, Tx,
};

use crate::support::place::{
    Changed, Place, assert_once_and_in_order, count, create_effects, effect, effects, start, until,
    until_effects,
};
use crate::support::records::Reader;
use crate::support::services::{migrated_database, migrated_database_on, own_kafka, own_postgres};

fn quick(attempts: u32) -> Retry {
    Retry::exponential(
        attempts,
        Duration::from_millis(5)..Duration::from_millis(20),
    )
}

/// A switch that a test turns on and off.
#[derive(Clone, Default)]
struct Switch(Arc<AtomicBool>, Arc<AtomicUsize>);

impl Switch {
    fn set(&self, on: bool) {
        self.0.store(on, Ordering::SeqCst);
    }
    fn is_on(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_or_a_panic_is_rolled_back_and_tried_again_in_order() {
    async fn third_time(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        effect(&mut tx, &changed, &meta).await?;
        match (changed.version, meta.attempt()) {
            (2, 1) => panic!("the first time"),
            (2, 2) => Err(HandlerError::retry("the second time")),
            _ => Ok(()),
        }
    }
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    place.publish(5, 1..=3).await;
    let running = start!(
        place
            .subscriber()
            .on(third_time)
            .inbox(database.pool.clone())
            .retry(quick(5))
    );
    until_effects(&database.pool, 15).await;
    running
        .until("all are handled", |seen| seen.handled() == 15)
        .await;
    assert_eq!(running.statistics.failed_attempts(), 10);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 5, 3).await;
    let attempts: Vec<i32> = sqlx::query_scalar("select attempt from effect where version = 2")
        .fetch_all(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(attempts, [3; 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_whose_event_fails_too_often_waits_in_the_database_and_keeps_its_order_through_a_restart()
 {
    async fn while_on(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
        State(broken): State<Switch>,
    ) -> Result<(), HandlerError> {
        effect(&mut tx, &changed, &meta).await?;
        if changed.account == "a1" && changed.version == 2 && broken.is_on() {
            return Err(HandlerError::retry("broken"));
        }
        Ok(())
    }
    let (database, place, broken) = (
        migrated_database().await,
        Place::new(2).await,
        Switch::default(),
    );
    create_effects(&database.pool).await;
    broken.set(true);
    place.publish(4, 1..=5).await;
    let build = || {
        let park = Escalation::Park(Retry::exponential(
            1_000,
            Duration::from_millis(50)..Duration::from_millis(50),
        ));
        place
            .subscriber()
            .on(while_on)
            .inbox(database.pool.clone())
            .state(broken.clone())
            .retry(quick(2))
            .escalation(park)
    };
    let running = start!(build());
    // Versions 2 to 5 of a1 are parked, and everything else is handled.
    running
        .until("the aggregate waits", |seen| seen.parked() == 4)
        .await;
    until_effects(&database.pool, 16).await;
    running.stop().await;
    let waiting: i64 = sqlx::query_scalar("select count(*) from tidings.subscriber_parked")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(waiting, 4);
    let running = start!(build());
    place.publish(4, 6..=6).await;
    running
        .until("a later event is parked too", |seen| seen.parked() == 1)
        .await;
    broken.set(false);
    until_effects(&database.pool, 24).await;
    until("nothing waits", async || {
        let waiting: i64 = sqlx::query_scalar("select count(*) from tidings.subscriber_parked")
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        (waiting == 0).then_some(())
    })
    .await;
    place.publish(4, 7..=7).await;
    until_effects(&database.pool, 28).await;
    assert_eq!(running.statistics.parked(), 1);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 4, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_that_never_works_is_dead_in_the_end_and_its_aggregate_goes_on() {
    async fn never(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        if changed.version == 1 {
            return Err(HandlerError::retry("never"));
        }
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(1, 1..=3).await;
    let park = Escalation::Park(quick(3));
    let running = start!(
        place
            .subscriber()
            .on(never)
            .inbox(database.pool.clone())
            .retry(quick(2))
            .escalation(park)
    );
    until_effects(&database.pool, 2).await;
    assert_eq!(
        (
            running.statistics.dead_lettered(),
            running.statistics.failed_attempts()
        ),
        (1, 5)
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_the_record_with_springs_headers_and_the_rest_goes_on() {
    async fn refuse(Event(changed): Event<Changed>) -> Result<(), HandlerError> {
        match (&*changed.account, changed.version) {
            ("a0", 2) => Err(HandlerError::dead_letter("no such account")),
            ("a1", 2) => Err(HandlerError::retry("again and again")),
            _ => Ok(()),
        }
    }
    let place = Place::new(2).await;
    place.publish(3, 1..=3).await;
    let running = start!(place.subscriber::<()>().on(refuse).retry(quick(3)));
    running
        .until("all have ended", |seen| {
            seen.handled() == 7 && seen.dead_lettered() == 2
        })
        .await;
    running.stop().await;
    let mut reader = Reader::new(
        &place.brokers,
        &format!("{}.{}.dlt", place.topic, place.group),
    );
    let records = reader.until_distinct(2);
    let by_key: HashMap<_, _> = records
        .iter()
        .map(|record| (String::from_utf8_lossy(&record.key).into_owned(), record))
        .collect();
    for (account, message, attempts) in [
        ("a0", "no such account", "1"),
        ("a1", "again and again", "3"),
    ] {
        let record = by_key[account];
        assert_eq!(
            record.text(),
            format!(r#"{{"account":"{account}","version":2}}"#)
        );
        assert_eq!(record.headers["kafka_dlt-exception-message"], message);
        assert_eq!(record.headers["kafka_dlt-original-topic"], place.topic);
        assert_eq!(
            record.headers["kafka_dlt-original-consumer-group"],
            place.group
        );
        assert_eq!(record.headers["tidings_attempts"], attempts);
        assert_eq!(record.headers["ce_type"], "Changed");
        assert!(
            record.headers.contains_key("kafka_dlt-original-partition")
                && record.headers.contains_key("kafka_dlt-original-offset")
        );
    }
    assert_eq!(reader.partitions(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_through_the_retry_topics_one_after_the_other_and_keeps_its_identity() {
    async fn at_last(
        Event(changed): Event<Changed>,
        meta: Meta,
        State(tries): State<Switch>,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        if changed.account == "a0" && tries.1.fetch_add(1, Ordering::SeqCst) < 4 {
            return Err(HandlerError::retry("not yet"));
        }
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place, tries) = (
        migrated_database().await,
        Place::new(2).await,
        Switch::default(),
    );
    create_effects(&database.pool).await;
    place.publish(2, 1..=1).await;
    let delays = [Duration::from_millis(100), Duration::from_millis(200)];
    let subscriber = place
        .subscriber()
        .on(at_last)
        .inbox(database.pool.clone())
        .state(tries.clone());
    let running = start!(
        subscriber
            .retry(quick(2))
            .escalation(Escalation::retry_topics(delays))
            .order(Order::None)
    );
    until_effects(&database.pool, 2).await;
    running
        .until("both are counted", |seen| seen.handled() == 2)
        .await;
    assert_eq!(
        (running.statistics.retried(), tries.1.load(Ordering::SeqCst)),
        (2, 5)
    );
    running.stop().await;
    for delay in ["100ms", "200ms"] {
        let topic = format!("{}.{}.retry.{delay}", place.topic, place.group);
        let record = Reader::new(&place.brokers, &topic).until_distinct(1)[0].clone();
        assert_eq!(
            record.headers["kafka_dlt-original-topic"], place.topic,
            "{delay}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_pauses_the_subscriber_and_costs_no_event_an_attempt() {
    let mut server = own_postgres(PostgresOptions::default()).await;
    let (database, place) = (
        migrated_database_on(&server.url()).await,
        Place::new(2).await,
    );
    create_effects(&database.pool).await;
    place.publish(10, 1..=3).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
            .retry(Retry::never())
    );
    until_effects(&database.pool, 30).await;
    tokio::task::block_in_place(|| server.stop()).expect("the service stops");
    place.publish(10, 4..=6).await;
    running
        .until("it pauses", |seen| {
            seen.is_paused() && seen.state() == SubscriberState::PausedByOutage
        })
        .await;
    tokio::task::block_in_place(|| server.start_again()).expect("the service starts");
    until_effects(&database.pool, 60).await;
    running.until("it resumes", |seen| !seen.is_paused()).await;
    assert_eq!(
        (
            running.statistics.failed_attempts(),
            running.statistics.dead_lettered(),
            running.statistics.parked()
        ),
        (0, 0, 0)
    );
    running.stop().await;
    assert_once_and_in_order(&database.pool, 10, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_too_many_events_fail_the_subscriber_pauses_and_goes_on_by_itself_when_one_is_handled()
{
    async fn while_on(
        Event(_): Event<Changed>,
        State(broken): State<Switch>,
    ) -> Result<(), HandlerError> {
        if broken.is_on() {
            Err(HandlerError::retry("everything fails"))
        } else {
            Ok(())
        }
    }
    let (place, broken) = (Place::new(1).await, Switch::default());
    broken.set(true);
    place.publish(100, 1..=2).await;
    let switch = KillSwitch::new(5, Duration::from_secs(60)).pause(Duration::from_millis(50));
    let running = start!(
        place
            .subscriber()
            .on(while_on)
            .state(broken.clone())
            .retry(quick(2))
            .kill_switch(switch)
            .concurrency(4)
    );
    running.until("it pauses", |seen| seen.is_paused()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        running.statistics.dead_lettered() < 5,
        "{} events are dead",
        running.statistics.dead_lettered()
    );
    broken.set(false);
    running
        .until("it resumes", |seen| {
            seen.handled() + seen.dead_lettered() == 200
        })
        .await;
    assert!(running.statistics.dead_lettered() < 5 && !running.statistics.is_paused());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_costs_nothing_but_time() {
    let mut broker = own_kafka(KafkaOptions::default()).await;
    let database = migrated_database().await;
    let place = Place::on(broker.brokers(), 2).await;
    create_effects(&database.pool).await;
    place.publish(10, 1..=3).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    );
    until_effects(&database.pool, 30).await;
    tokio::task::block_in_place(|| broker.stop()).expect("the service stops");
    tokio::task::block_in_place(|| broker.start_again()).expect("the service starts");
    place.publish(10, 4..=6).await;
    until_effects(&database.pool, 60).await;
    running.stop().await;
    assert_eq!(effects(&database.pool).await, 60);
    assert_once_and_in_order(&database.pool, 10, 6).await;
}
