//! A relay that reads a Debezium table from the log alone, and its behaviour without the log.

use serde_json::Value;
use sqlx::PgPool;
use tidings::relay::{ExistingRows, OutboxRows, SourceKind};

use super::{TABLE, insert, options};
use crate::support::eventually::until_number;
use crate::support::records::Reader;
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database};

async fn database_with_table() -> (TestDatabase, Place) {
    let database = migrated_database().await;
    sqlx::raw_sql(TABLE)
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let place = Place::new(&database);
    (database, place)
}

/// Returns the values in topic order. All events belong to one aggregate.
fn values(reader: &mut Reader) -> Vec<String> {
    reader
        .read_to_the_end()
        .iter()
        .map(|record| record.text().to_owned())
        .collect()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn drop_slot(pool: &PgPool, place: &Place) {
    sqlx::query("select pg_drop_replication_slot($1)")
        .bind(place.slot())
        .execute(pool)
        .await
        .expect("the statement succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_there_come_first_then_the_log_and_a_restart_repeats_nothing() {
    let (database, place) = database_with_table().await;
    insert(&database.pool, "a", 0..20).await;
    let relay = Running::start(options(&place));
    insert(&database.pool, "a", 20..40).await;
    let mut reader = place.reader();
    reader.until_distinct(40);
    relay.stop().await;
    insert(&database.pool, "a", 40..50).await;
    let relay = Running::start(options(&place));
    reader.until_distinct(50);
    relay.stop().await;
    assert_eq!(values(&mut reader), numbers(0..50));
}

/// The creation of the slot waits for every open transaction of the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_ends_while_its_slot_is_created_leaves_no_session_behind() {
    let (database, place) = database_with_table().await;
    let mut open = database.pool.begin().await.expect("a transaction begins");
    let insert = "insert into public.outboxevent (aggregatetype, aggregateid, type, payload) \
        values ('order', 'a', 'T', '1')";
    sqlx::query(insert)
        .execute(&mut *open)
        .await
        .expect("the insert succeeds");
    let relay = Running::start(options(&place));
    // The session that logs the open transactions.
    let watches = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name like '%relay watch%'";
    until_number(&database.pool, "the creation waits", watches, |n| n == 1).await;
    relay.stop().await;
    until_number(&database.pool, "the session has ended", watches, |n| n == 0).await;
    open.rollback().await.expect("the rollback succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_there_can_be_left_and_rows_deleted_at_once_come_by_the_log() {
    let (database, place) = database_with_table().await;
    insert(&database.pool, "a", 0..20).await;
    let mut options = options(&place);
    let outbox = options.debezium.as_mut().expect("set");
    (outbox.existing, outbox.rows) = (ExistingRows::Leave, OutboxRows::Deleted);
    let relay = Running::start(options.clone());
    relay.says("stream", "streaming").await;
    for n in 20..25 {
        let mut tx = database.pool.begin().await.expect("a transaction begins");
        let insert = "insert into public.outboxevent (aggregatetype, aggregateid, type, payload) \
            values ('order', 'a', 'T', $1)";
        sqlx::query(insert)
            .bind(n.to_string())
            .execute(&mut *tx)
            .await
            .expect("the insert succeeds");
        sqlx::query("delete from public.outboxevent")
            .execute(&mut *tx)
            .await
            .expect("the rows are deleted");
        tx.commit().await.expect("the commit succeeds");
    }
    let mut reader = place.reader();
    reader.until_distinct(5);
    relay.stop().await;
    assert_eq!(values(&mut reader), numbers(20..25));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_stops_the_relay_with_the_commands_that_go_on() {
    let (database, place) = database_with_table().await;
    let relay = Running::start(options(&place));
    insert(&database.pool, "a", 0..3).await;
    place.reader().until_distinct(3);
    relay.stop().await;
    drop_slot(&database.pool, &place).await;
    insert(&database.pool, "a", 3..5).await;
    let refusal = Running::start(options(&place)).refusal().await;
    for part in [
        &format!("slot `{}` does not exist any more", place.slot()),
        "no columns `seq bigint` and `xid xid8`",
        &format!("rewind --all --name {}", place.name),
        "skip --all",
    ] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    // `rewind --all` leaves this state: an empty position.
    let nothing = r#"update tidings.relay set moved_to = '{"seen":"3:3:","also":"{}",
        "partial":null,"window":null,"log":"0/0","reach":"0/0","witness":null}' where name = $1"#;
    sqlx::query(nothing)
        .bind(&place.name)
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let relay = Running::start(options(&place));
    insert(&database.pool, "a", 5..6).await;
    let mut reader = place.reader();
    reader.until_distinct(6);
    relay.stop().await;
    assert_eq!(values(&mut reader)[3..], numbers(0..6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_order_is_not_polled_and_one_of_other_columns_is_not_read() {
    let (database, place) = database_with_table().await;
    let mut polling = options(&place);
    polling.source = SourceKind::Poll;
    let refusal = Running::start(polling).refusal().await;
    assert!(
        refusal.contains("source is poll") && refusal.contains("`xid xid8`"),
        "{refusal}"
    );
    sqlx::raw_sql("alter table public.outboxevent rename payload to body")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let refusal = Running::start(options(&place)).refusal().await;
    assert!(
        refusal.contains("no column `payload`") && refusal.contains("outbox.columns"),
        "{refusal}"
    );
    sqlx::raw_sql("alter table public.outboxevent add payload point")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let refusal = Running::start(options(&place)).refusal().await;
    assert!(
        refusal.contains("`payload`") && refusal.contains("json, jsonb, text or bytea"),
        "{refusal}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_seq_and_xid_added_under_a_running_relay_the_table_heals_a_lost_slot_and_nothing_is_repeated()
 {
    let (database, place) = database_with_table().await;
    insert(&database.pool, "a", 0..10).await;
    let relay = Running::start(options(&place));
    let mut reader = place.reader();
    reader.until_distinct(10);
    sqlx::raw_sql(
        "begin; alter table public.outboxevent add column xid xid8 not null default \
         pg_current_xact_id(), add column seq bigint generated always as identity;
         create index on public.outboxevent (xid, seq); commit",
    )
    .execute(&database.pool)
    .await
    .expect("the statement succeeds");
    insert(&database.pool, "a", 10..20).await;
    reader.until_distinct(20);
    relay.stop().await;
    // The relay may or may not have reached the transaction that added the columns. In both cases
    // no event repeats.
    let relay = Running::start(options(&place));
    insert(&database.pool, "a", 20..30).await;
    reader.until_distinct(30);
    let settled = "select pg_visible_in_snapshot((select max(xid) \
        from public.outboxevent), (position ->> 'seen')::pg_snapshot) from tidings.relay \
        where name = $1";
    for _ in 0..2_400 {
        if sqlx::query_scalar::<_, bool>(settled)
            .bind(&place.name)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds")
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    relay.stop().await;
    drop_slot(&database.pool, &place).await;
    insert(&database.pool, "a", 30..40).await;
    let relay = Running::start(options(&place));
    reader.until_distinct(40);
    relay.says("stream", "streaming").await;
    insert(&database.pool, "a", 40..45).await;
    reader.until_distinct(45);
    relay.stop().await;
    let mut polling = options(&place);
    polling.source = SourceKind::Poll;
    let relay = Running::start(polling);
    insert(&database.pool, "a", 45..50).await;
    reader.until_distinct(50);
    relay.stop().await;
    assert_eq!(values(&mut reader), numbers(0..50));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_left_stay_left_when_the_table_is_read_later() {
    let (database, place) = database_with_table().await;
    let columns = "alter table public.outboxevent add column xid xid8 not null default \
        pg_current_xact_id(), add column seq bigint generated always as identity";
    sqlx::raw_sql(columns)
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    insert(&database.pool, "a", 0..10).await;
    let mut leaving = options(&place);
    leaving.debezium.as_mut().expect("set").existing = ExistingRows::Leave;
    let mut polling = leaving.clone();
    polling.source = SourceKind::Poll;
    let refusal = Running::start(polling.clone()).refusal().await;
    assert!(refusal.contains("skip --all"), "{refusal}");
    let relay = Running::start(leaving);
    relay.says("stream", "streaming").await;
    insert(&database.pool, "a", 10..15).await;
    let mut reader = place.reader();
    reader.until_distinct(5);
    relay.stop().await;
    let relay = Running::start(polling);
    insert(&database.pool, "a", 15..20).await;
    reader.until_distinct(10);
    relay.stop().await;
    assert_eq!(values(&mut reader), numbers(10..20));
}

/// Waits until `tidings status` reports the expected number of waiting events.
async fn waiting(place: &Place, expected: Value) {
    let mut said = Value::Null;
    for _ in 0..2_400 {
        let (code, text) = place.command(&["status", "--json"]);
        assert_eq!(code, 0, "{text}");
        said = serde_json::from_str::<Value>(&text).expect("JSON")["relays"][0]["lag"].take();
        if said["events"] == expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("never {expected}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_counted_in_the_table_that_is_read_or_not_at_all() {
    let (database, place) = database_with_table().await;
    // No relay publishes these events.
    let own = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        select 'order', n::text, 'T', '{}' from generate_series(1, 7) n";
    sqlx::raw_sql(own)
        .execute(&database.pool)
        .await
        .expect("the insert succeeds");
    let relay = Running::start(options(&place));
    insert(&database.pool, "a", 0..3).await;
    let mut reader = place.reader();
    reader.until_distinct(3);
    waiting(&place, Value::Null).await;
    relay.stop().await;
    let columns = "alter table public.outboxevent add column xid xid8 not null default \
        pg_current_xact_id(), add column seq bigint generated always as identity";
    sqlx::raw_sql(columns)
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let relay = Running::start(options(&place));
    waiting(&place, 0.into()).await;
    relay.stop().await;
    insert(&database.pool, "a", 3..8).await;
    waiting(&place, 5.into()).await;
    let (_, text) = place.command(&["status"]);
    assert!(!text.contains("cannot be counted"), "{text}");
}
