//! Dead letters that the broker refuses: the event stays, others continue, and the letter arrives
//! once the topic accepts it.

use std::time::Duration;

use dev_services::{Acl, AclOperation, AclResource, Kafka, KafkaOptions};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::PgPool;
use tidings::subscriber::{Event, HandlerError, Meta, Retry, State, Tx};

use super::place::{
    Changed, PATIENCE, Place, create_effects, effect, effects, start, until, until_effects,
};
use crate::relay::records::{Reader, alter_topic, create_topic_with};
use crate::support::services::{TestDatabase, brokers, migrated_database, own_kafka};

/// A limit that every record of these tests fits.
const LARGE: &str = "8000000";

/// Bytes of the record that is too large for a topic with the default limit of a mebibyte.
const THREE_MEGABYTES: usize = 3_000_000;

/// Text that no codec makes smaller than half its length.
fn incompressible(bytes: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut digit = || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        char::from(b'#' + (state >> 33) as u8 % 56)
    };
    (0..bytes).map(|_| digit()).collect()
}

/// Sends an event of the type `Changed`, whose id is its account and version.
async fn send(place: &Place, key: Option<&str>, account: &str, version: i32, padding: &str) {
    let config = [
        ("bootstrap.servers", &*place.brokers),
        ("message.max.bytes", LARGE),
        ("partitioner", "murmur2_random"),
    ];
    let config = config
        .into_iter()
        .fold(ClientConfig::new(), |mut config, (name, value)| {
            config.set(name, value).clone()
        });
    let producer: FutureProducer = config.create().expect("a producer");
    let id = format!("{account}-{version}");
    let attributes = [
        ("ce_specversion", "1.0"),
        ("ce_type", "Changed"),
        ("ce_source", "/test"),
        ("ce_id", &id),
    ];
    let headers = attributes
        .iter()
        .fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(Header {
                key,
                value: Some(*value),
            })
        });
    let value = format!(r#"{{"account":"{account}","version":{version},"padding":"{padding}"}}"#);
    let mut record = FutureRecord::<str, str>::to(&place.topic)
        .payload(&value)
        .headers(headers);
    record.key = key;
    producer.send(record, PATIENCE).await.expect("sent");
}

/// Fails each first version of the account "fails" for good. Every other event has an effect.
async fn fail_one(
    Event(changed): Event<Changed>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    if changed.account == "fails" && changed.version == 1 {
        return Err(HandlerError::dead_letter("no such account"));
    }
    effect(&mut tx, &changed, &meta).await
}

fn letters(place: &Place) -> String {
    format!("{}.{}.dlt", place.topic, place.group)
}

/// The number of parked events and the error of the oldest one.
async fn parked(pool: &PgPool) -> (i64, String) {
    let parked =
        "select count(*), coalesce((array_agg(error order by seq))[1], '') from tidings.subscriber_parked";
    sqlx::query_as(parked).fetch_one(pool).await.expect("read")
}

/// Makes parked events due, so that the next start tries them at once.
async fn make_due(pool: &PgPool) {
    sqlx::query("update tidings.subscriber_parked set next_attempt_at = now()")
        .execute(pool)
        .await
        .expect("updated");
}

