//! Kafka transactions that fail while events are under way.

use std::time::Duration;

use dev_services::KafkaOptions;

use super::{
    history::{Verdict, caught_up, create_accounts, write_concurrently},
    records::{create_topic, delete_topic},
    running::{Place, Running},
};
use crate::services::{migrated_database, own_kafka};

/// Waits until a session has ended because of Kafka.
async fn session_ends(relay: &Running) {
    for _ in 0..6000 {
        if relay.observer.metrics_text().lines().any(|line| line.starts_with("tidings_relay_reconnects_total{side=\"kafka\"}")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no session ended: {:?}", relay.observer.checks());
}

/// Case B1.
#[tokio::test(flavor = "multi_thread")]
async fn a_transactional_id_that_the_broker_has_forgotten_costs_no_event_and_repeats_none() {
    let options = KafkaOptions::new()
        .set("transactional.id.expiration.ms", "2000")
        .set("transaction.remove.expired.transaction.cleanup.interval.ms", "200");
    let kafka = own_kafka(options).await;
    let database = migrated_database().await;
    let place = Place { brokers: kafka.brokers(), ..Place::new(&database) };
    create_accounts(&database.pool, 4).await;
    let relay = place.start();
    write_concurrently(&database.pool, 1, 4, 10).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    // Longer than the broker keeps an idle id, several times.
    tokio::time::sleep(Duration::from_secs(8)).await;
    write_concurrently(&database.pool, 2, 4, 20).await;
    session_ends(&relay).await;
    assert_eq!(relay.verdict(&database.pool, &mut reader).await, Verdict::default());
}

/// Case B2.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_deleted_and_created_again_around_events_stops_no_other_topic() {
    let kafka = own_kafka(KafkaOptions::new()).await;
    let database = migrated_database().await;
    let place = Place { brokers: kafka.brokers(), ..Place::new(&database) };
    let doomed = format!("{}-doomed", place.topic);
    create_topic(&place.brokers, &doomed, 4).await;
    create_accounts(&database.pool, 4).await;
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
    assert_eq!(relay.verdict(&database.pool, &mut reader).await, Verdict::default());
}

async fn insert_into(pool: &sqlx::PgPool, topic: &str, id: i32) {
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, topic) values ('doomed', $1, 'Made', '{}', $2)";
    sqlx::query(insert).bind(id.to_string()).bind(topic).execute(pool).await.expect("inserted");
}
