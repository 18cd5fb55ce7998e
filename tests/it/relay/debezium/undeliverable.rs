//! Undeliverable events of a table without `seq`: the relay finds the right event and blames no
//! other.

use tidings::relay::{OnUndeliverable, OutboxField, Relay, RelayError};

use super::{TABLE, insert, options};
use crate::support::records::{Reader, create_topic_with};
use crate::support::running::{Place, Running};
use crate::support::services::migrated_database;

#[tokio::test(flavor = "multi_thread")]
async fn one_that_the_broker_refuses_is_found_among_others_and_goes_to_the_dead_letters_or_stops_the_relay()
 {
    let database = migrated_database().await;
    sqlx::raw_sql(TABLE)
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let place = Place::new(&database);
    create_topic_with(
        &place.brokers,
        &place.topic,
        1,
        &[("max.message.bytes", "20000")],
    )
    .await;
    // One transaction, so that a batch contains all of them.
    let rows = "insert into public.outboxevent (aggregatetype, aggregateid, type, payload)
        select 'order', n::text, 'T', case n when 7 then repeat('x', 50000) else n::text end \
        from generate_series(0, 19) n";
    sqlx::raw_sql(rows)
        .execute(&database.pool)
        .await
        .expect("the insert succeeds");
    let mut options = options(&place);
    options
        .kafka
        .properties
        .insert("compression.type".into(), "none".into());
    options
        .kafka
        .properties
        .insert("linger.ms".into(), "20".into());
    let refusal = Running::start(options.clone()).refusal().await;
    assert!(
        refusal.contains("of order/7) cannot be delivered") && refusal.contains("dead-letter"),
        "{refusal}"
    );
    assert!(
        !refusal.contains("park") && !refusal.contains("seq"),
        "{refusal}"
    );

    options.topics.create = true;
    options.undeliverable.policy = OnUndeliverable::DeadLetter;
    let relay = Running::start(options);
    insert(&database.pool, "20", 20..30).await;
    let mut reader = place.reader();
    reader.until_distinct(29);
    let mut dead = Reader::new(&place.brokers, &format!("{}.dead", place.topic));
    dead.until_distinct(1);
    relay.stop().await;
    let mut values: Vec<u32> = reader
        .read_to_the_end()
        .iter()
        .map(|record| record.text().parse().expect("a number"))
        .collect();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values, (0..30).filter(|n| *n != 7).collect::<Vec<_>>());
    let dead = &dead.read_to_the_end()[0];
    assert!(
        dead.headers["tidings_reason"].contains("max.message.bytes")
            && !dead.headers.contains_key("tidings_seq"),
        "{:?}",
        dead.headers
    );
    assert_eq!(dead.key, b"7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_key_stops_the_relay_before_it_or_goes_to_the_dead_letters() {
    let database = migrated_database().await;
    sqlx::raw_sql(TABLE)
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let loose = "alter table public.outboxevent alter aggregateid drop not null, \
        alter aggregatetype drop not null, add column at timestamptz";
    sqlx::raw_sql(loose)
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let place = Place::new(&database);
    let mut options = options(&place);
    let outbox = options.debezium.as_mut().expect("set");
    outbox.columns.push((OutboxField::OccurredAt, "at".into()));
    insert(&database.pool, "a", 0..2).await;
    let keyless = "insert into public.outboxevent (aggregatetype, aggregateid, type, payload) \
        values ('order', null, 'T', '2')";
    sqlx::raw_sql(keyless)
        .execute(&database.pool)
        .await
        .expect("the insert succeeds");
    insert(&database.pool, "a", 3..5).await;
    let refusal = Running::start(options.clone()).refusal().await;
    assert!(
        refusal.contains("column `aggregateid` is null")
            && refusal.contains("--on-undeliverable dead-letter"),
        "{refusal}"
    );
    options.undeliverable.policy = OnUndeliverable::DeadLetter;
    let relay = Running::start(options);
    let mut reader = place.reader();
    reader.until_distinct(4);
    let mut dead = Reader::new(&place.brokers, &format!("{}.dead", place.topic));
    dead.until_distinct(1);
    relay.stop().await;
    let values: Vec<&str> = reader
        .read_to_the_end()
        .iter()
        .map(|record| record.text())
        .collect();
    assert!(
        values.ends_with(&["3", "4"]) && !values.contains(&"2"),
        "{values:?}"
    );
    let dead = &dead.read_to_the_end()[0];
    assert_eq!(
        (dead.text(), dead.headers["tidings_reason"].as_str()),
        ("2", "column `aggregateid` is null where a value is needed")
    );
}

#[tokio::test]
async fn parking_is_refused_before_anything_is_connected() {
    let database = migrated_database().await;
    let mut options = options(&Place::new(&database));
    options.undeliverable.policy = OnUndeliverable::Park;
    assert!(matches!(
        Relay::new(options),
        Err(RelayError::Options(text)) if text.contains("cannot be parked")
    ));
}
