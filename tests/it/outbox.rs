//! Publishing in the caller's transaction.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection, PgPool, Row};
use tidings::event::{AggregateId, Codec, CodecError, Envelope, EventId, InvalidEvent, Payload};
use tidings::{DomainEvent, Migrations, Outbox, PublishError};

use crate::support::services::{database, migrated_database};

#[derive(Serialize, Deserialize, DomainEvent, Clone, Debug, PartialEq)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: String,
    total_cents: i64,
}

fn placed(order_id: impl ToString, total_cents: i64) -> OrderPlaced {
    OrderPlaced {
        order_id: order_id.to_string(),
        total_cents,
    }
}

fn tombstone_of(order_id: impl ToString) -> Envelope {
    Envelope::tombstone(
        "order",
        AggregateId::new(order_id.to_string()).expect("a valid id"),
    )
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from tidings.outbox")
        .fetch_one(pool)
        .await
        .expect("rows can be counted")
}

#[tokio::test]
async fn an_event_is_published_if_and_only_if_its_transaction_commits() {
    let database = migrated_database().await;
    let outbox = Outbox::new();

    let mut tx = database.pool.begin().await.expect("a transaction");
    outbox
        .publish(&mut tx, &placed(1, 100))
        .await
        .expect("the insert succeeds");
    tx.rollback().await.expect("the rollback succeeds");
    assert_eq!(count(&database.pool).await, 0);

    let mut tx = database.pool.begin().await.expect("a transaction");
    outbox
        .publish(&mut tx, &placed(1, 100))
        .await
        .expect("the insert succeeds");
    let mut savepoint = tx.begin().await.expect("a savepoint");
    outbox
        .publish(&mut savepoint, &placed(2, 100))
        .await
        .expect("the insert succeeds");
    savepoint.rollback().await.expect("the rollback succeeds");
    assert_eq!(
        count(&database.pool).await,
        0,
        "the row is invisible before the commit"
    );
    tx.commit().await.expect("the commit succeeds");
    assert_eq!(count(&database.pool).await, 1);
}

#[tokio::test]
async fn a_row_says_all_there_is_to_say_of_its_event() {
    let database = migrated_database().await;
    let mut tx = database.pool.begin().await.expect("a transaction");
    let happened = chrono::DateTime::from_timestamp_millis(1_700_000_000_123).expect("a time");
    let id = Outbox::new()
        .header("region", "eu")
        .event(&placed("ä-7", 1999))
        .correlation_id("c-1")
        .causation_id(42)
        .header("tenant", "acme \"quoted\"")
        .topic("orders.priority")
        .occurred_at(happened)
        .publish(&mut tx)
        .await
        .expect("the insert succeeds");
    let xid: String = sqlx::query_scalar("select pg_current_xact_id()::text")
        .fetch_one(&mut *tx)
        .await
        .expect("an xid");
    tx.commit().await.expect("the commit succeeds");

    let row = sqlx::query(
        "select *, payload::text as payload_text, headers::text as headers_text, \
            xid::text as xid_text from tidings.outbox",
    )
    .fetch_one(&database.pool)
    .await
    .expect("one row");
    assert_eq!(row.get::<uuid::Uuid, _>("id"), id.as_uuid());
    assert_eq!(row.get::<&str, _>("aggregatetype"), "order");
    assert_eq!(row.get::<&str, _>("aggregateid"), "ä-7");
    assert_eq!(row.get::<&str, _>("type"), "OrderPlaced");
    assert_eq!(row.get::<i32, _>("version"), 1);
    assert_eq!(
        row.get::<&str, _>("payload_text"),
        r#"{"order_id":"ä-7","total_cents":1999}"#
    );
    assert_eq!(row.get::<Option<Vec<u8>>, _>("payload_bytes"), None);
    let headers: serde_json::Value = row.get::<&str, _>("headers_text").parse().expect("JSON");
    assert_eq!(
        headers,
        serde_json::json!({
            "correlationid": "c-1",
            "causationid": "42",
            "region": "eu",
            "tenant": "acme \"quoted\"",
        })
    );
    assert_eq!(
        row.get::<chrono::DateTime<chrono::Utc>, _>("occurred_at"),
        happened
    );
    assert_eq!(row.get::<Option<&str>, _>("topic"), Some("orders.priority"));
    assert_eq!(row.get::<&str, _>("xid_text"), xid);
}

