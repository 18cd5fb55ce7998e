//! Rows and records for every page.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::records::create_topic;
use crate::support::services::{TestDatabase, brokers, migrated_database};

/// Id of the saga that has failed.
pub(super) const SAGA: &str = "01940000-0000-7000-8000-000000000002";

/// Id of the event with rows in every place, and of the event that led to it.
pub(super) const EVENT: &str = "01940000-0000-7000-8000-000000000001";
pub(super) const CAUSE: &str = "01940000-0000-7000-8000-000000000004";

/// Id of the scheduled event.
pub(super) const SCHEDULED: &str = "01940000-0000-7000-8000-000000000003";

/// A database with rows for every page, and a dead letter topic.
pub(super) struct Seeded {
    pub(super) database: TestDatabase,
    pub(super) letters: String,
}

/// Creates rows in which every text is `text`, and a dead letter of it.
pub(super) async fn seeded(text: &str) -> Seeded {
    let database = migrated_database().await;
    rows(&database.pool, text).await;
    let letters = letter_topic(&brokers()).await;
    letter(&letters, text).await;
    Seeded { database, letters }
}

/// Creates a dead letter topic with two partitions.
pub(super) async fn letter_topic(brokers: &str) -> String {
    let topic = format!("order.g-{}.dlt", uuid::Uuid::now_v7().simple());
    create_topic(brokers, &topic, 2).await;
    topic
}

/// Inserts rows in which every text that a publisher, a subscriber or a saga controls is `text`.
pub(super) async fn rows(pool: &PgPool, text: &str) {
    let progress = "jsonb_build_object('status', 'failed', 'ahead', jsonb_build_array('ship'), \
        'current', null, 'done', jsonb_build_array('accept'), 'undone', '[]'::jsonb, \
        'failed_compensations', jsonb_build_array(jsonb_build_object('step', 'reserve', 'error', \
        $1::text)), 'failure', jsonb_build_object('step', 'pay', 'error', $1::text), 'commands', \
        jsonb_build_array(jsonb_build_object('id', '01940000-0000-7000-8000-000000000009', \
        'step', 'reserve', 'back', true)))";
    let steps = "jsonb_build_array(jsonb_build_object('step', 'accept'), \
        jsonb_build_object('step', 'reserve', 'forth', jsonb_build_object('sends', \
        jsonb_build_array('ReserveStock'), 'replies', jsonb_build_array('StockReserved', $1))), \
        jsonb_build_object('step', 'pay', 'pivot', true), jsonb_build_object('step', 'ship'))";
    let saga = format!(
        "insert into tidings.saga (id, name, version, key, status, step, error, state, progress)
         values ('{SAGA}', 'checkout', 1, $1, 'failed', 'pay', $1, to_json($1::text), {progress})"
    );
    let code = format!(
        "insert into tidings.saga_code (name, consumer, definition, version, steps)
         values ('checkout', 'orders', 'd', 1, {steps})"
    );
    let scheduled = format!(
        "insert into tidings.scheduled (id, aggregatetype, aggregateid, type, payload, due_at)
         values ('{SCHEDULED}', $1, $1, $1, to_json($1::text), now() + interval '1 hour')"
    );
    for sql in [
        &format!(
            "insert into tidings.outbox (id, aggregatetype, aggregateid, type, payload, headers)
             values ('{EVENT}', $1, $1, $1, to_json($1::text), jsonb_build_object(
                 'x-note', $1::text, 'causationid', '{CAUSE}', 'correlationid', '{SAGA}'))"
        ),
        "insert into tidings.relay (name, leader, heartbeat_at, source, source_reason, delivery, \
         position, published) values ('billing', $1, now(), 'table', $1, 'exactly-once', '{}', 41)",
        "insert into tidings.relay_topic (relay, topic, partitions) values ('billing', $1, 3)",
        "insert into tidings.parked (relay, seq, id, aggregatetype, aggregateid, topic, reason, \
         tries) select 'billing', seq, id, aggregatetype, aggregateid, $1, $1, 2
         from tidings.outbox",
        "insert into tidings.parked (relay, seq, id, aggregatetype, aggregateid, topic)
         values ('billing', 900, gen_random_uuid(), $1, $1, $1)",
        &saga,
        &code,
        &scheduled,
        "insert into tidings.subscriber (consumer, instance, host, version, version_since, types, \
         topics, escalation) values ('inventory', gen_random_uuid(), $1, $1, now(), array[$1], \
         array[$1], 'park')",
        "insert into tidings.subscriber_control (consumer, reason, paused_by)
         values ('inventory', $1, $1)",
        "insert into tidings.subscriber_parked (consumer, topic, partition, record_offset, \
         record_timestamp, key, header_names, header_values, attempts, next_attempt_at, error)
         values ('inventory', $1, 0, 7, 0, convert_to($1, 'UTF8'), array['ce_type', 'ce_id'],
             array[convert_to($1, 'UTF8'), convert_to($1, 'UTF8')], 3, now() + interval '1 minute',
             $1)",
        // The path of the first event: a cause, a subscriber that handled it, and an effect in the
        // transaction of the subscriber.
        "update tidings.relay set event_source = 'seed' where leader = $1",
        &format!(
            "insert into tidings.outbox (id, aggregatetype, aggregateid, type)
             values ('{CAUSE}', $1, $1, $1)"
        ),
        &format!(
            "with handled as (
                 insert into tidings.inbox (consumer, source, event_id)
                 values (left($1, 80), 'seed', '{EVENT}') returning event_id)
             insert into tidings.outbox (aggregatetype, aggregateid, type, payload, headers)
             select $1, $1, $1, '{{}}', jsonb_build_object('causationid', event_id) from handled"
        ),
        &format!(
            "insert into tidings.subscriber_parked (consumer, topic, partition, record_offset, \
             record_timestamp, key, header_names, header_values, attempts, next_attempt_at, error)
             values (left($1, 80), $1, 0, 8, 0, convert_to($1, 'UTF8'), array['ce_id'],
                 array[convert_to('{EVENT}', 'UTF8')], 3, now() + interval '1 minute', $1)"
        ),
    ] {
        sqlx::query(AssertSqlSafe(sql.to_owned()))
            .bind(text)
            .execute(pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// Sends a dead letter in which every text is `text`.
pub(super) async fn letter(topic: &str, text: &str) {
    letters(&brokers(), topic, text, 1).await;
}

/// Sends dead letters in which every text is `text`.
pub(super) async fn letters(brokers: &str, topic: &str, text: &str, count: usize) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("a producer");
    let (partition, offset) = (0_i32.to_be_bytes(), 7_i64.to_be_bytes());
    let group = topic
        .strip_prefix("order.")
        .and_then(|rest| rest.strip_suffix(".dlt"))
        .expect("a dead letter topic");
    let headers: [(&str, &[u8]); 8] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_type", text.as_bytes()),
        (text, text.as_bytes()),
        ("kafka_dlt-original-topic", b"order"),
        ("kafka_dlt-original-consumer-group", group.as_bytes()),
        ("kafka_dlt-original-partition", &partition),
        ("kafka_dlt-exception-message", text.as_bytes()),
    ];
    let headers = &headers
        .iter()
        .chain([&("kafka_dlt-original-offset", offset.as_slice())])
        .fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(Header {
                key,
                value: Some(*value),
            })
        });
    let sent = (0..count).map(async |_| {
        let record = FutureRecord::to(topic)
            .key(text)
            .payload(text)
            .headers(headers.clone());
        let sent = producer.send(record, Duration::from_secs(60)).await;
        sent.expect("the record is sent");
    });
    futures_util::future::join_all(sent).await;
}
