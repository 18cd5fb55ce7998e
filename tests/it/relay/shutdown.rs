//! The end of a relay whose producer fails, or whose events are not durable in time.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use dev_services::KafkaOptions;
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, Producer as _},
};

use super::operator::{delivered, insert, published};
use crate::support::running::{Place, Running};
use crate::support::services::{migrated_database, own_kafka, signal};

/// Time limit of a call of a Kafka client, and of a wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fences off the producers of a place's relay, as another relay of the same name would.
async fn fence_off(place: &Place) {
    let id = format!("tidings.relay.{}.{}", place.name, place.mark);
    let ids = ["", "-2", "-3"].map(|suffix| format!("{id}{suffix}"));
    let brokers = place.brokers.clone();
    let fencing = tokio::task::spawn_blocking(move || {
        for id in ids {
            let other: BaseProducer = ClientConfig::new()
                .set("bootstrap.servers", &brokers)
                .set("transactional.id", id)
                .create()
                .expect("a client");
            other
                .init_transactions(PATIENCE)
                .expect("the coordinator answers");
        }
    });
    fencing.await.expect("the calls do not panic");
}

/// Waits until a record of the relay is in flight.
async fn until_in_flight(relay: &Running) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while relay
        .observer
        .metrics_text()
        .lines()
        .any(|line| line == "tidings_relay_in_flight_events 0")
    {
        assert!(tokio::time::Instant::now() < until, "no record is sent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asserts that every event of `ids` is delivered once by the next relay.
async fn the_next_relay_delivers_once(place: &Place, ids: std::ops::RangeInclusive<i64>) {
    let relay = place.start();
    place
        .reader()
        .until_distinct(usize::try_from(*ids.end()).expect("a few"));
    relay.stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        ids.map(|id| (id, 1)).collect::<Vec<_>>()
    );
}

/// The last position is then the only record that fails, and nothing is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_fenced_off_while_nothing_is_in_flight_ends_without_an_error() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    for round in 1..=4 {
        let relay = place.start();
        relay.says("stream", "streaming").await;
        insert(&database.pool, round..=round).await;
        place
            .reader()
            .until_distinct(usize::try_from(round).expect("a few"));
        fence_off(&place).await;
        assert_eq!(relay.stopped().await, None, "round {round}");
    }
    the_next_relay_delivers_once(&place, 1..=4).await;
}

/// The broker answers only after the relay has begun to drain, and refuses the records then.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_producer_fails_while_it_drains_names_the_failure_and_not_the_grace() {
    let mut kafka = own_kafka(KafkaOptions::new()).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    let mut options = place.options();
    options.shutdown_grace = PATIENCE;
    let relay = Running::start(options);
    relay.says("stream", "streaming").await;
    insert(&database.pool, 1..=3).await;
    published(&database.pool, &place, 3).await;
    fence_off(&place).await;
    kafka.pause().expect("the broker stops");
    insert(&database.pool, 4..=4).await;
    until_in_flight(&relay).await;
    let ended = tokio::spawn(relay.stopped());
    tokio::time::sleep(Duration::from_secs(1)).await;
    kafka.resume().expect("the broker continues");
    let text = ended
        .await
        .expect("no panic")
        .expect("events are in flight");
    assert!(
        text.starts_with("1 events were sent and are not durable: the producer is fenced off")
            && text.contains("a longer shutdown grace does not help")
            && text.contains("the next run"),
        "{text}"
    );
    the_next_relay_delivers_once(&place, 1..=4).await;
}

/// Returns the number of events that the database records as published.
async fn count_published(pool: &sqlx::PgPool, place: &Place) -> i64 {
    sqlx::query_scalar("select published from tidings.relay where name = $1")
        .bind(&place.name)
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

/// Ends a relay process with SIGTERM. Returns its exit code and its output.
async fn terminated(child: std::process::Child) -> (Option<i32>, String) {
    signal(child.id(), "TERM");
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
    let Output { status, stderr, .. } = waiting
        .await
        .expect("no panic")
        .expect("the process can be waited for");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Events that are acknowledged and not committed are in flight too.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_does_not_end_within_the_grace_is_named_with_its_events() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let mut command = place.prepared(&["relay", "--listen", "off", "--create-topics"]);
    command
        .env("TIDINGS_ROUTING_TOPIC", &place.topic)
        .env("TIDINGS_TOPICS_PARTITIONS", "4")
        .env("TIDINGS_SHUTDOWN_GRACE", "2s")
        .env("TIDINGS_TEST_HANG_IN", "commit_transaction:4")
        .stderr(Stdio::piped());
    let child = command.spawn().expect("the binary starts");
    insert(&database.pool, 1..=1).await;
    published(&database.pool, &place, 1).await;
    // Each event has a transaction, until a commit hangs.
    let mut last = 1;
    while last < 10 + count_published(&database.pool, &place).await {
        last += 1;
        insert(&database.pool, last..=last).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(last < 200, "no commit hangs");
    }
    let (code, log) = terminated(child).await;
    assert_eq!(code, Some(4), "{log}");
    let line = log.lines().rfind(|line| line.contains("events were sent"));
    let line = line.unwrap_or_else(|| panic!("no error: {log}"));
    assert!(
        line.contains("were not durable within the shutdown grace of 2s (it waited for Kafka")
            && !line.contains(" 0 events"),
        "{log}"
    );
    the_next_relay_delivers_once(&place, 1..=last).await;
}