#[tokio::test]
async fn transactions_publish_and_so_do_pooled_and_plain_connections_if_it_is_allowed() {
    let database = migrated_database().await;
    let mut tx = database.pool.begin().await.expect("a transaction");
    Outbox::new()
        .publish(&mut tx, &placed(1, 1))
        .await
        .expect("a transaction publishes");
    let inner: &mut PgConnection = &mut tx;
    Outbox::new()
        .publish(inner, &placed(2, 1))
        .await
        .expect("the dereferenced transaction publishes");
    tx.commit().await.expect("the commit succeeds");
    let outbox = Outbox::new().allow_autocommit();
    let mut pooled = database.pool.acquire().await.expect("a connection");
    outbox
        .publish(&mut pooled, &placed(3, 1))
        .await
        .expect("a pooled connection publishes");
    let mut plain = PgConnection::connect(&database.url)
        .await
        .expect("a connection");
    outbox
        .publish(&mut plain, &placed(4, 1))
        .await
        .expect("a plain connection publishes");
    outbox
        .publish_all(&mut plain, [&placed(5, 1)])
        .await
        .expect("a plain connection publishes a batch");
    let later = outbox
        .publish_after(&mut plain, &placed(6, 1), Duration::from_secs(600))
        .await
        .expect("a plain connection schedules an event");
    assert!(
        outbox
            .cancel(&mut plain, later)
            .await
            .expect("a plain connection cancels an event")
    );
    plain.close().await.expect("the connection closes");
    assert_eq!(count(&database.pool).await, 5);
}

#[tokio::test]
async fn outside_a_transaction_nothing_is_published_scheduled_or_cancelled() {
    let database = migrated_database().await;
    for outbox in [
        Outbox::new(),
        Outbox::new().serialize_aggregates(),
        Outbox::new().unprepared(),
    ] {
        let mut tx = database.pool.begin().await.expect("a transaction");
        let scheduled = outbox
            .publish_after(&mut tx, &placed(1, 1), Duration::from_secs(600))
            .await
            .expect("the event is scheduled");
        tx.commit().await.expect("the commit succeeds");
        let mut conn = database.pool.acquire().await.expect("a connection");
        let (event, soon) = (placed(2, 1), Duration::from_secs(1));
        let refused = [
            outbox.publish(&mut conn, &event).await.map(drop),
            outbox
                .publish_all(&mut conn, [&event, &event])
                .await
                .map(drop),
            outbox
                .publish_envelope(&mut conn, &tombstone_of(2))
                .await
                .map(drop),
            outbox
                .publish_envelopes(&mut conn, &[tombstone_of(2)])
                .await
                .map(drop),
            outbox
                .event(&event)
                .header("a", "b")
                .publish(&mut conn)
                .await
                .map(drop),
            outbox
                .tombstone::<OrderPlaced>("2")
                .publish(&mut conn)
                .await
                .map(drop),
            outbox
                .publish_at(&mut conn, &event, chrono::Utc::now())
                .await
                .map(drop),
            outbox
                .publish_after(&mut conn, &event, soon)
                .await
                .map(drop),
            outbox
                .event(&event)
                .publish_after(&mut conn, soon)
                .await
                .map(drop),
            outbox.cancel(&mut conn, scheduled).await.map(drop),
        ];
        for (at, refused) in refused.into_iter().enumerate() {
            let error = refused.expect_err("there is no transaction");
            assert!(
                matches!(error, PublishError::NoTransaction),
                "{at}: {error:?}"
            );
            let text = error.to_string();
            assert!(
                text.contains("pool.begin()") && text.contains("allow_autocommit"),
                "the remedy and how to allow it: {text}"
            );
        }
        let left: i64 = sqlx::query_scalar("select count(*) from tidings.scheduled where id = $1")
            .bind(scheduled.as_uuid())
            .fetch_one(&mut *conn)
            .await
            .expect("the connection is usable");
        assert_eq!((count(&database.pool).await, left), (0, 1));
    }
}

