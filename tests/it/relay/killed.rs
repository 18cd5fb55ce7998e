//! kill -9 in mid-stream.

use super::{
    history::{committed, create_accounts, expected, judge, write_concurrently},
    running::Place,
};
use crate::services::migrated_database;

/// Records a killed relay may have under way, or acknowledged and not yet stored as position: what its successor repeats at most.
const REPEATED_MAX_PER_KILL: usize = 8_192 + 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn killed_ten_times_in_mid_stream_it_loses_nothing_and_keeps_the_order() {
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
        // Killed while it works: after some more records have come, while others are on their way.
        let more = reader.until_more_than(seen);
        seen = more + 20;
        relay.kill();
    }
    let last = place.spawn();
    writing.await.expect("writers end well");
    let committed = committed(&database.pool).await;
    reader.until_distinct(expected(&committed));
    drop(last);
    let verdict = judge(&committed, reader.read_to_the_end());
    assert_eq!((verdict.lost, verdict.misordered, verdict.never_committed, verdict.in_two_partitions), (0, 0, 0, 0), "{verdict:?}");
    assert!(verdict.repeated <= 10 * REPEATED_MAX_PER_KILL, "{verdict:?}");
}
