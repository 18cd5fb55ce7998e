//! Rows and records as untrusted data: none of them moves a relay, hides an event or contradicts
//! its envelope.

use std::time::Duration;

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tidings::relay::{OnUndeliverable, SourceKind};
use uuid::Uuid;

use super::operator::{delete_topic, delivered, insert, position_topic, published, ran};
use crate::support::eventually::{PATIENCE, eventually, until_blocking};
use crate::support::records::{Reader, create_topic_with};
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database};

async fn sql(pool: &PgPool, text: &str) {
    sqlx::raw_sql(AssertSqlSafe(text.to_owned()))
        .execute(pool)
        .await
        .expect(text);
}

/// Inserts rows that violate constraints, as rows from before these constraints may.
async fn insert_despite(pool: &PgPool, constraints: &[&str], insert: &str) {
    let rules = "select conname::text, pg_get_constraintdef(oid) from pg_constraint \
        where conrelid = 'tidings.outbox'::regclass";
    let rules: Vec<(String, String)> = sqlx::query_as(rules)
        .fetch_all(pool)
        .await
        .expect("the query succeeds");
    let mut text = String::new();
    for constraint in constraints {
        text += &format!("alter table tidings.outbox drop constraint {constraint};");
    }
    text += insert;
    for (name, rule) in rules
        .iter()
        .filter(|(name, _)| constraints.contains(&name.as_str()))
    {
        assert!(rule.ends_with("NOT VALID"), "{name}: {rule}");
        text += &format!("; alter table tidings.outbox add constraint {name} {rule}");
    }
    sql(pool, &text).await;
}

/// Waits until this number of events are parked with a reason. Returns the topic and reason of
/// each.
async fn until_parked(pool: &PgPool, events: usize) -> Vec<(String, String)> {
    eventually(&format!("{events} events are parked"), async || {
        let read = "select coalesce(topic, ''), reason from tidings.parked \
            where reason is not null order by seq";
        let parked: Vec<(String, String)> = sqlx::query_as(read)
            .fetch_all(pool)
            .await
            .expect("the query succeeds");
        if parked.len() >= events {
            return Ok(parked);
        }
        Err(parked)
    })
    .await
}

/// Returns key and value of every record in the relay's topic of positions.
fn positions(place: &Place) -> Vec<(Vec<u8>, Vec<u8>)> {
    let records = Reader::new(&place.brokers, &position_topic(place))
        .read_to_the_end()
        .to_vec();
    records
        .into_iter()
        .map(|record| (record.key, record.value.unwrap_or_default()))
        .collect()
}

fn produce(place: &Place, topic: &str, key: &[u8], value: &[u8]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .create()
        .expect("a client");
    producer
        .send(BaseRecord::to(topic).partition(0).key(key).payload(value))
        .map_err(|(error, _)| error)
        .expect("the producer accepts the record");
    producer
        .flush(Duration::from_secs(30))
        .expect("the record is sent");
}

