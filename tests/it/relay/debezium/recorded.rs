//! Comparison with the records that the real Debezium writes from the same rows, byte for byte.
//!
//! The expected records are a recording. If Java and Maven are available, the test also compares
//! with Debezium itself. `UPDATE_RECORDS=1` updates the recording.

use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, PgPool};
use tidings::relay::{DebeziumOutbox, OnUndeliverable, TopicRewrite};

use super::{
    cases::{Case, LOSSLESS, LOSSY},
    connector::debezium,
    records::read,
};
use crate::relay::debezium::options;
use crate::support::eventually::eventually;
use crate::support::records::create_topic;
use crate::support::running::{Place, Running, new_topic};
use crate::support::services::{TestDatabase, brokers, migrated_database};

const RECORDED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/relay/debezium/recorded.json"
);

fn recorded() -> Map<String, Value> {
    let text = std::fs::read_to_string(RECORDED).expect("the recording exists");
    serde_json::from_str(&text).expect("the recording is JSON")
}

async fn create(pool: &PgPool, case: &Case) {
    sqlx::raw_sql(AssertSqlSafe(format!(
        "create table public.{} ({})",
        case.name, case.columns
    )))
    .execute(pool)
    .await
    .expect("the statement succeeds");
}

async fn fill(pool: &PgPool, case: &Case) {
    for row in case.rows {
        sqlx::raw_sql(AssertSqlSafe(format!(
            "insert into public.{} values ({row})",
            case.name
        )))
        .execute(pool)
        .await
        .expect("the insert succeeds");
    }
}

/// Returns the records that Tidings writes for a case, from the stream or from existing rows.
async fn ours(database: &TestDatabase, case: &Case, existing: bool) -> Vec<Value> {
    let place = Place::new(database);
    let prefix = format!("{}.", new_topic());
    let topic = format!("{prefix}{}", case.topic);
    create_topic(&place.brokers, &topic, 1).await;
    let mut options = options(&place);
    let mut outbox = DebeziumOutbox::new("public", case.name);
    options.topic = prefix.clone();
    options.topic_rewrite = Some(
        TopicRewrite::parse(
            "(?<routedByValue>.*)",
            &format!("{prefix}outbox.event.${{routedByValue}}"),
        )
        .expect("a valid rewrite"),
    );
    (case.ours)(&mut options, &mut outbox);
    options.debezium = Some(outbox);
    options.undeliverable.policy = OnUndeliverable::Stop;
    create(&database.pool, case).await;
    if existing {
        fill(&database.pool, case).await;
    }
    let relay = Running::start(options);
    if !existing {
        relay.says("stream", "streaming").await;
        fill(&database.pool, case).await;
    }
    let records = read(&place.brokers, &topic, case.rows.len()).await;
    relay.stop().await;
    sqlx::raw_sql(AssertSqlSafe(format!("drop table public.{}", case.name)))
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_those_that_debezium_wrote_from_the_same_rows() {
    let database = migrated_database().await;
    let recorded = recorded();
    for case in LOSSLESS {
        assert_eq!(
            Value::from(ours(&database, case, false).await),
            recorded[case.name],
            "streamed: {}",
            case.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_there_become_the_same_records_as_streamed_ones() {
    let database = migrated_database().await;
    let recorded = recorded();
    for case in LOSSLESS {
        assert_eq!(
            Value::from(ours(&database, case, true).await),
            recorded[case.name],
            "copied: {}",
            case.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expanded_payload_keeps_what_debezium_rewrites() {
    let database = migrated_database().await;
    let (ours, theirs) = (
        ours(&database, &LOSSY, false).await,
        recorded()[LOSSY.name].clone(),
    );
    assert_eq!(
        ours[0]["value"],
        "{\"n\": 1.00, \"gone\": null, \"large\": 1e2}"
    );
    assert_eq!(theirs[0]["value"], "{\"n\":1.0,\"large\":100.0}");
    assert_eq!(
        (&ours[0]["key"], &ours[0]["headers"]),
        (&theirs[0]["key"], &theirs[0]["headers"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recording_is_what_the_real_debezium_writes() {
    let Some(debezium) = debezium().await else {
        return;
    };
    let database = migrated_database().await;
    let (brokers, prefix) = (brokers(), format!("{}.", new_topic()));
    let url: url::Url = database.url.parse().expect("a URL");
    let mut connectors = Vec::new();
    let cases: Vec<&Case> = LOSSLESS.iter().chain([&LOSSY]).collect();
    for case in &cases {
        create(&database.pool, case).await;
        create_topic(
            &brokers,
            &format!("{prefix}{}.{}", case.name, case.topic),
            1,
        )
        .await;
        connectors.push((
            case.name.to_owned(),
            properties(&url, case, &format!("{prefix}{}.", case.name)),
        ));
    }
    let worker = debezium.start(&brokers, connectors).await;
    wait_for_slots(&database, cases.len(), || worker.log()).await;
    let mut records = Map::new();
    for case in cases {
        fill(&database.pool, case).await;
        let read = read(
            &brokers,
            &format!("{prefix}{}.{}", case.name, case.topic),
            case.rows.len(),
        )
        .await;
        records.insert(case.name.to_owned(), read.into());
    }
    drop(worker);
    if std::env::var_os("UPDATE_RECORDS").is_some() {
        std::fs::write(
            RECORDED,
            serde_json::to_string_pretty(&records).expect("JSON") + "\n",
        )
        .expect("the write succeeds");
    } else {
        assert_eq!(records, recorded());
    }
}

fn properties(url: &url::Url, case: &Case, prefix: &str) -> Vec<(String, String)> {
    let table = format!("public.{}", case.name);
    let mut properties = super::hand_over::properties(url, &table, case.name);
    properties.push((
        "transforms.outbox.route.topic.replacement".into(),
        format!("{prefix}outbox.event.${{routedByValue}}"),
    ));
    for (name, value) in case.connector {
        properties.retain(|(known, _)| known != name);
        properties.push(((*name).to_owned(), value.replace("${PREFIX}", prefix)));
    }
    properties
}

/// Waits until every connector streams.
pub(super) async fn wait_for_slots(
    database: &TestDatabase,
    slots: usize,
    log: impl Fn() -> String,
) {
    eventually("the connectors stream", async || {
        let active = "select count(*) from pg_replication_slots where active \
            and database = current_database() and slot_name not like 'tidings%'";
        let active: i64 = sqlx::query_scalar(active)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        let all_stream = active == i64::try_from(slots).expect("the number fits");
        all_stream.then_some(()).ok_or_else(&log)
    })
    .await;
}
