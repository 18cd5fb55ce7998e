//! `kill -9` in mid-stream and at each step of the protocols.

use std::time::Duration;

use crate::support::history::{
    Verdict, committed, create_accounts, expected, judge, write_concurrently,
};
use crate::support::running::Place;
use crate::support::services::migrated_database;

#[tokio::test(flavor = "multi_thread")]
async fn killed_ten_times_in_mid_stream_it_loses_and_repeats_nothing_and_keeps_the_order() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    create_accounts(&database.pool, 8).await;
    let writing = tokio::spawn({
        let pool = database.pool.clone();
        async move { write_concurrently(&pool, 4, 8, 400).await }
    });
    let mut reader = place.reader();
    let mut seen = 0;
    for _ in 0..10 {
        let mut relay = place.spawn();
        // Kill the relay at work: some more records have arrived, and others are in flight.
        let more = reader.until_more_than(seen);
        seen = more + 20;
        relay.kill();
    }
    let last = place.spawn();
    writing.await.expect("the writers end without an error");
    let committed = committed(&database.pool).await;
    reader.until_distinct(expected(&committed));
    drop(last);
    assert_eq!(
        judge(&committed, reader.read_to_the_end()),
        Verdict::default()
    );
}

/// Kills a relay at the n-th time that it reaches a step of a protocol, starts another one, and
/// checks the topic.
async fn died_at(step: &str, source: &str) {
    let database = migrated_database().await;
    let place = Place::new(&database);
    create_accounts(&database.pool, 6).await;
    write_concurrently(&database.pool, 3, 6, 30).await;
    let writing = tokio::spawn({
        let pool = database.pool.clone();
        async move { write_concurrently(&pool, 3, 6, 200).await }
    });
    let mut dying = place.spawn_with(&[("TIDINGS_TEST_DIE_AT", step), ("TIDINGS_SOURCE", source)]);
    let mut times = 0;
    while !dying.has_died() {
        // Keep the relay busy until it reaches the step.
        write_concurrently(&database.pool, 1, 6, 5).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        times += 1;
        assert!(times < 600, "the relay never reaches {step}");
    }
    let last = place.spawn_with(&[("TIDINGS_SOURCE", source)]);
    writing.await.expect("the writers end without an error");
    let committed = committed(&database.pool).await;
    let mut reader = place.reader();
    reader.until_distinct(expected(&committed));
    drop(last);
    assert_eq!(
        judge(&committed, reader.read_to_the_end()),
        Verdict::default(),
        "after a death at {step}, source {source}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_around_the_commit_to_kafka_costs_nothing() {
    for step in [
        "fenced",
        "position-sent:1",
        "position-sent:4",
        "kafka-committed:1",
        "kafka-committed:5",
    ] {
        died_at(step, "auto").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_around_the_copy_in_postgres_and_the_confirmation_costs_nothing() {
    for step in ["mirrored:1", "mirrored:3", "confirmed:1", "confirmed:3"] {
        died_at(step, "wal").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_in_a_window_of_the_table_or_while_the_log_takes_over_costs_nothing() {
    for step in ["window-opened:2", "window-sent:1", "window-sent:3"] {
        died_at(step, "poll").await;
    }
    for step in ["slot-made", "window-sent:1"] {
        died_at(step, "auto").await;
    }
}