/// Returns a position that claims that everything is published, made from one that the relay wrote.
fn forged(record: &[u8], number: u64, keep_signature: bool) -> Vec<u8> {
    let mut entry: Value = serde_json::from_slice(record).expect("a position");
    entry["number"] = number.into();
    entry["epoch"] = 9_999.into();
    entry["chain"] = 0.into();
    entry["position"]["seen"] = "4000000000:4000000000:".into();
    if !keep_signature {
        entry.as_object_mut().expect("an object").remove("hmac");
    }
    serde_json::to_vec(&entry).expect("the value can be serialized")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_asks_for_a_reserved_topic_is_parked_by_whichever_way_it_asks_and_others_go_on()
{
    for source in [SourceKind::Auto, SourceKind::Poll] {
        let database = migrated_database().await;
        let (pool, place) = (&database.pool, Place::new(&database));
        let mut options = place.options();
        (options.source, options.topic) = (source, "{aggregatetype}".into());
        let relay = Running::start(options.clone());
        sql(
            pool,
            &format!(
                "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
                values ('{}', '1', 'T', '1')",
                place.topic
            ),
        )
        .await;
        published(pool, &place, 1).await;
        let own = position_topic(&place);
        let forged = forged(&positions(&place).last().expect("one").1, 500, false);
        let forged = String::from_utf8(forged).expect("JSON").replace('\'', "''");
        let rows = [
            ("order", Some(own.as_str())),
            (own.as_str(), None),
            ("order2", Some("__consumer_offsets")),
            ("__transaction_state", None),
        ];
        let rows: Vec<String> = rows
            .iter()
            .map(|(kind, topic)| {
                let topic = topic.map_or("null".into(), |topic| format!("'{topic}'"));
                format!("('{kind}', '1', 'T', '{forged}', {topic})")
            })
            .collect();
        let rows = format!(
            "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, topic) \
             values {}",
            rows.join(",")
        );
        insert_despite(
            pool,
            &["outbox_topic_reserved", "outbox_aggregatetype_reserved"],
            &rows,
        )
        .await;
        let parked = until_parked(pool, 4).await;
        assert!(
            parked
                .iter()
                .all(|(topic, reason)| reason.contains(&format!("topic `{topic}` is reserved"))),
            "{parked:?}"
        );
        // A retry does not change the outcome.
        sql(pool, "update tidings.parked set action = 'retry'").await;
        sql(
            pool,
            &format!(
                "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
                values ('{}', '1', 'T', '2')",
                place.topic
            ),
        )
        .await;
        published(pool, &place, 2).await;
        relay.stop().await;
        assert!(
            positions(&place).iter().all(|(key, _)| key != b"1"),
            "no row became a record of {own}"
        );
        // The dead letter of such a row does not reach the topic of positions either.
        options.undeliverable.policy = OnUndeliverable::DeadLetter;
        sql(pool, "delete from tidings.parked").await;
        let (code, text) = place.command(&["relay", "rewind", "--all", "--yes"]);
        assert_eq!(code, 0, "{text}");
        let relay = Running::start(options);
        Reader::new(&place.brokers, &format!("reserved.{own}.dead")).until_distinct(1);
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_another_producer_wrote_is_not_gone_on_from() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=3).await;
    let topic = position_topic(&place);
    let ours = positions(&place).last().expect("one").1.clone();
    for forged in [
        forged(&ours, 9_999, false),
        forged(&ours, 9_999, true),
        ours.clone(),
        b"{}".to_vec(),
        br#"{"version":9}"#.to_vec(),
    ] {
        // The record has a key of its own, so that compaction does not remove the relay's records.
        produce(&place, &topic, b"forged", &forged);
    }
    insert(&database.pool, 4..=6).await;
    let relay = place.start();
    published(&database.pool, &place, 6).await;
    relay.stop().await;
    place.start().stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        (1..=6).map(|id| (id, 1)).collect::<Vec<_>>()
    );
}

/// A transaction that has not ended hides every position behind its first record.
#[tokio::test(flavor = "multi_thread")]
async fn positions_behind_an_open_transaction_of_another_program_are_waited_for() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=3).await;
    let topic = position_topic(&place);
    let other: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .set("transactional.id", format!("{topic}.other"))
        .create()
        .expect("a client");
    let limit = Duration::from_secs(30);
    other
        .init_transactions(limit)
        .expect("a transaction begins");
    other.begin_transaction().expect("a transaction begins");
    other
        .send(
            BaseRecord::to(&topic)
                .partition(0)
                .key("other")
                .payload("{}"),
        )
        .map_err(|(error, _)| error)
        .expect("the producer accepts the record");
    other.flush(limit).expect("the record is sent");
    insert(&database.pool, 4..=6).await;
    let relay = place.start();
    published(&database.pool, &place, 6).await;
    relay.stop().await;
    let relay = place.start();
    relay.says("kafka", "hides").await;
    other.abort_transaction(limit).expect("the abort succeeds");
    insert(&database.pool, 7..=7).await;
    published(&database.pool, &place, 7).await;
    relay.stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        (1..=7).map(|id| (id, 1)).collect::<Vec<_>>()
    );
}

