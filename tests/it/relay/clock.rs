//! Timestamps that a broker refuses: a fault of a clock, never of an event.

use super::operator::{delivered, published};
use crate::support::records::create_topic_with;
use crate::support::running::Place;
use crate::support::services::migrated_database;

#[tokio::test(flavor = "multi_thread")]
async fn events_whose_timestamps_a_topic_refuses_are_published_and_none_is_parked() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    // The limit is narrower than the age of a waiting event, as if the broker's clock were ahead.
    create_topic_with(
        &place.brokers,
        &place.topic,
        2,
        &[("message.timestamp.before.max.ms", "60000")],
    )
    .await;
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, \
        occurred_at)
                  select 'order', n::text, 'T', to_json(n), now() - interval '2 hours' \
                  from generate_series(1, 200) n";
    sqlx::query(insert)
        .execute(pool)
        .await
        .expect("the insert succeeds");
    let relay = place.start();
    published(pool, &place, 200).await;
    relay.stop().await;
    let parked: i64 = sqlx::query_scalar("select count(*) from tidings.parked")
        .fetch_one(pool)
        .await
        .expect("the query succeeds");
    assert_eq!(parked, 0);
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        (1..=200).map(|id| (id, 1)).collect::<Vec<_>>()
    );
}
