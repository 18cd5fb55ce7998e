//! `examples/subscribe.rs`, run as a separate process and ended as a supervisor ends it.

use std::process::Command;

use dev_services::KafkaOptions;
use tidings::event::{AggregateId, Envelope, Payload};
use tidings::{Bus, kafka};

use crate::support::place::until;
use crate::support::records::create_topic;
use crate::support::services::{database, own_kafka};

#[tokio::test(flavor = "multi_thread")]
async fn the_example_reserves_once_publishes_and_ends_well_when_it_is_terminated() {
    // A dedicated broker, because the example's topic is always `order`.
    let (database, broker) = (database().await, own_kafka(KafkaOptions::default()).await);
    create_topic(&broker.brokers(), "order", 2).await;
    let test = std::env::current_exe().expect("the test has a path");
    let program = test
        .ancestors()
        .nth(2)
        .expect("the test is in `deps/`")
        .join("examples/subscribe");
    let mut example = Command::new(&program)
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", broker.brokers())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{} runs (cargo test builds it): {error}", program.display())
        });
    let bus = Bus::new(kafka::Settings {
        brokers: broker.brokers(),
        ..kafka::Settings::default()
    });
    for order_id in ["7", "8", "7"] {
        let payload =
            Payload::json_text(format!(r#"{{"order_id": {order_id}, "total_cents": 1}}"#))
                .expect("JSON");
        let mut envelope = Envelope::new(
            "order",
            AggregateId::new(order_id).expect("an id"),
            "OrderPlaced",
            payload,
        );
        // The id follows from the order, so the last event repeats the first.
        envelope.id = uuid::Uuid::from_u128(order_id.parse().expect("a number")).into();
        bus.publish_envelope(&envelope)
            .await
            .expect("the event is published");
    }
    until("both are reserved and published", async || {
        let counts = "select (select count(*) from reservation), (select count(*) \
            from tidings.outbox where type = 'StockReserved')";
        let counts: (i64, i64) = sqlx::query_as(counts)
            .fetch_one(&database.pool)
            .await
            .ok()?;
        (counts == (2, 2)).then_some(())
    })
    .await;
    crate::support::services::signal(example.id(), "TERM");
    let status = tokio::task::spawn_blocking(move || example.wait())
        .await
        .expect("the task does not panic")
        .expect("the process ends");
    assert!(status.success(), "{status}");
}