/// Another program has filled the topic of positions before the first start of the relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_begins_does_not_go_on_from_what_it_finds() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=3).await;
    let (topic, ours) = (
        position_topic(&place),
        positions(&place).last().expect("one").1.clone(),
    );
    produce(&place, &topic, b"0", &forged(&ours, 9_999, false));
    sql(
        &database.pool,
        "delete from tidings.relay; update tidings.relay_secret set secret = \
         '\\x00112233445566778899aabbccddeeff', signs = false",
    )
    .await;
    let text = place.start().refusal().await;
    assert!(
        text.contains("has not signed")
            && text.contains("rewind --all")
            && text.contains("skip --all"),
        "{text}"
    );
    let (code, text) = place.command(&["relay", "rewind", "--all", "--yes"]);
    assert_eq!(code, 0, "{text}");
    let relay = place.start();
    published(&database.pool, &place, 3).await;
    relay.stop().await;
    place.start().stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        (1..=3).map(|id| (id, 2)).collect::<Vec<_>>()
    );
}

/// The positions were written by a version that did not sign them.
#[tokio::test(flavor = "multi_thread")]
async fn an_installation_whose_positions_are_not_signed_goes_on_and_signs_from_then_on() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=3).await;
    let (topic, records) = (position_topic(&place), positions(&place));
    delete_topic(&place, &topic).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    create_topic_with(&place.brokers, &topic, 1, &[("cleanup.policy", "compact")]).await;
    let unsigned = |record: &[u8]| {
        let mut entry: Value = serde_json::from_slice(record).expect("a position");
        entry.as_object_mut().expect("an object").remove("hmac");
        serde_json::to_vec(&entry).expect("the value can be serialized")
    };
    records
        .iter()
        .for_each(|(key, value)| produce(&place, &topic, key, &unsigned(value)));
    sql(&database.pool, "delete from tidings.relay_secret").await;
    insert(&database.pool, 4..=4).await;
    let relay = place.start();
    published(&database.pool, &place, 4).await;
    relay.stop().await;
    let signs: bool = sqlx::query_scalar("select signs from tidings.relay_secret")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert!(signs);
    // Unsigned records are ignored from now on.
    produce(
        &place,
        &topic,
        b"forged",
        &forged(&records[0].1, 9_999, false),
    );
    insert(&database.pool, 5..=5).await;
    let relay = place.start();
    published(&database.pool, &place, 5).await;
    relay.stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        (1..=5).map(|id| (id, 1)).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_contradicts_its_envelope_is_parked_and_a_record_has_each_attribute_once() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let relay = place.start();
    let forged =
        r#"{"specversion":"1.0","id":"forged","source":"/forged","type":"Forged","data":{}}"#;
    let headers = [
        r#"{"content-type":"application/cloudevents+json"}"#,
        r#"{"Content-Type":" Application/CloudEvents+json; charset=UTF-8"}"#,
        r#"{"ce_id":"forged"}"#,
        r#"{"CE_type":"Forged"}"#,
        r#"{"tidings_replays":"4294967295"}"#,
        r#"{"kafka_dlt-original-topic":"x"}"#,
    ];
    let rows: Vec<String> = (0..)
        .zip(headers)
        .map(|(n, headers)| format!("('order', 'bad{n}', 'T', '{forged}', '{headers}')"))
        .collect();
    let rows = format!(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, headers) values {}",
        rows.join(",")
    );
    insert_despite(pool, &["outbox_headers_reserved"], &rows).await;
    let good = r#"{"correlationid":"c","causationid":"d",
        "content-type":"application/json","tenant":"acme"}"#;
    sql(
        pool,
        &format!(
            "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, headers) \
             values ('order', 'good', 'T', '1', '{good}')"
        ),
    )
    .await;
    let parked = until_parked(pool, headers.len()).await;
    assert!(
        parked.iter().all(|(_, reason)| reason.contains("reserved")),
        "{parked:?}"
    );
    published(pool, &place, 1).await;
    relay.stop().await;
    let names = header_names(&place);
    let mut distinct = names.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(
        distinct.len() == names.len() && distinct.iter().any(|name| name == "ce_id"),
        "{names:?}"
    );
}

