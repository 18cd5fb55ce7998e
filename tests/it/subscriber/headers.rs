//! Records with very many headers, or with headers of hostile bytes: each costs one event, memory
//! is bounded, and so are metrics.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tidings::subscriber::{Event, HandlerError, Meta, Retry, State, SubscriberMetrics};

use super::observing::scraped;
use super::place::{
    Changed, PATIENCE, Place, create_effects, effects, start, until, until_effects,
};
use super::process::Process;
use super::raw_record::produce;
use crate::relay::records::Reader;
use crate::support::services::migrated_database;

const MANY: usize = 20_000;

/// Twenty thousand headers that are text.
fn many() -> Vec<(String, Vec<u8>)> {
    (0..MANY)
        .map(|n| (format!("h{n}"), b"x".to_vec()))
        .collect()
}

fn cloud_event(id: &str, event_type: &[u8]) -> Vec<(String, Vec<u8>)> {
    let attributes = [
        ("ce_specversion", &b"1.0"[..]),
        ("ce_type", event_type),
        ("ce_source", b"/test"),
        ("ce_id", id.as_bytes()),
    ];
    attributes
        .map(|(name, value)| (name.to_owned(), value.to_vec()))
        .into()
}

struct Sender<'p> {
    producer: FutureProducer,
    place: &'p Place,
}

impl<'p> Sender<'p> {
    fn to(place: &'p Place) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &place.brokers)
            .set("enable.idempotence", "true")
            .create()
            .expect("a producer");
        Self { producer, place }
    }

