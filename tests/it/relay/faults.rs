//! Failure and recovery of the broker, the database, a connection or a topic.

use std::time::Duration;

use dev_services::{KafkaOptions, PostgresOptions};

use crate::support::history::{
    Verdict, caught_up, committed, create_accounts, expected, judge, with_accounts,
    write_concurrently,
};
use crate::support::running::{Place, Running};
use crate::support::services::{migrated_database, migrated_database_on, own_kafka, own_postgres};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stops_and_starts_costs_no_event_and_no_order() {
    let mut kafka = own_kafka(KafkaOptions::new()).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    create_accounts(&database.pool, 6).await;
    let relay = place.start();
    write_concurrently(&database.pool, 2, 6, 40).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    kafka.kill().expect("the kill succeeds");
    write_concurrently(&database.pool, 2, 6, 40).await;
    relay.says("kafka", "wait in the outbox").await;
    let kafka = tokio::task::spawn_blocking(move || kafka.start_again().map(|()| kafka))
        .await
        .expect("the task does not panic")
        .expect("the service restarts");
    write_concurrently(&database.pool, 2, 6, 40).await;
    caught_up(&database.pool, &mut reader).await;
    relay.says("kafka", "connected").await;
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
    drop(kafka);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_restarts_is_followed_again_without_a_repeat() {
    let mut postgres = own_postgres(PostgresOptions::new()).await;
    let database = migrated_database_on(&postgres.url()).await;
    let place = Place::new(&database);
    create_accounts(&database.pool, 6).await;
    let relay = place.start();
    write_concurrently(&database.pool, 2, 6, 60).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    for hard in [false, true] {
        let done = tokio::task::spawn_blocking(move || {
            if hard {
                postgres.kill()
            } else {
                postgres.stop()
            }
            .and_then(|()| postgres.start_again())
            .map(|()| postgres)
        });
        postgres = done
            .await
            .expect("the task does not panic")
            .expect("the service restarts");
        while sqlx::query("select 1")
            .execute(&database.pool)
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        write_concurrently(&database.pool, 2, 6, 60).await;
        caught_up(&database.pool, &mut reader).await;
    }
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_again_and_again_under_load_repeats_nothing_while_kafka_answers() {
    let (database, place) = with_accounts(6).await;
    let relay = place.start();
    relay.says("stream", "streaming").await;
    let writing = tokio::spawn({
        let pool = database.pool.clone();
        async move { write_concurrently(&pool, 3, 6, 500).await }
    });
    let cut = "select count(pg_terminate_backend(active_pid)) from pg_replication_slots \
        where database = current_database() and active_pid is not null";
    let mut cuts = 0;
    while !writing.is_finished() {
        cuts += sqlx::query_scalar::<_, i64>(cut)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    writing.await.expect("the writers end without an error");
    assert!(cuts > 1, "the stream was cut {cuts} times");
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_broker_does_not_look_to_postgres_like_a_dead_relay() {
    let options = PostgresOptions::new().set("wal_sender_timeout", "3s");
    let postgres = own_postgres(options).await;
    let mut kafka = own_kafka(KafkaOptions::new()).await;
    let database = migrated_database_on(&postgres.url()).await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    create_accounts(&database.pool, 6).await;
    let mut options = place.options();
    options.in_flight_events_max = 50;
    let relay = Running::start(options);
    write_concurrently(&database.pool, 2, 6, 20).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    relay.says("stream", "streaming").await;
    let walsender = "select active_pid from pg_replication_slots where slot_name = $1";
    let before: Option<i32> = sqlx::query_scalar(walsender)
        .bind(place.slot())
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    kafka.pause().expect("the broker is paused");
    // More events than the window holds, so that the relay blocks in the middle of the stream.
    write_concurrently(&database.pool, 2, 6, 100).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let after: Option<i32> = sqlx::query_scalar(walsender)
        .bind(place.slot())
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    kafka.resume().expect("the broker resumes");
    assert!(
        before.is_some() && before == after,
        "the walsender {before:?} became {after:?}"
    );
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

/// Broker and relay die while records are in flight. Neither delivery guarantee lets the stored
/// position pass a record that the broker has not acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_dying_broker_has_not_acknowledged_are_sent_by_the_next_relay() {
    for delivery in ["at-least-once", "exactly-once"] {
        let mut kafka = own_kafka(KafkaOptions::new()).await;
        let database = migrated_database().await;
        let place = Place {
            brokers: kafka.brokers(),
            ..Place::new(&database)
        };
        create_accounts(&database.pool, 6).await;
        let mut relay = place.spawn_with(&[("TIDINGS_DELIVERY", delivery)]);
        write_concurrently(&database.pool, 2, 6, 20).await;
        caught_up(&database.pool, &mut place.reader()).await;
        kafka.pause().expect("the broker stops");
        write_concurrently(&database.pool, 2, 6, 20).await;
        // The relay stores its position once a second.
        tokio::time::sleep(Duration::from_secs(4)).await;
        kafka.kill().expect("the kill succeeds");
        relay.kill();
        let kafka = tokio::task::spawn_blocking(move || kafka.start_again().map(|()| kafka))
            .await
            .expect("the task does not panic")
            .expect("the service restarts");
        let _last = place.spawn_with(&[("TIDINGS_DELIVERY", delivery)]);
        let committed = committed(&database.pool).await;
        let mut reader = place.reader();
        reader.until_distinct(expected(&committed));
        let verdict = judge(&committed, reader.read_to_the_end());
        assert_eq!((verdict.lost, verdict.misordered), (0, 0), "{delivery}");
        drop(kafka);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_waited_for_by_name_and_nothing_is_lost() {
    let (database, place) = with_accounts(3).await;
    let mut options = place.options();
    options.topics.create = false;
    let relay = Running::start(options);
    write_concurrently(&database.pool, 1, 3, 10).await;
    relay
        .says("kafka", &format!("topic `{}` does not exist", place.topic))
        .await;
    crate::support::records::create_topic(&place.brokers, &place.topic, 2).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_relay_notices_that_kafka_is_back() {
    let mut kafka = own_kafka(KafkaOptions::new()).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    create_accounts(&database.pool, 2).await;
    let relay = place.start();
    write_concurrently(&database.pool, 1, 2, 3).await;
    caught_up(&database.pool, &mut place.reader()).await;
    kafka.kill().expect("the kill succeeds");
    relay.says("kafka", "wait in the outbox").await;
    let kafka = tokio::task::spawn_blocking(move || kafka.start_again().map(|()| kafka))
        .await
        .expect("the task does not panic")
        .expect("the service restarts");
    relay.says("kafka", "connected").await;
    relay.stop().await;
    drop(kafka);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_grows_does_not_move_a_key() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    crate::support::records::create_topic(&place.brokers, &place.topic, 2).await;
    create_accounts(&database.pool, 20).await;
    let relay = place.start();
    write_concurrently(&database.pool, 1, 20, 40).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    relay.stop().await;
    crate::support::records::grow_topic(&place.brokers, &place.topic, 7).await;
    let relay = place.start();
    write_concurrently(&database.pool, 1, 20, 40).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_not_made_by_asking_for_it_even_if_the_broker_would() {
    let options = KafkaOptions::new().set("auto.create.topics.enable", "true");
    let kafka = own_kafka(options).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    create_accounts(&database.pool, 2).await;
    let relay = place.start();
    write_concurrently(&database.pool, 1, 2, 3).await;
    let mut reader = place.reader();
    let records = reader
        .until_distinct(expected(&committed(&database.pool).await))
        .len();
    assert!(records > 0);
    assert_eq!(
        reader.partitions(),
        4,
        "with the relay's settings, not with the broker's defaults"
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_went_back_in_time_under_a_running_relay_is_noticed() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    relay.says("stream", "streaming").await;
    // After the restore of a storage snapshot, the row is older than the relay's last write to it.
    sqlx::raw_sql(
        "update tidings.relay set epoch = 0;
         select pg_terminate_backend(active_pid) from pg_replication_slots \
         where database = current_database()",
    )
    .execute(&database.pool)
    .await
    .expect("cut");
    let text = relay.refusal().await;
    assert!(text.contains("back in time"), "{text}");
    place.start().stop().await;
}
