//! The content of records, byte for byte.

use tidings::relay::EnvelopeFormat;

use crate::support::running::{Place, Running};
use crate::support::services::migrated_database;

#[tokio::test(flavor = "multi_thread")]
async fn plain_sql_is_enough_and_the_payload_arrives_as_it_was_written() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let payload = "{ \"total\" : 1.00,\n \"name\": \"Zoë \\u0000\" }";
    let id: uuid::Uuid = sqlx::query_scalar(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, headers, \
         occurred_at)
         values ('order', 'ключ-ä-🦀', 'OrderPlaced', $1::text::json, '{\"correlationid\": \
         \"c-1\", \"tenant\": \"acme\", \"traceparent\": \"00-1-2-01\"}', \
         '2026-01-02 03:04:05.678901+00')
         returning id",
    )
    .bind(payload)
    .fetch_one(&database.pool)
    .await
    .expect("the insert succeeds");
    let relay = place.start();
    let mut reader = place.reader();
    let record = reader.until_distinct(1)[0].clone();
    relay.stop().await;
    assert_eq!(
        (record.text(), record.key.as_slice()),
        (payload, "ключ-ä-🦀".as_bytes())
    );
    let database_name: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&database.pool)
        .await
        .expect("a name");
    let source = format!("/tidings/{database_name}");
    for (header, value) in [
        ("ce_specversion", "1.0"),
        ("ce_id", id.to_string().as_str()),
        ("ce_type", "OrderPlaced"),
        ("ce_source", source.as_str()),
        ("ce_subject", "ключ-ä-🦀"),
        ("ce_time", "2026-01-02T03:04:05.678901Z"),
        ("ce_aggregatetype", "order"),
        ("ce_dataversion", "1"),
        ("ce_correlationid", "c-1"),
        ("content-type", "application/json"),
        ("traceparent", "00-1-2-01"),
        ("tenant", "acme"),
    ] {
        assert_eq!(
            record.headers.get(header).map(String::as_str),
            Some(value),
            "{header}"
        );
    }
    assert_eq!(record.headers.len(), 12, "{:?}", record.headers);
    // Kafka's retention uses this timestamp, so an old event must not arrive expired.
    assert!(record.timestamp > chrono::Utc::now().timestamp_millis() - 25 * 3_600_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_bytes_and_tombstones_come_through_and_go_where_the_java_client_would_send_them()
 {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    relay.says("stream", "streaming").await;
    sqlx::raw_sql(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
         values ('file', 'foobar', 'Large', to_json(repeat('x', 999990)));
         insert into tidings.outbox (aggregatetype, aggregateid, type, payload_bytes) \
         values ('file', '21', 'Bytes', '\\x00ff01');
         insert into tidings.outbox (aggregatetype, aggregateid, type) \
         values ('file', 'a-little-bit-long-string', 'Gone')",
    )
    .execute(&database.pool)
    .await
    .expect("the insert succeeds");
    let mut reader = place.reader();
    let records = reader.until_distinct(3).to_vec();
    relay.stop().await;
    let of = |key: &str| {
        records
            .iter()
            .find(|record| record.key == key.as_bytes())
            .expect("the record is delivered")
    };
    assert_eq!(of("foobar").value.as_ref().map(Vec::len), Some(999_992));
    assert_eq!(
        (
            of("21").value.as_deref(),
            of("21").headers["content-type"].as_str()
        ),
        (Some(&[0u8, 255, 1][..]), "application/octet-stream")
    );
    assert_eq!(of("a-little-bit-long-string").value, None);
    // The Java client computes `(murmur2(key) & 0x7fffffff) % 4`. The hashes are from Kafka's own
    // UtilsTest.
    for (key, hash) in [
        ("foobar", -790_332_482i32),
        ("21", -973_932_308),
        ("a-little-bit-long-string", -985_981_536),
    ] {
        assert_eq!(of(key).partition, (hash & 0x7fff_ffff) % 4, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_envelopes_and_a_rows_own_topic_are_followed() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let own = crate::support::running::new_topic();
    sqlx::query(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, topic) \
        values ('order', '1', 'OrderPlaced', '{\"n\":1}', $1), ('order', '1', 'OrderPlaced', \
        '{\"n\":2}', null)",
    )
    .bind(&own)
    .execute(&database.pool)
    .await
    .expect("the insert succeeds");
    let mut options = place.options();
    options.envelope = EnvelopeFormat::CloudEventsStructured;
    options.event_source = "https://shop.example/orders".into();
    let relay = Running::start(options);
    let structured = place.reader().until_distinct(1)[0].clone();
    let elsewhere =
        crate::support::records::Reader::new(&place.brokers, &own).until_distinct(1)[0].clone();
    relay.stop().await;
    let json: serde_json::Value = serde_json::from_str(structured.text()).expect("JSON");
    assert_eq!(
        (&json["data"]["n"], &json["source"], &json["subject"]),
        (
            &2.into(),
            &"https://shop.example/orders".into(),
            &"1".into()
        )
    );
    assert_eq!(
        structured.headers["content-type"],
        "application/cloudevents+json; charset=UTF-8"
    );
    assert!(elsewhere.text().contains("\"data\":{\"n\":1}"));

    sqlx::raw_sql(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
         values ('order', '1', 'OrderPlaced', '{\"n\":3}')",
    )
    .execute(&database.pool)
    .await
    .expect("the insert succeeds");
    let mut options = place.options();
    options.envelope = EnvelopeFormat::Debezium;
    let relay = Running::start(options);
    let mut reader = place.reader();
    let record = reader
        .until_distinct(2)
        .last()
        .cloned()
        .expect("the record is delivered");
    relay.stop().await;
    assert_eq!(
        (
            record.text(),
            record
                .headers
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
        ),
        ("{\"n\":3}", vec!["id"])
    );
}

/// An upgrade must not change the identity of events, because delivery at least once may repeat
/// events from before the upgrade.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_from_before_sources_named_the_database_keeps_its_source() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let publish = async |id: &str| {
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
            values ('order', $1, 'OrderPlaced', '{}')";
        sqlx::query(insert)
            .bind(id)
            .execute(&database.pool)
            .await
            .expect("the insert succeeds");
    };
    publish("1").await;
    let relay = place.start();
    let mut reader = place.reader();
    reader.until_distinct(1);
    relay.stop().await;
    // The row of an earlier version has no source.
    sqlx::query("update tidings.relay set event_source = null")
        .execute(&database.pool)
        .await
        .expect("the update succeeds");
    publish("2").await;
    let relay = place.start();
    let sources: Vec<String> = reader
        .until_distinct(2)
        .iter()
        .map(|record| record.headers["ce_source"].clone())
        .collect();
    relay.stop().await;
    assert!(
        sources[0].starts_with("/tidings/tidings_test_"),
        "{sources:?}"
    );
    assert_eq!(sources[1], "/tidings");
}