async fn until_nothing_is_parked(pool: &PgPool) {
    until("nothing is parked", async || {
        (parked(pool).await.0 == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_letter_is_too_large_is_parked_with_its_aggregate_and_the_partition_continues()
 {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    alter_topic(
        &place.brokers,
        &place.topic,
        &[("max.message.bytes", LARGE)],
    )
    .await;
    create_topic_with(&place.brokers, &letters(&place), 1, &[]).await;
    let padding = incompressible(THREE_MEGABYTES);
    send(&place, Some("fails"), "fails", 1, &padding).await;
    for version in 2..=3 {
        send(&place, Some("fails"), "fails", version, "").await;
        send(&place, Some("works"), "works", version, &padding).await;
    }
    let build = || {
        place
            .subscriber::<()>()
            .on(fail_one)
            .inbox(database.pool.clone())
            .retry(Retry::never())
    };
    let running = start!(build());
    running
        .until("its aggregate is parked", |seen| {
            seen.parked() == 3 && seen.handled() == 2
        })
        .await;
    running
        .until("the partition is finished", |seen| {
            seen.partitions()
                .iter()
                .all(|partition| partition.unfinished == 0)
        })
        .await;
    assert_eq!(
        (
            running.statistics.refused_letters(),
            running.statistics.dead_lettered()
        ),
        (1, 0)
    );
    assert!(!running.statistics.is_paused());
    let (count, error) = parked(&database.pool).await;
    assert!(
        count == 3 && error.contains("refuses the record") && error.contains("no such account"),
        "{count}: {error}"
    );
    running.stop().await;

    alter_topic(
        &place.brokers,
        &letters(&place),
        &[("max.message.bytes", LARGE)],
    )
    .await;
    make_due(&database.pool).await;
    let running = start!(build());
    until_nothing_is_parked(&database.pool).await;
    assert_eq!(
        (
            running.statistics.dead_lettered(),
            running.statistics.handled()
        ),
        (1, 2)
    );
    running.stop().await;
    let mut reader = Reader::new(&place.brokers, &letters(&place));
    let letter = &reader.until_distinct(1)[0];
    assert!(letter.text().contains(&padding));
    assert_eq!(
        letter.headers["kafka_dlt-exception-message"],
        "no such account"
    );
    let effects: Vec<(String, i32)> =
        sqlx::query_as("select account, version from effect order by account, seq")
            .fetch_all(&database.pool)
            .await
            .expect("read");
    assert_eq!(
        effects,
        [("fails", 2), ("fails", 3), ("works", 2), ("works", 3)]
            .map(|(account, version)| (account.to_owned(), version))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_fits_without_headers_about_its_failure_is_sent_without_them() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    const LIMIT: usize = 100_000;
    create_topic_with(
        &place.brokers,
        &letters(&place),
        1,
        &[("max.message.bytes", &LIMIT.to_string())],
    )
    .await;
    let padding = incompressible(LIMIT - 350);
    send(&place, Some("fails"), "fails", 1, &padding).await;
    send(&place, Some("fails"), "fails", 2, "").await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(fail_one)
            .inbox(database.pool.clone())
            .retry(Retry::never())
    );
    until_effects(&database.pool, 1).await;
    assert_eq!(
        (
            running.statistics.dead_lettered(),
            running.statistics.refused_letters()
        ),
        (1, 0)
    );
    running.stop().await;
    let mut reader = Reader::new(&place.brokers, &letters(&place));
    let letter = &reader.until_distinct(1)[0];
    assert!(letter.text().contains(&padding) && letter.headers["ce_id"] == "fails-1");
    assert!(
        !letter.headers.contains_key("kafka_dlt-exception-message"),
        "{:?}",
        letter.headers.keys()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_inbox_only_the_aggregate_waits_for_its_refused_letter() {
    type Handled = std::sync::Arc<std::sync::Mutex<Vec<(String, i32)>>>;
    async fn fail_one(
        Event(changed): Event<Changed>,
        State(handled): State<Handled>,
    ) -> Result<(), HandlerError> {
        if changed.account == "fails" && changed.version == 1 {
            return Err(HandlerError::dead_letter("no such account"));
        }
        handled
            .lock()
            .expect("no panic")
            .push((changed.account, changed.version));
        Ok(())
    }
    let (place, handled) = (Place::new(1).await, Handled::default());
    create_topic_with(
        &place.brokers,
        &letters(&place),
        1,
        &[("max.message.bytes", "200")],
    )
    .await;
    send(&place, Some("fails"), "fails", 1, &incompressible(300)).await;
    for version in 2..=3 {
        send(&place, Some("fails"), "fails", version, "").await;
        send(&place, Some("works"), "works", version, "").await;
    }
    let build = || {
        place
            .subscriber()
            .on(fail_one)
            .state(handled.clone())
            .retry(Retry::never())
    };
    let running = start!(build());
    running
        .until("others are handled", |seen| {
            seen.handled() == 2 && seen.refused_letters() == 1
        })
        .await;
    assert!(!running.statistics.is_paused());
    running
        .until("its aggregate waits", |seen| {
            seen.partitions()
                .iter()
                .map(|partition| partition.unfinished)
                .sum::<u64>()
                == 3
        })
        .await;
    running.stop().await;
    assert!(
        handled
            .lock()
            .expect("no panic")
            .iter()
            .all(|(account, _)| account == "works")
    );

    alter_topic(
        &place.brokers,
        &letters(&place),
        &[("max.message.bytes", LARGE)],
    )
    .await;
    let running = start!(build());
    running
        .until("the rest is handled", |seen| {
            seen.handled() == 2 && seen.dead_lettered() == 1
        })
        .await;
    running.stop().await;
    assert_eq!(
        Reader::new(&place.brokers, &letters(&place)).until_distinct(1)[0].headers["ce_id"],
        "fails-1"
    );
    let mut all = handled.lock().expect("no panic").clone();
    all.sort();
    assert_eq!(
        all,
        [("fails", 2), ("fails", 3), ("works", 2), ("works", 3)]
            .map(|(account, version)| (account.to_owned(), version))
    );
}

/// Settings and rights that make a topic refuse records, and their repair.
struct Refusal<'k> {
    settings: &'k [(&'k str, &'k str)],
    repaired: &'k [(&'k str, &'k str)],
    /// Whether letters have a key.
    key: Option<&'k str>,
    /// The broker whose access-control entries forbid to write.
    forbids: Option<&'k Kafka>,
}

/// The entries that let everyone do everything with a topic but write.
fn read_only(topic: &str) -> [Acl; 2] {
    [(AclOperation::All, true), (AclOperation::Write, false)].map(|(operation, allow)| Acl {
        resource: AclResource::Topic,
        name: topic.to_owned(),
        prefixed: false,
        principal: "User:*".to_owned(),
        operation,
        allow,
    })
}

/// Letters of an event and of a record that is no event are refused, both are parked and reported,
/// others continue, and both letters arrive after the repair.
async fn refused_until_repaired(database: &TestDatabase, place: Place, refusal: Refusal<'_>) {
    create_effects(&database.pool).await;
    let topic = letters(&place);
    create_topic_with(&place.brokers, &topic, 1, refusal.settings).await;
    if let Some(broker) = refusal.forbids {
        read_only(&topic)
            .iter()
            .for_each(|entry| broker.create_acl(entry).expect("added"));
    }
    send(&place, refusal.key, "fails", 1, &incompressible(300)).await;
    place
        .send_record(
            refusal.key.map(|_| "no event"),
            Some(&format!(r#"{{"padding":"{}"}}"#, incompressible(300))),
            &[],
        )
        .await;
    for version in 2..=3 {
        send(&place, Some("works"), "works", version, "").await;
    }
    let build = || {
        place
            .subscriber::<()>()
            .on(fail_one)
            .inbox(database.pool.clone())
            .retry(Retry::never())
    };
    let running = start!(build());
    running
        .until("both are parked", |seen| {
            seen.parked() == 2 && seen.handled() == 2
        })
        .await;
    running
        .until("the partition is finished", |seen| {
            seen.partitions()
                .iter()
                .all(|partition| partition.unfinished == 0)
        })
        .await;
    assert_eq!(
        (
            running.statistics.refused_letters(),
            running.statistics.dead_lettered()
        ),
        (2, 0)
    );
    assert!(!running.statistics.is_paused());
    let (count, error) = parked(&database.pool).await;
    assert!(count == 2 && error.contains(&topic), "{count}: {error}");
    running.stop().await;

    alter_topic(&place.brokers, &topic, refusal.repaired).await;
    if let Some(broker) = refusal.forbids {
        read_only(&topic)
            .iter()
            .rev()
            .for_each(|entry| broker.delete_acl(entry).expect("removed"));
    }
    make_due(&database.pool).await;
    let running = start!(build());
    until_nothing_is_parked(&database.pool).await;
    assert_eq!(running.statistics.dead_lettered(), 2);
    running.stop().await;
    assert_eq!(
        Reader::new(&place.brokers, &topic).read_to_the_end().len(),
        2
    );
    assert_eq!(effects(&database.pool).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_a_small_limit_or_a_compacted_topic_refuses_arrive_after_the_repair() {
    let (small, large) = (
        [("max.message.bytes", "200")],
        [("max.message.bytes", LARGE)],
    );
    let (compacted, deleted) = (
        [("cleanup.policy", "compact")],
        [("cleanup.policy", "delete")],
    );
    for refusal in [
        Refusal {
            settings: &small,
            repaired: &large,
            key: Some("fails"),
            forbids: None,
        },
        Refusal {
            settings: &compacted,
            repaired: &deleted,
            key: None,
            forbids: None,
        },
    ] {
        refused_until_repaired(
            &migrated_database().await,
            Place::on(brokers(), 1).await,
            refusal,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_access_control_forbids_arrive_after_the_repair() {
    let options = KafkaOptions::new()
        .set(
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        )
        .set("allow.everyone.if.no.acl.found", "true");
    let broker = own_kafka(options).await;
    let place = Place::on(broker.brokers(), 1).await;
    let refusal = Refusal {
        settings: &[],
        repaired: &[],
        key: Some("fails"),
        forbids: Some(&broker),
    };
    refused_until_repaired(&migrated_database().await, place, refusal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_with_a_key_that_no_index_entry_can_hold_is_parked_and_handled_in_order() {
    async fn fail_at_first(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        if changed.account == "fails" && changed.version == 1 && meta.attempt() == 1 {
            return Err(HandlerError::retry("not yet"));
        }
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    // Two keys that differ beyond the bytes that the index has.
    let keys = ["fails", "works"].map(|last| incompressible(50_000) + last);
    for version in 1..=3 {
        for (key, account) in keys.iter().zip(["fails", "works"]) {
            send(&place, Some(key), account, version, "").await;
        }
    }
    let pause = Duration::from_millis(5);
    let park = tidings::subscriber::Escalation::Park(Retry::exponential(5, pause..pause));
    let running = start!(
        place
            .subscriber::<()>()
            .on(fail_at_first)
            .inbox(database.pool.clone())
            .retry(Retry::never())
            .escalation(park)
    );
    until_effects(&database.pool, 6).await;
    until_nothing_is_parked(&database.pool).await;
    running.stop().await;
    super::place::assert_once_and_in_order(&database.pool, 2, 3).await;
}