#[tokio::test]
async fn a_transaction_that_was_begun_by_sql_publishes_and_one_that_failed_says_so() {
    let database = migrated_database().await;
    let mut conn = database.pool.acquire().await.expect("a connection");
    sqlx::raw_sql("begin isolation level serializable")
        .execute(&mut *conn)
        .await
        .expect("a transaction begins");
    Outbox::new()
        .publish(&mut conn, &placed(1, 1))
        .await
        .expect("the event is published");
    sqlx::raw_sql("rollback")
        .execute(&mut *conn)
        .await
        .expect("the rollback succeeds");
    assert_eq!(count(&database.pool).await, 0);
    sqlx::raw_sql("begin")
        .execute(&mut *conn)
        .await
        .expect("a transaction begins");
    sqlx::raw_sql("select 1 / 0")
        .execute(&mut *conn)
        .await
        .expect_err("a division by zero");
    let error = Outbox::new()
        .publish(&mut conn, &placed(1, 1))
        .await
        .expect_err("the transaction has failed");
    let PublishError::Database { sqlstate, source } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(sqlstate.as_deref(), Some("25P02"), "{error:?}");
    assert!(source.is::<sqlx::Error>(), "{error:?}");
    sqlx::raw_sql("rollback")
        .execute(&mut *conn)
        .await
        .expect("the rollback succeeds");
}

#[tokio::test]
async fn publishing_can_be_part_of_a_spawned_task() {
    let database = migrated_database().await;
    let pool = database.pool.clone();
    let publishing = tokio::spawn(async move {
        let mut tx = pool.begin().await?;
        let events = [placed(1, 1), placed(2, 1)];
        Outbox::new()
            .publish_all(&mut tx, events.iter().filter(|event| event.total_cents > 0))
            .await
            .expect("the insert succeeds");
        Outbox::new()
            .event(&events[0])
            .header("a", "b")
            .publish(&mut tx)
            .await
            .expect("the insert succeeds");
        tx.commit().await
    });
    publishing
        .await
        .expect("the task ends")
        .expect("the commit succeeds");
    assert_eq!(count(&database.pool).await, 3);
}

#[tokio::test]
async fn a_batch_is_one_statement_and_keeps_its_order() {
    let database = migrated_database().await;
    for outbox in [
        Outbox::new().allow_autocommit(),
        Outbox::new().allow_autocommit().serialize_aggregates(),
    ] {
        let mut conn = database.pool.acquire().await.expect("a connection");
        sqlx::query("truncate tidings.outbox")
            .execute(&mut *conn)
            .await
            .expect("the table is emptied");
        let events: Vec<_> = (0..5_000).map(|n| placed((n * 7919) % 997, n)).collect();
        let ids = outbox
            .publish_all(&mut conn, &events)
            .await
            .expect("all events are inserted");
        let stored: Vec<(uuid::Uuid, String)> =
            sqlx::query_as("select id, payload->>'total_cents' from tidings.outbox order by seq")
                .fetch_all(&mut *conn)
                .await
                .expect("the rows exist");
        let numbers: Vec<_> = stored
            .iter()
            .map(|(_, number)| number.parse::<i64>().expect("a number"))
            .collect();
        assert_eq!(numbers, (0..5_000).collect::<Vec<_>>());
        assert_eq!(
            stored
                .iter()
                .map(|(id, _)| EventId::from(*id))
                .collect::<Vec<_>>(),
            ids
        );
        let transactions: i64 =
            sqlx::query_scalar("select count(distinct xid) from tidings.outbox")
                .fetch_one(&mut *conn)
                .await
                .expect("the query succeeds");
        assert_eq!(
            transactions, 1,
            "outside a transaction, one statement is one transaction"
        );
    }
    let mut conn = database.pool.acquire().await.expect("a connection");
    assert_eq!(
        Outbox::new()
            .publish_all::<OrderPlaced, _>(&mut conn, [])
            .await
            .expect("nothing is sent"),
        []
    );
}

