//! Failures of Kafka transactions while events are in flight.

use std::time::Duration;

use dev_services::{Kafka, KafkaOptions};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use tidings::relay::OnUndeliverable;

use crate::support::eventually::{PATIENCE, eventually};
use crate::support::history::{
    Verdict, caught_up, committed, create_accounts, expected, judge, write_concurrently,
};
use crate::support::records::{Reader, alter_topic, create_topic, delete_topic};
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database, own_kafka};

/// Starts a dedicated broker and creates accounts and a place that uses the broker.
async fn beside(options: KafkaOptions) -> (Kafka, TestDatabase, Place) {
    let kafka = own_kafka(options).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    create_accounts(&database.pool, 4).await;
    (kafka, database, place)
}

/// Waits until a session has ended because of Kafka.
async fn session_ends(relay: &Running) {
    eventually("a session ends", async || {
        let reconnects = "tidings_relay_reconnects_total{side=\"kafka\"}";
        let metrics = relay.observer.metrics_text();
        let has_ended = metrics.lines().any(|line| line.starts_with(reconnects));
        has_ended
            .then_some(())
            .ok_or_else(|| relay.observer.checks())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transactional_id_that_the_broker_has_forgotten_costs_no_event_and_repeats_none() {
    let options = KafkaOptions::new()
        .set("transactional.id.expiration.ms", "2000")
        .set(
            "transaction.remove.expired.transaction.cleanup.interval.ms",
            "200",
        );
    let (_kafka, database, place) = beside(options).await;
    let relay = place.start();
    write_concurrently(&database.pool, 1, 4, 10).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    // Several times longer than the broker keeps an idle transactional id.
    tokio::time::sleep(Duration::from_secs(8)).await;
    write_concurrently(&database.pool, 2, 4, 20).await;
    session_ends(&relay).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

/// A topic that refuses even the markers of the broker keeps a transaction open. A broker whose
/// clock is set back does the same, by chance.
#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_transaction_that_the_brokers_do_not_end_is_named_and_waited_for() {
    let (mut kafka, database, place) = beside(KafkaOptions::new()).await;
    let refusing = format!("{}-refusing", place.topic);
    create_topic(&place.brokers, &refusing, 1).await;
    let earlier: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .set(
            "transactional.id",
            format!("tidings.relay.{}.{}", place.name, place.mark),
        )
        .create()
        .expect("a producer");
    earlier.init_transactions(PATIENCE).expect("initialized");
    earlier.begin_transaction().expect("begun");
    let record = BaseRecord::to(&refusing).key("k").payload("{}");
    let sent = earlier.send(record).map_err(|(error, _)| error);
    sent.expect("queued");
    earlier.flush(PATIENCE).expect("acknowledged");
    let limit = "message.timestamp.before.max.ms";
    alter_topic(&place.brokers, &refusing, &[(limit, "0")]).await;
    earlier.commit_transaction(PATIENCE).expect("accepted");

    let relay = place.start();
    write_concurrently(&database.pool, 1, 4, 10).await;
    relay
        .says("kafka", "do not end an earlier transaction")
        .await;
    // The remedy of docs/operating.md.
    alter_topic(&place.brokers, &refusing, &[(limit, "9223372036854775807")]).await;
    kafka.stop().expect("the broker stops");
    kafka.start_again().expect("the broker starts again");
    let mut reader = place.reader();
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_deleted_and_created_again_around_events_stops_no_other_topic() {
    let (_kafka, database, place) = beside(KafkaOptions::new()).await;
    let doomed = format!("{}-doomed", place.topic);
    create_topic(&place.brokers, &doomed, 4).await;
    let relay = place.start();
    let mut reader = place.reader();
    for round in 0..8 {
        insert_into(&database.pool, &doomed, round * 10).await;
        delete_topic(&place.brokers, &doomed).await;
        insert_into(&database.pool, &doomed, round * 10 + 1).await;
        create_topic(&place.brokers, &doomed, 4).await;
        write_concurrently(&database.pool, 1, 4, 5).await;
        caught_up(&database.pool, &mut reader).await;
    }
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

async fn insert_into(pool: &sqlx::PgPool, topic: &str, id: i32) {
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, topic) \
        values ('doomed', $1, 'Made', '{}', $2)";
    sqlx::query(insert)
        .bind(id.to_string())
        .bind(topic)
        .execute(pool)
        .await
        .expect("the insert succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_dead_letters_that_is_deleted_stops_nothing_and_gets_the_next_letter() {
    let (_kafka, database, place) = beside(KafkaOptions::new()).await;
    let mut options = place.options();
    options.message_bytes_max = 10_000;
    options.undeliverable.policy = OnUndeliverable::DeadLetter;
    let relay = Running::start(options);
    let dead = format!("{}.dead", place.topic);
    let mut reader = place.reader();
    for id in ["one", "two"] {
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
            values ('large', $1, 'Made', to_json(repeat('x', 20000)))";
        sqlx::query(insert)
            .bind(id)
            .execute(&database.pool)
            .await
            .expect("the insert succeeds");
        write_concurrently(&database.pool, 1, 4, 5).await;
        caught_up(&database.pool, &mut reader).await;
        let letters = Reader::new(&place.brokers, &dead)
            .until_distinct(1)
            .to_vec();
        assert_eq!(letters[0].key, id.as_bytes());
        delete_topic(&place.brokers, &dead).await;
    }
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_allow_short_transactions_only_are_adapted_to() {
    let (_kafka, database, place) =
        beside(KafkaOptions::new().set("transaction.max.timeout.ms", "10000")).await;
    let relay = place.start();
    write_concurrently(&database.pool, 2, 4, 20).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

/// Returns the options of a broker that ends transactions after two seconds.
fn hasty() -> KafkaOptions {
    KafkaOptions::new()
        .set("transaction.max.timeout.ms", "2000")
        .set(
            "transaction.abort.timed.out.transaction.cleanup.interval.ms",
            "200",
        )
}

/// The coordinator ends the transaction of a suspended process.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_was_suspended_for_longer_than_its_transaction_repeats_nothing() {
    let (_kafka, database, place) = beside(hasty()).await;
    let relay = place.spawn();
    let mut reader = place.reader();
    for _ in 0..3 {
        let writing = tokio::spawn({
            let pool = database.pool.clone();
            async move { write_concurrently(&pool, 2, 4, 100).await }
        });
        let seen = reader.until_more_than(0);
        reader.until_more_than(seen);
        signal(relay.pid(), "STOP");
        tokio::time::sleep(Duration::from_secs(5)).await;
        signal(relay.pid(), "CONT");
        writing.await.expect("the writers end without an error");
        caught_up(&database.pool, &mut reader).await;
    }
    drop(relay);
    assert_eq!(
        judge(&committed(&database.pool).await, reader.read_to_the_end()),
        Verdict::default()
    );
}

fn signal(pid: u32, name: &str) {
    let done = std::process::Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    assert!(done.expect("kill runs").success());
}

/// Asserts that a relay publishes everything once, with a new client, after its Kafka client does
/// not return from a call.
async fn hangs_in(call: &str) {
    let (_kafka, database, place) = beside(hasty()).await;
    let relay = place.spawn_with(&[("TIDINGS_TEST_HANG_IN", call)]);
    let mut reader = place.reader();
    write_concurrently(&database.pool, 2, 4, 30).await;
    // The calls have limits of up to a minute, and each session may reach one of them.
    let until = tokio::time::Instant::now() + Duration::from_secs(240);
    let committed = committed(&database.pool).await;
    while reader.until_more_than(expected(&committed) - 1) < expected(&committed) {
        assert!(
            tokio::time::Instant::now() < until,
            "the relay does not return from {call}"
        );
    }
    drop(relay);
    assert_eq!(
        judge(&committed, reader.read_to_the_end()),
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_while_it_commits_is_replaced() {
    hangs_in("commit_transaction:2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_while_it_fences_off_others_is_replaced() {
    hangs_in("init_transactions:2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_while_it_asks_for_topics_is_replaced() {
    hangs_in("fetch_metadata:2").await;
}

/// The client then sends records and reports nothing about them.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_thread_for_reports_hangs_is_replaced() {
    // The first session, with three producers, ends at once: its transactions are too long.
    hangs_in("producer_poll:5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_while_it_reads_positions_is_replaced() {
    hangs_in("consumer_poll:1").await;
}
