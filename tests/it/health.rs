//! The health checks of the crate against real services that stop and restart.

use std::time::Duration;

use dev_services::{KafkaOptions, PostgresOptions};
use sqlx::postgres::PgPoolOptions;
use tidings::health::{DatabaseCheck, Health, KafkaCheck, RelayLagCheck, Status};
use tidings::kafka::Settings;

use crate::support::services::{own_kafka, own_postgres};

/// Polls until the status of the only check satisfies `says`. A server takes time to start and to
/// stop.
async fn until(health: &Health, what: &str, says: impl Fn(&Status) -> bool) -> Status {
    for _ in 0..1_200 {
        let status = health.report().await.checks.remove(0).status;
        if says(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never {what}: {:?}", health.report().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_fails_its_check_and_one_that_is_back_passes_it() {
    let mut postgres = own_postgres(PostgresOptions::new()).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_lazy(&postgres.url())
        .expect("a URL");
    let health = Health::new().check("database", DatabaseCheck::new(&pool));
    until(&health, "connected", |status| {
        *status == Status::Ok("connected".into())
    })
    .await;
    postgres.kill().expect("the kill succeeds");
    until(&health, "failing", |status| {
        matches!(status, Status::Failing(_))
    })
    .await;
    let _back = tokio::task::spawn_blocking(move || postgres.start_again().map(|()| postgres))
        .await
        .expect("the task does not panic")
        .expect("the service restarts");
    until(&health, "connected again", |status| {
        matches!(status, Status::Ok(_))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_a_free_connection_fails_its_check_in_time() {
    let database = crate::support::services::database().await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect(&database.url)
        .await
        .expect("the server answers");
    let health = Health::new().check("database", DatabaseCheck::new(&pool));
    let held = pool.acquire().await.expect("a connection");
    let status = health.report().await.checks.remove(0).status;
    assert_eq!(status, Status::Failing("no answer within 900ms".into()));
    drop(held);
    assert!(health.report().await.is_ready());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stops_fails_its_check_with_the_reason_and_one_that_is_back_passes_it() {
    let mut kafka = own_kafka(KafkaOptions::new()).await;
    let settings = Settings {
        brokers: kafka.brokers(),
        ..Default::default()
    };
    let health = Health::new().check(
        "kafka",
        KafkaCheck::new(&settings).expect("the properties are valid"),
    );
    let status = until(&health, "connected", |status| {
        matches!(status, Status::Ok(_))
    })
    .await;
    assert_eq!(status, Status::Ok("connected, brokers: 1".into()));
    kafka.kill().expect("the kill succeeds");
    until(
        &health,
        "failing with the reason",
        |status| matches!(status, Status::Failing(text) if text.contains("Connection refused")),
    )
    .await;
    let _back = tokio::task::spawn_blocking(move || kafka.start_again().map(|()| kafka))
        .await
        .expect("the task does not panic")
        .expect("the service restarts");
    until(&health, "connected again", |status| {
        matches!(status, Status::Ok(_))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_lets_events_wait_for_too_long_fails_its_check() {
    let database = crate::support::services::migrated_database().await;
    let health = Health::new().check(
        "relay lag",
        RelayLagCheck::new(&database.pool, "tidings", Duration::from_secs(60)),
    );
    let status = async || health.report().await.checks.remove(0).status;
    assert!(matches!(status().await, Status::Failing(text) if text.contains("has run")));
    let run = async |statement: &'static str| {
        sqlx::query(statement)
            .execute(&database.pool)
            .await
            .expect("the statement succeeds")
            .rows_affected()
    };
    run("insert into tidings.relay (name, heartbeat_at) values ('tidings', now())").await;
    assert!(matches!(
        status().await,
        Status::Ok(text) if text.starts_with("no event waits, leader seen ")
    ));
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, \
        occurred_at) values ('order', '7', 'OrderPlaced', '{}', now()";
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "{insert} - interval '10 seconds')"
    )))
    .execute(&database.pool)
    .await
    .expect("the insert succeeds");
    assert!(
        matches!(status().await, Status::Ok(text) if text.starts_with("an event has waited for 1"))
    );
    let published = "update tidings.relay set position = jsonb_build_object('seen', \
        pg_current_snapshot()::text)";
    run(published).await;
    assert!(matches!(status().await, Status::Ok(text) if text.starts_with("no event waits")));
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "{insert} - interval '10 minutes')"
    )))
    .execute(&database.pool)
    .await
    .expect("the insert succeeds");
    assert!(matches!(
        status().await,
        Status::Failing(text)
            if text.starts_with("an event has waited for 60") && text.contains("leader seen")
    ));
    run(published).await;
    assert!(health.report().await.is_ready());
    run("update tidings.relay set table_schema = 'public', table_name = 'outboxevent'").await;
    assert!(matches!(
        status().await,
        Status::Failing(text) if text.contains("reads the table public.outboxevent")
    ));
}