#[tokio::test]
async fn an_envelope_in_a_batch_reads_as_one_published_alone() {
    let database = migrated_database().await;
    let outbox = Outbox::new().header("region", "eu");
    let mut tx = database.pool.begin().await.expect("a transaction");
    let mut json = outbox
        .event(&placed(1, 2))
        .traceparent("00-a")
        .topic("t")
        .build()
        .expect("the event is valid");
    json.version = 7;
    let bytes = Envelope::new(
        "meter",
        AggregateId::new("m").expect("the event is valid"),
        "Read",
        Payload::Bytes(vec![0, 159, 146, 150]),
    );
    let empty = Envelope::new(
        "meter",
        AggregateId::new("m").expect("the event is valid"),
        "Read",
        Payload::Bytes(vec![]),
    );
    let all = [json, bytes, empty, tombstone_of(3)];
    outbox
        .publish_envelopes(&mut tx, &all)
        .await
        .expect("all events are inserted");
    for mut envelope in all {
        envelope.id = EventId::new();
        outbox
            .publish_envelope(&mut tx, &envelope)
            .await
            .expect("the insert succeeds");
    }
    let rows: Vec<String> = sqlx::query_scalar(
        "select (to_jsonb(o) - 'seq' - 'id')::text from tidings.outbox o order by seq",
    )
    .fetch_all(&mut *tx)
    .await
    .expect("the rows exist");
    assert_eq!(rows.len(), 8);
    assert_eq!(rows[..4], rows[4..]);
    assert!(
        rows[1].contains(r#""payload_bytes": "\\x009f9296""#),
        "{}",
        rows[1]
    );
    assert!(
        rows[2].contains(r#""payload_bytes": "\\x""#),
        "empty bytes are not a tombstone: {}",
        rows[2]
    );
    assert!(
        rows[3].contains(r#""payload": null"#) && rows[3].contains(r#""payload_bytes": null"#),
        "{}",
        rows[3]
    );
}

#[tokio::test]
async fn json_is_stored_byte_for_byte() {
    let database = migrated_database().await;
    let text = "{ \"b\" : 1.0e0,\"a\":\t[ ], \"a\": \"\\u0000\\ud83d\\ude00 ü\" }";
    let mut conn = database.pool.acquire().await.expect("a connection");
    let mut envelope = tombstone_of(1);
    envelope.payload = Payload::json_text(text).expect("JSON");
    Outbox::new()
        .allow_autocommit()
        .publish_envelope(&mut conn, &envelope)
        .await
        .expect("the insert succeeds");
    envelope.id = EventId::new();
    Outbox::new()
        .allow_autocommit()
        .publish_envelopes(&mut conn, &[envelope])
        .await
        .expect("the insert succeeds");
    let stored: Vec<String> = sqlx::query_scalar("select payload::text from tidings.outbox")
        .fetch_all(&mut *conn)
        .await
        .expect("two rows");
    assert_eq!(stored, [text, text]);
}

#[test]
fn whatever_a_payload_says_it_reads_back_the_same() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let database = runtime.block_on(migrated_database());
    let ids = "[^\0]{1,40}";
    let strategy = proptest::collection::vec((ids, any::<String>(), "\\PC{0,40}"), 0..20);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&strategy, |events| {
        runtime.block_on(async {
            let mut conn = database.pool.acquire().await.expect("a connection");
            sqlx::query("truncate tidings.outbox")
                .execute(&mut *conn)
                .await
                .expect("the table is emptied");
            let envelopes: Vec<_> = events
                .iter()
                .map(|(id, text, header)| {
                    let mut envelope = tombstone_of(id);
                    envelope.payload = Payload::json(text).expect("a string has a JSON form");
                    envelope.headers.insert("h", header);
                    envelope
                })
                .collect();
            Outbox::new()
                .allow_autocommit()
                .publish_envelopes(&mut conn, &envelopes)
                .await
                .expect("all events are valid");
            let stored: Vec<(String, String, String)> = sqlx::query_as(
                "select aggregateid, payload::text, headers->>'h' from tidings.outbox order by seq",
            )
            .fetch_all(&mut *conn)
            .await
            .expect("the rows exist");
            let read: Vec<_> = stored
                .into_iter()
                .map(|(id, text, header)| {
                    (
                        id,
                        serde_json::from_str::<String>(&text).expect("JSON"),
                        header,
                    )
                })
                .collect();
            prop_assert_eq!(&read, &events);
            Ok(())
        })
    });
    result.expect("every batch reads back as it was published");
}

#[tokio::test]
async fn what_could_never_be_delivered_is_refused_and_the_transaction_goes_on() {
    let database = migrated_database().await;
    let outbox = Outbox::new().max_event_bytes(100);
    let mut tx = database.pool.begin().await.expect("a transaction");
    let invalid = |error| match error {
        PublishError::Invalid { source, .. } => source,
        other => panic!("unexpected error: {other}"),
    };
    assert_eq!(
        invalid(
            outbox
                .publish(&mut tx, &placed("", 1))
                .await
                .expect_err("no id")
        ),
        InvalidEvent::AggregateIdEmpty
    );
    let error = outbox
        .event(&placed(1, 1))
        .topic("a/b")
        .publish(&mut tx)
        .await
        .expect_err("no topic name");
    assert_eq!(
        invalid(error),
        InvalidEvent::TopicName { name: "a/b".into() }
    );
    let error = outbox
        .event(&placed(1, 1))
        .header("ce_id", "x")
        .publish(&mut tx)
        .await
        .expect_err("a reserved name");
    assert_eq!(
        invalid(error),
        InvalidEvent::ReservedHeader {
            name: "ce_id".into()
        }
    );
    let error = outbox
        .tombstone::<OrderPlaced>("")
        .publish(&mut tx)
        .await
        .expect_err("no id");
    assert_eq!(invalid(error), InvalidEvent::AggregateIdEmpty);

    let batch = [placed(1, 1), placed("x".repeat(101), 1)];
    let error = outbox
        .publish_all(&mut tx, &batch)
        .await
        .expect_err("the second is too large");
    assert!(
        matches!(error, PublishError::PayloadTooLarge { max: 100, .. }),
        "{error}"
    );
    let error = outbox
        .event(&placed(1, 1))
        .header("h", "x".repeat(40_000))
        .publish(&mut tx)
        .await
        .expect_err("large headers");
    assert!(
        matches!(error, PublishError::HeadersTooLarge { .. }),
        "{error}"
    );
    let error = Outbox::new()
        .schema("No")
        .publish(&mut tx, &placed(1, 1))
        .await
        .expect_err("no schema name");
    assert!(matches!(error, PublishError::Schema(_)), "{error}");

    outbox
        .publish(&mut tx, &placed(1, 1))
        .await
        .expect("the transaction is not aborted");
    tx.commit().await.expect("the commit succeeds");
    assert_eq!(
        count(&database.pool).await,
        1,
        "no event of the batch was inserted"
    );
}

#[tokio::test]
async fn a_megabyte_of_payload_and_the_largest_headers_are_accepted_by_the_table() {
    let database = migrated_database().await;
    let mut conn = database.pool.acquire().await.expect("a connection");
    let mut envelope = tombstone_of("x".repeat(AggregateId::BYTES_MAX));
    envelope.payload =
        Payload::json(&"x".repeat(Outbox::MAX_EVENT_BYTES_DEFAULT - 2)).expect("JSON");
    // Escaped characters take twice the bytes in the table, and each header adds some overhead.
    let names = (100..100 + tidings::event::headers::COUNT_MAX).map(|n| n.to_string());
    envelope
        .headers
        .extend(names.map(|name| (name, "\"".repeat(Outbox::MAX_HEADER_BYTES / 64 - 3))));
    assert_eq!(envelope.headers.byte_len(), Outbox::MAX_HEADER_BYTES);
    Outbox::new()
        .allow_autocommit()
        .publish_envelope(&mut conn, &envelope)
        .await
        .expect("the insert succeeds");
}

#[tokio::test]
async fn a_missing_table_is_reported_with_its_remedy() {
    let database = database().await;
    let mut conn = database.pool.acquire().await.expect("a connection");
    let error = Outbox::new()
        .allow_autocommit()
        .publish(&mut conn, &placed(1, 1))
        .await
        .expect_err("there is no table");
    assert!(
        matches!(error, PublishError::MissingTable { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("tidings migrate"), "{error}");
    drop(conn);

    Migrations::new()
        .schema("elsewhere")
        .run(&database.pool)
        .await
        .expect("the migration succeeds");
    let mut conn = database.pool.acquire().await.expect("a connection");
    Outbox::new()
        .schema("elsewhere")
        .allow_autocommit()
        .publish(&mut conn, &placed(1, 1))
        .await
        .expect("the insert succeeds");
}

#[tokio::test]
async fn serialized_writers_of_one_aggregate_wait_for_each_other_and_others_do_not() {
    let database = migrated_database().await;
    let outbox = Outbox::new().serialize_aggregates();
    let mut first = database.pool.begin().await.expect("a transaction");
    outbox
        .publish(&mut first, &placed("hot", 1))
        .await
        .expect("the insert succeeds");

    let mut other = database.pool.begin().await.expect("a transaction");
    outbox
        .publish(&mut other, &placed("cold", 1))
        .await
        .expect("another aggregate does not wait");
    other.commit().await.expect("the commit succeeds");

    let (pool, second_outbox) = (database.pool.clone(), outbox.clone());
    let second = tokio::spawn(async move {
        let mut tx = pool.begin().await.expect("a transaction");
        // A batch takes the same lock as a single event.
        second_outbox
            .publish_all(&mut tx, &[placed("a", 2), placed("hot", 2)])
            .await
            .expect("the insert succeeds");
        tx.commit().await.expect("the commit succeeds");
    });
    wait_for_a_blocked_session(&database.pool).await;
    outbox
        .publish(&mut first, &placed("hot", 3))
        .await
        .expect("its own lock does not stop it");
    first.commit().await.expect("the commit succeeds");
    second.await.expect("the second writer continues");

    let order: Vec<String> = sqlx::query_scalar(
        "select payload->>'total_cents' from tidings.outbox where aggregateid = 'hot' order by seq",
    )
    .fetch_all(&database.pool)
    .await
    .expect("the rows exist");
    assert_eq!(
        order,
        ["1", "3", "2"],
        "numbered in the order of the commits"
    );
}

/// Waits until a session of this database waits for a lock.
async fn wait_for_a_blocked_session(pool: &PgPool) {
    let waiting = "select exists (select from pg_stat_activity where datname = current_database() \
        and wait_event_type = 'Lock')";
    let blocked = async {
        while !sqlx::query_scalar::<_, bool>(waiting)
            .fetch_one(pool)
            .await
            .expect("activity can be read")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), blocked)
        .await
        .expect("the second writer waits for the first");
}

#[tokio::test]
async fn batches_of_the_same_aggregates_in_opposite_order_do_not_deadlock() {
    let database = migrated_database().await;
    let outbox = Outbox::new().serialize_aggregates();
    let writers = (0..4).map(|writer| {
        let (pool, outbox) = (database.pool.clone(), outbox.clone());
        tokio::spawn(async move {
            for round in 0..25 {
                let mut events: Vec<_> = (0..50).map(|n| placed(n, round)).collect();
                if writer % 2 == 0 {
                    events.reverse();
                }
                let mut tx = pool.begin().await?;
                outbox
                    .publish_all(&mut tx, &events)
                    .await
                    .map_err(sqlx::Error::decode)?;
                tx.commit().await?;
            }
            Ok::<(), sqlx::Error>(())
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer
            .await
            .expect("the task ends")
            .expect("no writer is a deadlock's victim");
    }
    assert_eq!(count(&database.pool).await, 4 * 25 * 50);
}

#[tokio::test]
async fn more_locks_than_the_server_has_room_for_are_not_asked_for() {
    let database = migrated_database().await;
    let outbox = Outbox::new().serialize_aggregates();
    let mut tx = database.pool.begin().await.expect("a transaction");
    let events: Vec<_> = (0..=Outbox::MAX_LOCKED_AGGREGATES)
        .map(|n| placed(n, 1))
        .collect();
    let error = outbox
        .publish_all(&mut tx, &events)
        .await
        .expect_err("the batch is too large");
    assert!(
        matches!(error, PublishError::TooManyAggregates { .. }),
        "{error}"
    );
    outbox
        .publish_all(&mut tx, &events[1..])
        .await
        .expect("the largest batch is accepted");
    let locks: i64 = sqlx::query_scalar(
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    )
    .fetch_one(&mut *tx)
    .await
    .expect("locks can be counted");
    assert_eq!(locks, 1_000);
    tx.commit().await.expect("the commit succeeds");
}

#[tokio::test]
async fn a_connection_prepares_the_statement_once() {
    let database = migrated_database().await;
    let mut conn = database.pool.acquire().await.expect("a connection");
    for n in 0..5 {
        Outbox::new()
            .allow_autocommit()
            .publish(&mut conn, &placed(n, 1))
            .await
            .expect("the insert succeeds");
        Outbox::new()
            .allow_autocommit()
            .header("a", "b")
            .publish_all(&mut conn, &vec![placed(n, 1); n + 1])
            .await
            .expect("the events are inserted");
    }
    let prepared: i64 = sqlx::query_scalar(
        "select count(*) from pg_prepared_statements \
            where statement like 'insert into \"tidings\".outbox%'",
    )
    .fetch_one(&mut *conn)
    .await
    .expect("the query succeeds");
    assert_eq!(prepared, 2);
}

/// A custom payload format, as Avro or Protobuf would be.
struct Semicolons;

#[derive(DomainEvent, Debug, PartialEq)]
#[event(aggregate = "point", id = "x", codec = Semicolons, version = 4)]
struct Moved {
    x: i32,
    y: i32,
}

impl Codec<Moved> for Semicolons {
    const CONTENT_TYPE: &'static str = "text/x-semicolons";

    fn encode(event: &Moved) -> Result<Payload, CodecError> {
        Ok(Payload::Bytes(
            format!("{};{}", event.x, event.y).into_bytes(),
        ))
    }

    fn decode(bytes: &[u8]) -> Result<Moved, CodecError> {
        let text = std::str::from_utf8(bytes).map_err(CodecError::decode::<Moved>)?;
        let (x, y) = text
            .split_once(';')
            .ok_or_else(|| CodecError::decode::<Moved>("there is no semicolon"))?;
        let number = |text: &str| text.parse().map_err(CodecError::decode::<Moved>);
        Ok(Moved {
            x: number(x)?,
            y: number(y)?,
        })
    }
}

#[tokio::test]
async fn an_event_in_a_format_of_its_own_is_stored_as_bytes_with_its_content_type() {
    let database = migrated_database().await;
    let mut conn = database.pool.acquire().await.expect("a connection");
    Outbox::new()
        .allow_autocommit()
        .publish(&mut conn, &Moved { x: 3, y: 4 })
        .await
        .expect("the insert succeeds");
    let row = sqlx::query(
        "select payload_bytes, headers->>'content-type' as content_type, version, \
         payload is null as no_json from tidings.outbox",
    )
    .fetch_one(&mut *conn)
    .await
    .expect("one row");
    assert_eq!(
        Semicolons::decode(row.get("payload_bytes")).expect("the row can be read"),
        Moved { x: 3, y: 4 }
    );
    assert_eq!(row.get::<&str, _>("content_type"), "text/x-semicolons");
    assert_eq!(row.get::<i32, _>("version"), 4);
    assert!(row.get::<bool, _>("no_json"));
}

#[tokio::test]
async fn plain_sql_publishes_as_the_documentation_says() {
    let database = migrated_database().await;
    let statements = sql_of(include_str!("../../docs/publishing.md"));
    assert!(
        statements.len() >= 4,
        "the page shows how to publish by SQL"
    );
    for statement in &statements {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.clone()))
            .execute(&database.pool)
            .await
            .unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
    let row = sqlx::query(
        "select *, payload::text as payload_text, headers::text as \
        headers_text, xid is not null as has_xid from tidings.outbox order by seq limit 1",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the first example inserts a row");
    assert_eq!(row.get::<i32, _>("version"), 1);
    assert_eq!(
        row.get::<&str, _>("payload_text"),
        r#"{"order_id": 7, "total_cents": 1999}"#
    );
    assert_eq!(row.get::<&str, _>("headers_text"), "{}");
    assert_eq!(row.get::<Option<&str>, _>("topic"), None);
    assert!(row.get::<bool, _>("has_xid"));
}

/// Returns the `sql` code blocks of a Markdown page.
fn sql_of(page: &str) -> Vec<String> {
    page.split("```sql\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(sql, _)| sql.to_owned())
        .collect()
}

#[tokio::test]
async fn the_lock_documented_for_sql_is_the_one_the_outbox_takes() {
    let database = migrated_database().await;
    let page = include_str!("../../docs/publishing.md");
    let locking = sql_of(page)
        .into_iter()
        .find(|sql| sql.contains("pg_advisory_xact_lock"))
        .expect("the page shows the lock");
    let advisory = "select array_agg((classid, objid)::text order by classid, objid) \
        from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";

    let mut by_sql = database.pool.begin().await.expect("a transaction");
    sqlx::raw_sql(sqlx::AssertSqlSafe(locking))
        .execute(&mut *by_sql)
        .await
        .expect("the insert succeeds");
    let sql_locks: Vec<String> = sqlx::query_scalar(advisory)
        .fetch_one(&mut *by_sql)
        .await
        .expect("one lock");
    by_sql.rollback().await.expect("the rollback succeeds");

    for batch in [false, true] {
        let mut by_outbox = database.pool.begin().await.expect("a transaction");
        let outbox = Outbox::new().serialize_aggregates();
        match batch {
            false => drop(
                outbox
                    .publish(&mut by_outbox, &placed(7, 1))
                    .await
                    .expect("the insert succeeds"),
            ),
            true => drop(
                outbox
                    .publish_all(&mut by_outbox, &[placed(7, 1), placed(7, 2)])
                    .await
                    .expect("the events are inserted"),
            ),
        }
        let locks: Vec<String> = sqlx::query_scalar(advisory)
            .fetch_one(&mut *by_outbox)
            .await
            .expect("one lock");
        assert_eq!(locks, sql_locks);
        by_outbox.rollback().await.expect("the rollback succeeds");
    }
}