    async fn send(&self, account: &str, version: i32, headers: &[(String, Vec<u8>)]) {
        let all = OwnedHeaders::new_with_capacity(headers.len());
        let all = headers.iter().fold(all, |all, (key, value)| {
            all.insert(Header {
                key,
                value: Some(value),
            })
        });
        let value = format!(r#"{{"account":"{account}","version":{version}}}"#);
        let record = FutureRecord::<str, str>::to(&self.place.topic)
            .key(account)
            .payload(&value)
            .headers(all);
        self.producer.send(record, PATIENCE).await.expect("sent");
    }
}

/// Sends a record with twenty thousand header names that are no text.
async fn send_unreadable(place: &Place) {
    let headers: Vec<(Vec<u8>, &[u8])> = (0..MANY)
        .map(|n| ([b"\xff\xfe", n.to_string().as_bytes()].concat(), &b"x"[..]))
        .collect();
    let sent = async || {
        produce(&place.brokers, &place.topic, b"unreadable", b"{}", &headers).then_some(())
    };
    until("the broker accepts it", sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_with_very_many_or_hostile_headers_cost_one_event_each() {
    type Found = std::sync::Arc<std::sync::Mutex<Vec<String>>>;
    async fn note(
        Event(changed): Event<Changed>,
        meta: Meta,
        State(found): State<Found>,
    ) -> Result<(), HandlerError> {
        if changed.account == "fails" {
            return Err(HandlerError::dead_letter("no such account"));
        }
        found.lock().expect("no panic").push(
            meta.header("h19999")
                .or(meta.header("tenant"))
                .unwrap_or_default()
                .to_owned(),
        );
        Ok(())
    }
    let (place, found) = (Place::new(1).await, Found::default());
    let sender = Sender::to(&place);
    let changed = |id: &str| cloud_event(id, b"Changed");
    send_unreadable(&place).await;
    sender
        .send("works", 1, &[changed("1"), many()].concat())
        .await;
    sender
        .send("fails", 1, &[changed("2"), many()].concat())
        .await;
    // The attributes come after more headers than their places are counted with.
    let filler: Vec<_> = (0..70_000).map(|_| ("h".to_owned(), Vec::new())).collect();
    sender
        .send("late", 1, &[filler, changed("3")].concat())
        .await;
    // Bytes that a terminal, a line of text, JSON or Postgres would not take, in names and values.
    let hostile: Vec<_> = [
        "",
        " ",
        "\u{1b}]0;x\u{7}",
        "a\nb",
        "\u{202e}",
        "\"",
        "ce_",
        "ce_ce_id",
        "kafka_dlt-exception-message",
        "tidings_due",
    ]
    .into_iter()
    .flat_map(|name| {
        [
            (name.to_owned(), (0..=255).collect()),
            (name.repeat(300), b"x".to_vec()),
        ]
    })
    .collect();
    sender
        .send("works", 2, &[changed("4"), hostile.clone()].concat())
        .await;
    sender
        .send("fails", 2, &[changed("5"), hostile].concat())
        .await;
    // Types without a handler: long ones, many, and one that is no text for a label.
    for letter in "abcdefghij".chars() {
        sender
            .send(
                "unknown",
                0,
                &cloud_event("long", letter.to_string().repeat(900_000).as_bytes()),
            )
            .await;
    }
    for n in 0..500 {
        sender
            .send(
                "unknown",
                n,
                &cloud_event(&format!("u{n}"), format!("Unknown{n}").as_bytes()),
            )
            .await;
    }
    sender
        .send(
            "unknown",
            0,
            &cloud_event("escapes", b"\"} 1\nforged_total{x=\"\0"),
        )
        .await;
    sender
        .send(
            "works",
            3,
            &[changed("6"), vec![("tenant".into(), b"acme".to_vec())]].concat(),
        )
        .await;

    let running = start!(
        place
            .subscriber()
            .on(note)
            .state(found.clone())
            .retry(Retry::never())
            .kill_switch(None)
    );
    let counts = || {
        (
            running.statistics.handled(),
            running.statistics.dead_lettered(),
            running.statistics.unknown_types(),
        )
    };
    let ended = tokio::time::timeout(PATIENCE, async {
        while counts() != (3, 4, 511) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(
        ended.await.is_ok(),
        "handled, dead, unknown: {:?}",
        counts()
    );
    let text = scraped(|registry| {
        SubscriberMetrics::default()
            .subscriber(&running.statistics)
            .register(registry)
    });
    running.stop().await;
    assert_eq!(*found.lock().expect("no panic"), ["x", "", "acme"]);
    assert!(text.len() < 100_000, "{} bytes of metrics", text.len());
    assert_eq!(
        text.lines()
            .filter(|line| line.contains("outcome=\"unknown\""))
            .count(),
        101
    );
    assert!(
        !text.lines().any(|line| line.starts_with("forged")),
        "{text}"
    );

    let mut reader = Reader::new(
        &place.brokers,
        &format!("{}.{}.dlt", place.topic, place.group),
    );
    let letters = reader.read_to_the_end();
    // Letters of different aggregates have no order.
    let reason_of = |key: &str| {
        letters
            .iter()
            .find(|letter| letter.key == key.as_bytes())
            .map(|letter| &*letter.headers["kafka_dlt-exception-message"])
    };
    for (key, expected) in [
        ("unreadable", "the names of many headers"),
        ("fails", "no such account"),
        ("late", "the CloudEvent has no"),
    ] {
        assert!(
            reason_of(key).is_some_and(|reason| reason.contains(expected)),
            "{key}: {:?}",
            reason_of(key)
        );
    }
    let many = letters
        .iter()
        .find(|letter| letter.headers.get("ce_id").is_some_and(|id| id == "2"))
        .expect("a letter");
    assert_eq!(
        many.headers
            .keys()
            .filter(|name| name.starts_with('h'))
            .count(),
        MANY
    );
    assert_eq!(letters.len(), 4);
}

/// Memory for a member: its code and connections, buffers of 16 MiB in librdkafka and in the
/// partition, records that are on their way from the broker, and room for the allocator.
const MEMORY_MAX: u64 = 190 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn many_records_with_very_many_headers_take_little_memory_and_cause_few_panics() {
    const RECORDS: i32 = 400;
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let sender = Sender::to(&place);
    for version in 1..=3 {
        send_unreadable(&place).await;
        sender
            .send(
                "between",
                version,
                &cloud_event(&format!("between-{version}"), b"Changed"),
            )
            .await;
    }
    let many = many();
    for n in 0..RECORDS {
        sender
            .send(
                "many",
                n,
                &[cloud_event(&format!("many-{n}"), b"Changed"), many.clone()].concat(),
            )
            .await;
    }
    let report: PathBuf = [
        env!("CARGO_TARGET_TMPDIR"),
        &format!("{}.stderr", place.topic),
    ]
    .iter()
    .collect();
    let member = Process::start_reporting(&place, &database, &report);
    until_effects(&database.pool, i64::from(3 + RECORDS)).await;
    let memory = member.memory_max();
    member.stop().await;
    assert_eq!(effects(&database.pool).await, i64::from(3 + RECORDS));
    if let Some(memory) = memory {
        println!("memory of a member: {} MiB", memory >> 20);
        assert!(memory < MEMORY_MAX, "{memory} bytes");
    }
    let report_text = std::fs::read_to_string(&report).expect("written");
    std::fs::remove_file(&report).expect("removed");
    let panics = report_text
        .lines()
        .filter(|line| line.contains("panicked"))
        .count();
    assert!(
        (1..100).contains(&panics),
        "{panics} panics that are caught, for three records"
    );
    let mut reader = Reader::new(
        &place.brokers,
        &format!("{}.{}.dlt", place.topic, place.group),
    );
    assert_eq!(reader.read_to_the_end().len(), 3);
}