/// Returns the header names of the only record in the place's topic.
fn header_names(place: &Place) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .set("group.id", "tests-never-commit")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    (0..4).for_each(|partition| {
        list.add_partition_offset(&place.topic, partition, Offset::Beginning)
            .expect("a partition")
    });
    consumer.assign(&list).expect("the assignment succeeds");
    until_blocking("a record comes", || {
        let record = consumer.poll(Duration::from_millis(100))?.ok()?;
        let headers = record.headers().expect("headers").iter();
        Some(headers.map(|header| header.key.to_lowercase()).collect())
    })
}

/// Logical replication copies the transaction ids of the publisher.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_replicated_into_the_outbox_with_older_transactions_are_published() {
    let (database, other) = (migrated_database().await, migrated_database().await);
    let (pool, place) = (&database.pool, Place::new(&database));
    let mut options = place.options();
    options.source = SourceKind::Poll;
    // The transactions of these rows are older than everything that the relay reads from here on.
    // Each table assigns its own numbers, so the sequence of this one starts elsewhere.
    sql(
        &other.pool,
        "alter table tidings.outbox alter seq restart with 50001",
    )
    .await;
    insert(&other.pool, 1..=150).await;
    let relay = Running::start(options);
    insert(pool, 1_000..=1_009).await;
    published(pool, &place, 10).await;
    replicate(&other, &database).await;
    insert(&other.pool, 151..=200).await;
    published(pool, &place, 210).await;
    // A restore of the data inserts rows in this way, table by table.
    sql(
        pool,
        "set session_replication_role = replica;
         insert into tidings.outbox (seq, xid, aggregatetype, aggregateid, type, payload) \
         overriding system value
             select 100000 + n, '5', 'order', n::text, 'T', to_json(n) \
             from generate_series(2001, 2100) n;
         reset session_replication_role",
    )
    .await;
    published(pool, &place, 310).await;
    relay.stop().await;
    let expected: Vec<_> = (1..=200)
        .chain(1_000..=1_009)
        .chain(2_001..=2_100)
        .map(|id| (id, 1))
        .collect();
    assert_eq!(delivered(place.reader().read_to_the_end()), expected);
    sql(
        pool,
        "alter subscription copies disable; alter subscription copies set (slot_name = \
        none); drop subscription copies",
    )
    .await;
}

