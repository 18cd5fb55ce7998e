//! Refusals: problems that only an operator can solve. The relay reports them and stops before it
//! skips an event.

use dev_services::PostgresOptions;
use tidings::relay::{DeliveryGuarantee, OnUndeliverable};

use crate::support::records::create_topic_with;
use crate::support::running::{Place, Running};
use crate::support::services::{migrated_database, migrated_database_on, own_postgres};

async fn publish(pool: &sqlx::PgPool, key: &str, bytes: i32) {
    let sql = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', $1, 'T', to_json(repeat('x', $2)))";
    sqlx::query(sql)
        .bind(key)
        .bind(bytes)
        .execute(pool)
        .await
        .expect("the insert succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_wal_is_reported_with_the_setting() {
    let options = PostgresOptions::new().set("wal_level", "replica");
    let postgres = own_postgres(options).await;
    let database = migrated_database_on(&postgres.url()).await;
    let place = Place::new(&database);
    let mut options = place.options();
    options.source = tidings::relay::SourceKind::Wal;
    let text = Running::start(options).refusal().await;
    assert!(
        text.contains("ALTER SYSTEM SET wal_level = logical"),
        "{text}"
    );
    // Without an explicit choice of the log, the relay reads the table.
    let relay = place.start();
    publish(&database.pool, "1", 1).await;
    place.reader().until_distinct(1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_not_there_are_reported_with_the_command() {
    let database = crate::support::services::database().await;
    let text = Place::new(&database).start().refusal().await;
    assert!(text.contains("tidings migrate"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_for_kafka_stops_the_relay_before_it_and_what_comes_after_is_not_lost() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    publish(&database.pool, "before", 1).await;
    publish(&database.pool, "large", 2_000_000).await;
    publish(&database.pool, "after", 1).await;
    let mut options = place.options();
    options.undeliverable.policy = OnUndeliverable::Stop;
    let text = Running::start(options).refusal().await;
    assert!(
        text.contains("order/large") && text.contains("max_message_bytes"),
        "{text}"
    );
    let records = place.reader().read_to_the_end().to_vec();
    assert!(
        records.iter().all(|record| record.key == b"before"),
        "{records:?}"
    );
    // The remedy: delete the event (or raise the limit). The relay then continues.
    sqlx::raw_sql(
        "set local tidings.delete_unpublished = on; delete from tidings.outbox \
        where aggregateid = 'large'",
    )
    .execute(&database.pool)
    .await
    .expect("the rows are deleted");
    let relay = place.start();
    let mut reader = place.reader();
    let keys: Vec<_> = reader
        .until_distinct(2)
        .iter()
        .map(|record| String::from_utf8_lossy(&record.key).into_owned())
        .collect();
    relay.stop().await;
    assert!(keys.contains(&"after".to_owned()), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_once_does_not_publish_to_a_compacted_topic_and_exactly_once_does() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    create_topic_with(
        &place.brokers,
        &place.topic,
        1,
        &[("cleanup.policy", "compact,delete")],
    )
    .await;
    publish(&database.pool, "1", 1).await;
    let mut options = place.options();
    options.delivery = DeliveryGuarantee::AtLeastOnce;
    let relay = Running::start(options);
    relay.says("kafka", "delivery = \"exactly-once\"").await;
    assert!(place.reader().read_to_the_end().is_empty());
    relay.stop().await;
    let relay = place.start();
    place.reader().until_distinct(1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_in_another_database_is_not_followed() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let mut options = place.options();
    options.delivery = tidings::relay::DeliveryGuarantee::AtLeastOnce;
    let relay = Running::start(options.clone());
    relay.says("stream", "streaming").await;
    relay.stop().await;
    sqlx::raw_sql("update tidings.relay set identity = identity || '{\"system\": \"1\"}'")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let text = Running::start(options).refusal().await;
    assert!(text.contains("another database"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_the_right_to_replicate_is_told_what_to_grant() {
    let database = migrated_database().await;
    let mut place = Place::new(&database);
    let role = format!("relay_{}", uuid::Uuid::now_v7().simple());
    let sql = format!(
        "create role {role} login password 'secret'; grant usage on schema tidings to {role}; \
         grant select, insert, update on all tables in schema tidings to {role};
         create publication {} for table tidings.outbox with (publish = 'insert')",
        place.slot()
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let mut url: url::Url = place.url.parse().expect("a URL");
    url.set_username(&role).expect("set");
    url.set_password(Some("secret")).expect("set");
    place.url = url.to_string();
    let mut options = place.options();
    options.source = tidings::relay::SourceKind::Wal;
    let text = Running::start(options).refusal().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "drop owned by {role}; drop role {role}"
    )))
    .execute(&database.pool)
    .await
    .expect("the statement succeeds");
    assert!(
        text.contains("ALTER ROLE") && text.contains("REPLICATION"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_restored_from_another_server_are_not_skipped_in_silence() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    publish(&database.pool, "1", 1).await;
    sqlx::raw_sql("update tidings.outbox set xid = '9999999999'")
        .execute(&database.pool)
        .await
        .expect("the update succeeds");
    let text = place.start().refusal().await;
    assert!(text.contains("restored"), "{text}");
    let command = text
        .split("run ")
        .nth(1)
        .and_then(|rest| rest.split(" to publish").next())
        .expect("a command")
        .to_owned();
    sqlx::raw_sql(sqlx::AssertSqlSafe(command))
        .execute(&database.pool)
        .await
        .expect("the command is valid as printed");
    let relay = place.start();
    place.reader().until_distinct(1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_before_the_position_is_reported_as_lost_commits() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let mut options = place.options();
    options.delivery = tidings::relay::DeliveryGuarantee::AtLeastOnce;
    let relay = Running::start(options.clone());
    relay.says("stream", "streaming").await;
    relay.stop().await;
    sqlx::raw_sql("update tidings.relay set position = position || '{\"reach\": \"FF/0\"}'")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let text = Running::start(options).refusal().await;
    assert!(
        text.contains("has lost commits that were published")
            && text.contains("tidings relay rewind"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_is_renamed_under_its_feet_stops_the_relay() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    relay.says("stream", "streaming").await;
    sqlx::raw_sql(
        "alter table tidings.outbox rename to mailbox; \
        insert into tidings.mailbox (aggregatetype, aggregateid, type) values ('a', '1', 'T')",
    )
    .execute(&database.pool)
    .await
    .expect("the statement succeeds");
    let text = relay.refusal().await;
    assert!(text.contains("tidings.mailbox now"), "{text}");
}

/// The effect of `pg_restore --data-only --disable-triggers` on the outbox of a relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_a_restore_has_left_off_stops_the_relay() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let mut options = place.options();
    options.source = tidings::relay::SourceKind::Poll;
    publish(pool, "1", 1).await;
    let relay = Running::start(options.clone());
    place.reader().until_distinct(1);
    let restored = "alter table tidings.outbox disable trigger all;
        insert into tidings.outbox (seq, xid, aggregatetype, aggregateid, type, payload) \
        overriding system value values (1000, '5', 'order', '2', 'T', '2');
        alter table tidings.outbox enable trigger all";
    sqlx::raw_sql(restored)
        .execute(pool)
        .await
        .expect("the statement succeeds");
    let refusal = relay.refusal().await;
    assert!(
        refusal.contains("enable always trigger outbox_own_transaction"),
        "{refusal}"
    );
    assert_eq!(
        Running::start(options.clone()).refusal().await,
        refusal,
        "at its start, too"
    );
    // The remedy loses nothing.
    let remedy = refusal
        .split_once("run: ")
        .expect("a remedy")
        .1
        .split_once("; the relay then")
        .expect("statements")
        .0;
    sqlx::raw_sql(sqlx::AssertSqlSafe(remedy.to_owned()))
        .execute(pool)
        .await
        .expect("it is SQL");
    let relay = Running::start(options);
    place.reader().until_distinct(2);
    relay.stop().await;
}
