//! `examples/saga.rs` as two processes that are killed again and again.

use std::process::{Child, Command};
use std::time::Duration;

use dev_services::KafkaOptions;

use crate::support::place::until;
use crate::support::records::create_topic;
use crate::support::services::{TestDatabase, migrated_database, own_kafka};

const ORDERS: i64 = 60;

/// A process that is killed on drop.
struct Replica(Child);

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(database: &TestDatabase, brokers: &str, instance: &str) -> Replica {
    let test = std::env::current_exe().expect("the test has a path");
    let program = test
        .ancestors()
        .nth(2)
        .expect("the test is in `deps/`")
        .join("examples/saga");
    let mut command = Command::new(&program);
    command
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", brokers)
        .env("INSTANCE", instance);
    Replica(command.spawn().unwrap_or_else(|error| {
        panic!("{} runs (cargo test builds it): {error}", program.display())
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_killed_with_9_again_and_again_end_every_saga_with_each_effect_once() {
    let (database, broker) = (
        migrated_database().await,
        own_kafka(KafkaOptions::default()).await,
    );
    for topic in ["order", "stock", "payment", "parcel", "saga"] {
        create_topic(&broker.brokers(), topic, 2).await;
    }
    let mut replicas = [
        start(&database, &broker.brokers(), "one"),
        start(&database, &broker.brokers(), "two"),
    ];
    let ended = async || {
        let sql = "select count(*) from tidings.saga where ended_at is not null";
        sqlx::query_scalar::<_, i64>(sql)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds")
    };
    until("the tables exist", async || {
        sqlx::query("select from confirmed")
            .execute(&database.pool)
            .await
            .ok()
    })
    .await;
    for round in 0..6_i64 {
        // Every third order is too expensive and therefore compensated.
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
            select 'order', n, 'OrderPlaced', json_build_object('order_id', n, 'total_cents', \
            case when n % 3 = 0 then 20000 else 1999 end)
            from generate_series($1::bigint, $2::bigint) n";
        sqlx::query(insert)
            .bind(round * ORDERS / 6)
            .bind((round + 1) * ORDERS / 6 - 1)
            .execute(&database.pool)
            .await
            .expect("the orders are placed");
        let before = ended().await;
        until("some have ended", async || {
            (ended().await > before).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(37 * round.unsigned_abs())).await;
        let at = usize::from(round % 2 == 1);
        replicas[at].0.kill().expect("the kill succeeds");
        replicas[at].0.wait().expect("the process ends");
        replicas[at] = start(&database, &broker.brokers(), ["one", "two"][at]);
    }
    until("all have ended", async || {
        (ended().await == ORDERS).then_some(())
    })
    .await;
    let expensive: i64 = (0..ORDERS)
        .filter(|order| order % 3 == 0)
        .count()
        .try_into()
        .expect("the number fits");
    let statuses: Vec<(String, i64)> =
        sqlx::query_as("select status, count(*) from tidings.saga group by status order by status")
            .fetch_all(&database.pool)
            .await
            .expect("the query succeeds");
    assert_eq!(
        statuses,
        [
            ("compensated".into(), expensive),
            ("completed".into(), ORDERS - expensive)
        ]
    );
    // Compensations work through events, which may still be in flight.
    let counts = "select (select count(*) from reservation), (select count(*) \
        from payment), (select count(*) from confirmed),
        (select count(*) from tidings.outbox where type in ('SagaCompleted', 'SagaCompensated'))";
    until(
        "stock, payments and confirmations are those of the completed sagas",
        async || {
            let counts: (i64, i64, i64, i64) = sqlx::query_as(counts)
                .fetch_one(&database.pool)
                .await
                .expect("the query succeeds");
            let completed = ORDERS - expensive;
            (counts == (completed, completed, completed, ORDERS)).then_some(())
        },
    )
    .await;
    // Nothing was sent twice: no step was retried, and no transition took effect twice.
    let repeated: i64 = sqlx::query_scalar(
        "select count(*) from (select from tidings.outbox where aggregatetype <> 'order' \
         group by type, headers ->> 'correlationid' having count(*) > 1) r",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the query succeeds");
    assert_eq!(repeated, 0);
}