/// Replicates the outbox of one database into that of another database on the same server.
async fn replicate(from: &TestDatabase, to: &TestDatabase) {
    let slot = format!("copies_{}", Uuid::now_v7().simple());
    sql(
        &from.pool,
        "create publication copies for table tidings.outbox",
    )
    .await;
    sql(
        &from.pool,
        &format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
    )
    .await;
    sql(
        &to.pool,
        &format!(
            "create subscription copies connection '{url}' publication copies with \
            (create_slot = false, slot_name = '{slot}', copy_data = true)",
            url = from.url
        ),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_a_relay_needs_cannot_be_deleted_by_accident() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    // No relay needs the rows yet, so tests and other connectors may delete them.
    insert(pool, 1..=2).await;
    sql(
        pool,
        "delete from tidings.outbox where aggregateid = '1'; truncate tidings.outbox",
    )
    .await;
    let mut options = place.options();
    options.source = SourceKind::Poll;
    insert(pool, 3..=3).await;
    let relay = Running::start(options.clone());
    published(pool, &place, 1).await;
    let refused = async |text: &str| {
        let error = sqlx::raw_sql(AssertSqlSafe(text.to_owned()))
            .execute(pool)
            .await
            .expect_err(text);
        let error = error.into_database_error().expect("an error of the server");
        let error = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
        let (message, hint) = (
            error.message().to_owned(),
            error.hint().unwrap_or_default().to_owned(),
        );
        assert!(
            message.contains(&format!("still needed by relay {}", place.name))
                && hint.contains("tidings relay forget"),
            "{message} {hint}"
        );
    };
    // A common pattern to keep the table empty.
    refused(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '4', 'T', '4'); delete from tidings.outbox where aggregateid = '4'",
    )
    .await;
    relay.stop().await;
    insert(pool, 5..=6).await;
    refused("delete from tidings.outbox where aggregateid = '5'").await;
    refused("truncate tidings.outbox").await;
    let relay = Running::start(options);
    published(pool, &place, 3).await;
    // The position in the table is slightly older than that of the relay.
    eventually("published rows can be deleted", async || {
        sqlx::raw_sql("delete from tidings.outbox where aggregateid = '5'")
            .execute(pool)
            .await
    })
    .await;
    relay.stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        [(3, 1), (5, 1), (6, 1)]
    );
    insert(pool, 7..=7).await;
    sql(
        pool,
        "set local tidings.delete_unpublished = on; delete from tidings.outbox \
        where aggregateid = '7'",
    )
    .await;
    insert(pool, 8..=8).await;
    assert_eq!(
        place.command(&["relay", "forget", &place.name, "--yes"]).0,
        0
    );
    sql(pool, "truncate tidings.outbox").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_are_none_or_far_away_harm_nothing() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let times = [
        "-infinity",
        "infinity",
        "4714-11-24 00:00:00+00 BC",
        "294276-12-31 23:59:59+00",
        "0001-01-01 00:00:00+00 BC",
        "9999-12-31+00",
    ];
    let rows: Vec<String> = (1..)
        .zip(times)
        .map(|(n, time)| format!("('order', '{n}', 'T', '{n}', '{time}')"))
        .collect();
    let rows = format!(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, occurred_at) \
         values {}",
        rows.join(",")
    );
    insert_despite(pool, &["outbox_occurred_at_finite"], &rows).await;
    let relay = Running::start(place.options());
    published(pool, &place, 6).await;
    insert(pool, 7..=7).await;
    published(pool, &place, 7).await;
    let (code, text) = place.command(&["status"]);
    assert_eq!(code, 0, "{text}");
    relay.stop().await;
    insert_despite(
        pool,
        &["outbox_occurred_at_finite"],
        &rows.replace("'order', '", "'order', '1"),
    )
    .await;
    for command in [
        ["status"].as_slice(),
        &["status", "--json"],
        &["relay", "list"],
    ] {
        let (code, text) = place.command(command);
        assert_eq!(code, 0, "{text}");
    }
    let health = tidings::health::Health::new().check(
        "lag",
        tidings::health::RelayLagCheck::new(pool, &place.name, PATIENCE),
    );
    let report = format!("{:?}", health.report().await);
    assert!(!report.contains("not known"), "{report}");
    // Rows are deleted if they are old or if a later row proves that they are old.
    sql(
        pool,
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, \
        occurred_at) values ('order', '20', 'T', '20', now() - interval '1 year')",
    )
    .await;
    let mut options = place.options();
    options.retention.keep = Duration::from_secs(3_600);
    let relay = Running::start(options.clone());
    published(pool, &place, 14).await;
    relay.stop().await;
    let relay = Running::start(options);
    eventually("retention deletes the old rows", async || {
        let left: Vec<String> =
            sqlx::query_scalar("select aggregateid from tidings.outbox order by seq")
                .fetch_all(pool)
                .await
                .expect("the query succeeds");
        // The recent row remains, and so does the last published one, which is the relay's witness.
        if left == ["7", "20"] {
            return Ok(());
        }
        Err(left)
    })
    .await;
    relay.stop().await;
}
