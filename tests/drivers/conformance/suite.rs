//! The suite: what every driver must do.

use std::time::Duration;

use chrono::{DateTime, TimeZone as _, Utc};
use serde::{Deserialize, Serialize};
use tidings::{
    DomainEvent, Outbox, PublishError,
    event::{AggregateId, Envelope, EventId, Payload},
};

use crate::{
    database::{Database, Row},
    driver::{Call, Driver},
};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id", version = 3)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: i64,
    pub(crate) customer: String,
}

fn placed(order_id: i64) -> OrderPlaced {
    OrderPlaced {
        order_id,
        customer: "Zoë \"Q\" 東".into(),
    }
}

fn then() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 5).unwrap() + Duration::from_micros(678_901)
}

pub(crate) async fn an_event_exists_if_and_only_if_its_transaction_commits<D: Driver>() {
    let (database, outbox) = (Database::new().await, Outbox::new());
    let mut tx = D::begin(&database.url).await;
    let call = Call::Publish(&outbox, &placed(1));
    tx.call(call).await.expect("published");
    tx.end(false).await;
    assert!(database.ids().await.is_empty(), "rolled back");
    let mut tx = D::begin(&database.url).await;
    let call = Call::Publish(&outbox, &placed(1));
    let id = tx.call(call).await.expect("published");
    assert!(database.ids().await.is_empty(), "not committed yet");
    tx.end(true).await;
    assert_eq!(database.ids().await, [id.as_uuid()]);
}

/// The envelopes of each kind of payload, with and without a topic.
pub(crate) fn each_kind() -> Vec<Envelope> {
    let id = |id: &str| AggregateId::new(id).expect("a valid id");
    let mut json = Envelope::new(
        "order",
        id("ä 'quoted' \\ \"id\""),
        "OrderPlaced",
        Payload::json_text("{ \"b\" : 1.50,\n\"a\":null }".to_owned()).expect("JSON"),
    );
    json.headers.insert("tenant", "Zoë, \"acme\" {x}");
    json.topic = Some("orders-priority".into());
    json.version = 7;
    json.occurred_at = then();
    let bytes =
        |bytes: &[u8]| Envelope::new("order", id("2"), "Avro", Payload::Bytes(bytes.into()));
    let mut tombstone = Envelope::tombstone("order", id("3"));
    tombstone.topic = Some("compacted".into());
    vec![json, bytes(b"\0\x01\xff\\"), bytes(b""), tombstone]
}

/// The row that an envelope becomes.
pub(crate) fn expected(envelope: &Envelope) -> Row {
    let json = envelope.payload.as_json();
    Row {
        id: envelope.id.as_uuid(),
        aggregatetype: envelope.aggregate_type.to_string(),
        aggregateid: envelope.aggregate_id.as_str().to_owned(),
        r#type: envelope.event_type.to_string(),
        version: i32::try_from(envelope.version).expect("small"),
        payload: json.map(str::to_owned),
        payload_bytes: match &envelope.payload {
            Payload::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        },
        headers: if envelope.headers.is_empty() {
            "{}".into()
        } else {
            r#"{"tenant": "Zoë, \"acme\" {x}"}"#.into()
        },
        occurred_at: Some(envelope.occurred_at.timestamp_micros()),
        topic: envelope.topic.as_deref().map(str::to_owned),
    }
}

pub(crate) async fn a_row_has_every_value_of_its_event<D: Driver>() {
    let (database, outbox) = (Database::new().await, Outbox::new());
    let envelopes = each_kind();
    let mut tx = D::begin(&database.url).await;
    for envelope in &envelopes {
        let id = tx.call(Call::Envelope(&outbox, envelope)).await;
        assert_eq!(id.expect("published"), envelope.id);
    }
    tx.end(true).await;
    let rows: Vec<Row> = envelopes.iter().map(expected).collect();
    assert_eq!(database.rows("outbox").await, rows);
}

pub(crate) async fn several_events_keep_their_order_and_their_values<D: Driver>() {
    let (database, outbox) = (Database::new().await, Outbox::new());
    let envelopes = each_kind();
    let mut tx = D::begin(&database.url).await;
    let ids = tx.envelopes(&outbox, &envelopes).await.expect("published");
    let events: Vec<_> = (0..300).map(placed).collect();
    let more = tx.all(&outbox, &events).await.expect("published");
    tx.end(true).await;
    let rows = database.rows("outbox").await;
    let first: Vec<Row> = envelopes.iter().map(expected).collect();
    assert_eq!(rows[..4], first);
    let all: Vec<_> = [ids, more].concat().iter().map(EventId::as_uuid).collect();
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), all);
    assert_eq!((rows[4].version, &*rows[4].aggregateid), (3, "0"));
    assert_eq!(rows[303].aggregateid, "299");
}

pub(crate) async fn no_event_is_no_statement<D: Driver>() {
    let (database, outbox) = (Database::new().await, Outbox::new().schema("not_there"));
    let mut tx = D::begin(&database.url).await;
    assert_eq!(tx.all(&outbox, &[]).await.expect("nothing to do"), []);
    tx.end(true).await;
}

