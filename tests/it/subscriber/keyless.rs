//! Events without a key while a dependency of their handlers is down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidings::subscriber::{Escalation, Event, HandlerError, Meta, Retry, State, Tx};

use crate::support::place::{Changed, Place, create_effects, effect, start, until_effects};
use crate::support::services::migrated_database;

#[tokio::test(flavor = "multi_thread")]
async fn events_without_a_key_are_parked_during_an_outage_of_a_dependency_and_handled_after_it() {
    async fn call(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
        State(down): State<Arc<AtomicBool>>,
    ) -> Result<(), HandlerError> {
        if down.load(Ordering::SeqCst) && changed.version != 5 {
            return Err(HandlerError::retry("503 Service Unavailable"));
        }
        assert_eq!((&*meta.aggregate_id(), meta.data().is_some()), ("", true));
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place, down) = (
        migrated_database().await,
        Place::new(1).await,
        Arc::new(AtomicBool::new(true)),
    );
    create_effects(&database.pool).await;
    for version in 1..=5 {
        let value = format!(r#"{{"account":"a","version":{version}}}"#);
        place
            .send_record(
                None,
                Some(&value),
                &[("eventType", "Changed"), ("tenant", "acme")],
            )
            .await;
    }
    let start = || {
        let quick = Retry::exponential(2, Duration::from_millis(5)..Duration::from_millis(20));
        let park = Escalation::Park(Retry::exponential(
            10_000,
            Duration::from_millis(50)..Duration::from_millis(50),
        ));
        let subscriber = place
            .subscriber()
            .on(call)
            .inbox(database.pool.clone())
            .state(down.clone());
        start!(subscriber.retry(quick).escalation(park).kill_switch(None))
    };
    let running = start();
    running
        .until("four are parked", |seen| seen.parked() == 4)
        .await;
    // An event without a key waits for no other.
    until_effects(&database.pool, 1).await;
    assert_eq!(running.statistics.dead_lettered(), 0);
    running.stop().await;
    // The next owner of the partition finds the events, still without a key.
    let keys: i64 = sqlx::query_scalar("select count(distinct key) from tidings.subscriber_parked")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(keys, 4);
    let running = start();
    down.store(false, Ordering::SeqCst);
    until_effects(&database.pool, 5).await;
    running
        .until("nothing waits", |seen| {
            seen.partitions()
                .iter()
                .all(|partition| partition.parked_aggregates == 0)
        })
        .await;
    assert_eq!(running.statistics.dead_lettered(), 0);
    running.stop().await;
    let versions: Vec<i32> = sqlx::query_scalar("select version from effect")
        .fetch_all(&database.pool)
        .await
        .expect("the query succeeds");
    let mut times = BTreeMap::new();
    versions
        .iter()
        .for_each(|version| *times.entry(*version).or_insert(0) += 1);
    assert_eq!(
        times.into_iter().collect::<Vec<_>>(),
        [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]
    );
}
