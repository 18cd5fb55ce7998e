//! An event that cannot be delivered, of a table without `seq`: it is found, and nothing else is taken for it.

use tidings::relay::{OnUndeliverable, Relay, RelayError};

use super::{TABLE, insert, options};
use crate::{
    relay::{
        records::{Reader, create_topic_with},
        running::{Place, Running},
    },
    services::migrated_database,
};

#[tokio::test(flavor = "multi_thread")]
async fn one_that_the_broker_refuses_is_found_among_others_and_goes_to_the_dead_letters_or_stops_the_relay() {
    let database = migrated_database().await;
    sqlx::raw_sql(TABLE).execute(&database.pool).await.expect("created");
    let place = Place::new(&database);
    create_topic_with(&place.brokers, &place.topic, 1, &[("max.message.bytes", "20000")]).await;
    // In one transaction, so that a batch holds them together.
    let rows = "insert into public.outboxevent (aggregatetype, aggregateid, type, payload)
        select 'order', n::text, 'T', case n when 7 then repeat('x', 50000) else n::text end from generate_series(0, 19) n";
    sqlx::raw_sql(rows).execute(&database.pool).await.expect("inserted");
    let mut options = options(&place);
    options.kafka.properties.insert("compression.type".into(), "none".into());
    options.kafka.properties.insert("linger.ms".into(), "20".into());
    let refusal = Running::start(options.clone()).refusal().await;
    assert!(refusal.contains("of order/7) cannot be delivered") && refusal.contains("dead-letter"), "{refusal}");
    assert!(!refusal.contains("park") && !refusal.contains("seq"), "{refusal}");

    options.topics.create = true;
    options.undeliverable.policy = OnUndeliverable::DeadLetter;
    let relay = Running::start(options);
    insert(&database.pool, "20", 20..30).await;
    let mut reader = place.reader();
    reader.until_distinct(29);
    let mut dead = Reader::new(&place.brokers, &format!("{}.dead", place.topic));
    dead.until_distinct(1);
    relay.stop().await;
    let mut values: Vec<u32> = reader.read_to_the_end().iter().map(|record| record.text().parse().expect("a number")).collect();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values, (0..30).filter(|n| *n != 7).collect::<Vec<_>>());
    let dead = &dead.read_to_the_end()[0];
    assert!(
        dead.headers["tidings_reason"].contains("max.message.bytes") && !dead.headers.contains_key("tidings_seq"),
        "{:?}",
        dead.headers
    );
    assert_eq!(dead.key, b"7");
}

#[tokio::test]
async fn parking_is_refused_before_anything_is_connected() {
    let database = migrated_database().await;
    let mut options = options(&Place::new(&database));
    options.undeliverable.policy = OnUndeliverable::Park;
    assert!(matches!(Relay::new(options), Err(RelayError::Options(text)) if text.contains("cannot be parked")));
}