pub(crate) async fn a_draft_sets_headers_topic_time_and_id<D: Driver>() {
    let database = Database::new().await;
    let outbox = Outbox::new().header("region", "eu");
    let id = EventId::from(uuid::Uuid::now_v7());
    let draft = outbox
        .event(&placed(7))
        .correlation_id("req-1")
        .topic("elsewhere")
        .occurred_at(then())
        .id(id);
    let mut tx = D::begin(&database.url).await;
    assert_eq!(
        tx.call(Call::Draft(Box::new(draft)))
            .await
            .expect("published"),
        id
    );
    let tombstone = outbox.tombstone::<OrderPlaced>("8");
    tx.call(Call::Draft(Box::new(tombstone)))
        .await
        .expect("published");
    tx.end(true).await;
    let rows = database.rows("outbox").await;
    assert_eq!(rows[0].id, id.as_uuid());
    assert_eq!(rows[0].topic.as_deref(), Some("elsewhere"));
    assert_eq!(rows[0].occurred_at, Some(then().timestamp_micros()));
    let headers: serde_json::Value = serde_json::from_str(&rows[0].headers).expect("JSON");
    assert_eq!(headers["region"], "eu");
    assert!(rows[0].headers.contains("req-1"), "{}", rows[0].headers);
    assert_eq!((&rows[1].payload, &rows[1].payload_bytes), (&None, &None));
}

pub(crate) async fn scheduled_events_are_stored_and_cancelled<D: Driver>() {
    let (database, outbox) = (Database::new().await, Outbox::new());
    let mut tx = D::begin(&database.url).await;
    let at = tx.call(Call::At(&outbox, &placed(1), then())).await;
    let at = at.expect("scheduled");
    let delay = Duration::from_secs(3_600);
    let after = tx.call(Call::After(&outbox, &placed(2), delay)).await;
    let after = after.expect("scheduled");
    tx.end(true).await;
    let due: Vec<(uuid::Uuid, f64)> = sqlx::query_as(
        "select id, extract(epoch from due_at - now())::float8 from tidings.scheduled order by due_at",
    )
    .fetch_all(&database.pool)
    .await
    .expect("the query succeeds");
    assert_eq!(
        due.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [at.as_uuid(), after.as_uuid()]
    );
    assert!(
        due[0].1 < 0.0 && due[1].1 > 3_000.0 && due[1].1 <= 3_600.0,
        "{due:?}"
    );
    assert_eq!(database.rows("scheduled").await[0].occurred_at, None);
    let mut tx = D::begin(&database.url).await;
    assert!(tx.cancel(&outbox, after).await.expect("cancelled"));
    assert!(!tx.cancel(&outbox, after).await.expect("already cancelled"));
    tx.end(false).await;
    assert_eq!(database.rows("scheduled").await.len(), 2, "rolled back");
}

pub(crate) async fn aggregates_are_locked_until_the_transaction_ends<D: Driver>() {
    let database = Database::new().await;
    let outbox = Outbox::new().serialize_aggregates();
    let mut tx = D::begin(&database.url).await;
    let call = Call::Publish(&outbox, &placed(1));
    tx.call(call).await.expect("published");
    assert_eq!(database.advisory_locks().await, 1);
    let more = [placed(1), placed(2), placed(3), placed(2)];
    tx.all(&outbox, &more).await.expect("published");
    assert_eq!(database.advisory_locks().await, 3);
    tx.end(true).await;
    assert_eq!(database.advisory_locks().await, 0);
    assert_eq!(database.ids().await.len(), 5);
}

pub(crate) async fn nothing_is_published_outside_a_transaction_unless_allowed<D: Driver>() {
    let database = Database::new().await;
    let Some(refused) = D::outside(&database.url, &Outbox::new(), &placed(1)).await else {
        return;
    };
    assert!(
        matches!(refused, Err(PublishError::NoTransaction)),
        "{refused:?}"
    );
    assert!(database.ids().await.is_empty());
    let allows = Outbox::new().allow_autocommit();
    let published = D::outside(&database.url, &allows, &placed(1)).await;
    let id = published.expect("as before").expect("published");
    assert_eq!(database.ids().await, [id.as_uuid()]);
}

pub(crate) async fn an_event_that_could_never_be_delivered_leaves_the_transaction_usable<
    D: Driver,
>() {
    let (database, outbox) = (Database::new().await, Outbox::new().max_event_bytes(100));
    let mut tx = D::begin(&database.url).await;
    let large = OrderPlaced {
        order_id: 1,
        customer: "x".repeat(100),
    };
    let error = tx.call(Call::Publish(&outbox, &large)).await;
    assert!(
        matches!(error, Err(PublishError::PayloadTooLarge { .. })),
        "{error:?}"
    );
    let reserved = outbox.event(&placed(1)).header("ce_id", "mine");
    let error = tx.call(Call::Draft(Box::new(reserved))).await;
    assert!(
        matches!(error, Err(PublishError::Invalid { .. })),
        "{error:?}"
    );
    let error = tx
        .call(Call::Publish(&outbox.clone().schema("No such"), &placed(1)))
        .await;
    assert!(matches!(error, Err(PublishError::Schema(_))), "{error:?}");
    let id = tx
        .call(Call::Publish(&outbox, &placed(1)))
        .await
        .expect("published");
    tx.end(true).await;
    assert_eq!(database.ids().await, [id.as_uuid()]);
}

pub(crate) async fn errors_of_the_server_have_the_same_names<D: Driver>() {
    let (database, outbox) = (Database::new().await, Outbox::new());
    let mut tx = D::begin(&database.url).await;
    let elsewhere = outbox.clone().schema("elsewhere");
    let error = tx.call(Call::Publish(&elsewhere, &placed(1))).await;
    let Err(PublishError::MissingTable { table, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(table, "elsewhere.outbox");
    tx.end(false).await;
    let mut tx = D::begin(&database.url).await;
    let id = tx
        .call(Call::Publish(&outbox, &placed(1)))
        .await
        .expect("published");
    let again = outbox.event(&placed(1)).id(id);
    let error = tx.call(Call::Draft(Box::new(again))).await;
    let Err(PublishError::Database { sqlstate, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(sqlstate.as_deref(), Some("23505"));
    tx.end(false).await;
    assert!(database.ids().await.is_empty());
}
