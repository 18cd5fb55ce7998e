//! Databases that are not UTF-8: records with text that the database cannot store.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tidings::subscriber::{Escalation, Event, HandlerError, Meta, Retry, SubscriberState, Tx};

use crate::support::place::{
    Changed, PATIENCE, Place, create_effects, effect, effects, refused, start, until, until_effects,
};
use crate::support::records::{Reader, create_topic};
use crate::support::services::{encoded_database, migrated_database};

/// A letter of LATIN1, letters that LATIN1 does not have, and NUL.
const HOSTILE: &str = "\u{e9}\u{4e2d}\u{1f600}\0";

/// Fails each event with a hostile error: twice, or for ever if the account is "never". An event
/// must have all of its headers when it is tried again.
async fn fail(Event(changed): Event<Changed>, meta: Meta, mut tx: Tx) -> Result<(), HandlerError> {
    if changed.account == "fine" {
        return effect(&mut tx, &changed, &meta).await;
    }
    for name in ["x-\u{4e2d}", "x-\u{e9}", "tidings_name_"] {
        if meta.header(name) != Some("1") {
            return Err(HandlerError::dead_letter(format!("{name} is missing")));
        }
    }
    if changed.account == "never" || meta.attempt() < 3 {
        return Err(HandlerError::retry(format!(
            "{}: {HOSTILE}{}",
            changed.account,
            "\u{4e2d}".repeat(3_000)
        )));
    }
    effect(&mut tx, &changed, &meta).await
}

async fn send(place: &Place, key: &str, account: &str, attributes: [(&str, &str); 3]) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .create()
        .expect("a producer");
    let headers = [
        ("ce_specversion", "1.0"),
        ("x-\u{4e2d}", "1"),
        ("x-\u{e9}", "1"),
        ("tidings_name_", "1"),
    ];
    let headers =
        headers
            .into_iter()
            .chain(attributes)
            .fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header {
                    key,
                    value: Some(value),
                })
            });
    let value = format!(r#"{{"account":"{account}","version":1}}"#);
    let record = FutureRecord::<str, str>::to(&place.topic)
        .key(key)
        .payload(&value)
        .headers(headers);
    producer.send(record, PATIENCE).await.expect("sent");
}

/// Every hostile record ends as a row or as a dead letter, and stops no other event.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_database_cannot_encode_end_as_rows_or_dead_letters() {
    for encoding in ["LATIN1", "SQL_ASCII", "UTF8"] {
        let database = match encoding {
            "UTF8" => migrated_database().await,
            other => encoded_database(other).await,
        };
        let place = Place::new(1).await;
        create_effects(&database.pool).await;
        let letters = format!("{}.{}.dlt", place.topic, place.group);
        create_topic(&place.brokers, &letters, 1).await;
        let pauses = Duration::from_millis(5)..Duration::from_millis(20);
        let running = start!(
            place
                .subscriber::<()>()
                .on(fail)
                .inbox(database.pool.clone())
                .retry(Retry::exponential(1, pauses.clone()))
                .escalation(Escalation::Park(Retry::exponential(3, pauses)))
        );
        let id = |id| [("ce_type", "Changed"), ("ce_source", "/x"), ("ce_id", id)];
        let strange = HOSTILE.replace('\0', "");
        send(&place, &strange, "fails", id("1")).await;
        send(&place, "never", "never", id("2")).await;
        send(&place, "id", "fails", id(&strange)).await;
        let source = [
            ("ce_type", "Changed"),
            ("ce_source", &*strange),
            ("ce_id", "3"),
        ];
        send(&place, "source", "fails", source).await;
        send(&place, "nul", "fails", id("4\0")).await;
        for (at, kind) in [&*strange, "\0", HOSTILE].into_iter().enumerate() {
            let kind = [("ce_type", kind), ("ce_source", "/x"), ("ce_id", "5")];
            send(&place, &format!("type{at}"), "fails", kind).await;
        }
        send(&place, "fine", "fine", id("6")).await;
        // LATIN1 can store neither the id nor the source.
        let (handled, dead) = if encoding == "LATIN1" { (2, 4) } else { (4, 2) };
        until_effects(&database.pool, handled).await;
        until(encoding, async || {
            (running.statistics.dead_lettered() == dead).then_some(())
        })
        .await;
        assert_eq!(effects(&database.pool).await, handled, "{encoding}");
        assert_eq!(running.statistics.unknown_types(), 3, "{encoding}");
        assert_eq!(running.statistics.state(), SubscriberState::Running);
        let mut reader = Reader::new(&place.brokers, &letters);
        assert_eq!(reader.read_to_the_end().len() as u64, dead, "{encoding}");
        until("no event is parked", async || {
            let parked: i64 = sqlx::query_scalar("select count(*) from tidings.subscriber_parked")
                .fetch_one(&database.pool)
                .await
                .expect("the query succeeds");
            (parked == 0).then_some(())
        })
        .await;
        running.stop().await;
    }
}

/// A database stores as much of an error as it can.
#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_a_parked_event_is_stored_in_any_encoding() {
    for encoding in ["LATIN1", "SQL_ASCII", "UTF8"] {
        let database = match encoding {
            "UTF8" => migrated_database().await,
            other => encoded_database(other).await,
        };
        let place = Place::new(1).await;
        let running = start!(
            place
                .subscriber::<()>()
                .on(fail)
                .inbox(database.pool.clone())
                .retry(Retry::never())
        );
        let id = [("ce_type", "Changed"), ("ce_source", "/x"), ("ce_id", "1")];
        send(&place, "k", "never", id).await;
        running
            .until("it is parked", |seen| seen.parked() == 1)
            .await;
        let error: String = sqlx::query_scalar("select error from tidings.subscriber_parked")
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        let start = match encoding {
            "LATIN1" => r"never: \303\251\344\270\255",
            _ => "never: \u{e9}\u{4e2d}\u{1f600}\u{4e2d}",
        };
        assert!(error.starts_with(start), "{encoding}: {error}");
        running.stop().await;
    }
}

/// An event whose type LATIN1 cannot represent.
#[derive(serde::Serialize, serde::Deserialize, tidings::DomainEvent)]
#[event(aggregate = "account", id = "account", type = "Paid\u{20ac}")]
struct PaidEuro {
    account: String,
}

/// The same statement would fail at each attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_of_a_type_that_the_database_cannot_store_is_refused_at_the_start() {
    async fn ignore(_: Event<PaidEuro>) -> Result<(), HandlerError> {
        Ok(())
    }
    let (database, place) = (encoded_database("LATIN1").await, Place::new(1).await);
    let subscriber = place
        .subscriber::<()>()
        .on(ignore)
        .inbox(database.pool.clone());
    let error = refused(subscriber.run(Default::default())).await;
    assert!(
        error.contains("the instance cannot be registered")
            && error.contains("the database cannot store one of its names"),
        "{error}"
    );
}
