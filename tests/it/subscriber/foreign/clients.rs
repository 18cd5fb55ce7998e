//! Records of real clients in other languages: events are handled with their attributes, other
//! formats are named.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tidings::DomainEvent;
use tidings::event::{Codec, CodecError, Payload};
use tidings::subscriber::{Event, HandlerError, Meta, Retry, State};

use super::super::place::{Place, start};
use crate::relay::records::{Reader, alter_topic};
use crate::support::languages::{Program, Source};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(
    aggregate = "account",
    id = "account",
    type = "com.example.account.opened"
)]
struct Opened {
    account: String,
}

/// An event whose data is plain text.
#[derive(DomainEvent)]
#[event(aggregate = "account", id = "text", type = "com.example.account.noted", codec = PlainText)]
struct Noted {
    text: String,
}

struct PlainText;

impl Codec<Noted> for PlainText {
    const CONTENT_TYPE: &'static str = "text/plain";

    fn encode(event: &Noted) -> Result<Payload, CodecError> {
        Ok(Payload::Bytes(event.text.clone().into_bytes()))
    }

    fn decode(bytes: &[u8]) -> Result<Noted, CodecError> {
        String::from_utf8(bytes.to_vec())
            .map(|text| Noted { text })
            .map_err(CodecError::decode::<Noted>)
    }
}

type Lines = Arc<Mutex<Vec<String>>>;

/// Notes an event: its data, id, source, aggregate, time and some attributes, `-` for what is not
/// set.
fn note(lines: &Lines, data: &str, meta: &Meta) {
    let attribute = |name| meta.header(name).unwrap_or("-").to_owned();
    let time = meta.header("time").map_or("-".to_owned(), |_| {
        meta.occurred_at()
            .to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
    });
    let aggregate = meta.aggregate_id().into_owned();
    let parts = [
        data.to_owned(),
        meta.event_id().into_owned(),
        meta.source().into_owned(),
        if aggregate.is_empty() {
            "-".to_owned()
        } else {
            aggregate
        },
        attribute("subject"),
        time,
        attribute("tenant"),
        attribute("content-type"),
    ];
    lines.lock().expect("no panic").push(parts.join(" | "));
}

async fn opened(
    Event(opened): Event<Opened>,
    meta: Meta,
    State(lines): State<Lines>,
) -> Result<(), HandlerError> {
    note(&lines, &opened.account, &meta);
    Ok(())
}

async fn noted(
    Event(noted): Event<Noted>,
    meta: Meta,
    State(lines): State<Lines>,
) -> Result<(), HandlerError> {
    note(&lines, &noted.text, &meta);
    Ok(())
}

/// A topic with the records of a client.
struct Sent(Place);

impl Sent {
    async fn by(producer: &Program, more: &[&str]) -> Self {
        let place = Place::new(1).await;
        // The SDK for JavaScript gives records the time of their events, which may be older than
        // the broker keeps records.
        alter_topic(&place.brokers, &place.topic, &[("retention.ms", "-1")]).await;
        producer
            .run(&[&[&*place.brokers, &*place.topic], more].concat())
            .await;
        Self(place)
    }

    /// Handles all records, those without a type as `Opened` if that is assumed. Compares the
    /// events that were handled and the reasons of the others with what is expected, both in the
    /// order of the records.
    async fn assert_read(&self, assumes: bool, handled: &[String], dead: &[&str]) {
        let (place, lines) = (&self.0, Lines::default());
        let group = format!("{}-{assumes}", place.group);
        let subscriber = place
            .bus
            .subscriber(&group)
            .topic::<Opened>(&place.topic)
            .on(opened)
            .on(noted)
            .state(lines.clone());
        let subscriber = subscriber
            .retry(Retry::never())
            .order(tidings::subscriber::Order::Partition);
        let running = start!(if assumes {
            subscriber.assume::<Opened>()
        } else {
            subscriber
        });
        let ended = (handled.len() + dead.len()) as u64;
        running
            .until("all have ended", |seen| {
                seen.handled() + seen.dead_lettered() >= ended
            })
            .await;
        running.stop().await;
        assert_eq!(
            lines.lock().expect("no panic").join("\n"),
            handled.join("\n")
        );
        let reasons: Vec<String> = match dead {
            [] => Vec::new(),
            _ => {
                let mut reader =
                    Reader::new(&place.brokers, &format!("{}.{group}.dlt", place.topic));
                let letters = reader.read_to_the_end().iter();
                letters
                    .map(|letter| letter.headers["kafka_dlt-exception-message"].clone())
                    .collect()
            }
        };
        assert_eq!(reasons.len(), dead.len(), "{reasons:#?}");
        for (reason, expected) in reasons.iter().zip(dead) {
            assert!(
                reason.contains(expected),
                "{expected:?} is not in {reason:?}"
            );
        }
    }
}

/// Nine digits, as Java and JavaScript write them; six of Python; three of JSON in JavaScript. All
/// with an offset.
const NANOS: &str = "2026-01-01T21:34:05.123456789Z";
const MICROS: &str = "2026-01-01T21:34:05.123456Z";
const MILLIS: &str = "2026-01-01T21:34:05.123Z";

const NO_DATA: &str = "no data";

#[tokio::test(flavor = "multi_thread")]
async fn events_of_the_sdk_for_java_are_handled_and_its_other_formats_are_named() {
    let Some(producer) = Source::read("subscriber/foreign/java", "Producer.java")
        .java()
        .await
    else {
        return;
    };
    let sent = Sent::by(&producer, &["cloudevents"]).await;
    let events = [
        format!(
            "7 | java é 1 | urn:example:bank | 7 | accounts/7 | {NANOS} | acmé | application/json"
        ),
        "minimal | 2 | urn:example:bank | - | - | - | - | -".into(),
        "héllo | 3 | urn:example:bank | 7 | 7 | - | - | text/plain; charset=utf-8".into(),
    ];
    let protobuf = ["`application/cloudevents+protobuf`"; 4];
    // In binary mode, an event without data is a tombstone.
    let dead = [&[NO_DATA][..], &protobuf, &["a batch of CloudEvents"]].concat();
    sent.assert_read(false, &[events.clone(), events].concat(), &dead)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_the_sdk_for_python_are_handled_and_its_other_formats_are_named() {
    let Some(producer) = Source::read("subscriber/foreign/python", "producer.py")
        .python()
        .await
    else {
        return;
    };
    let sent = Sent::by(&producer, &[]).await;
    let full = |id: u8| {
        format!("7 | python é {id} | /bank | 7 | accounts/7 | {MICROS} | acmé | application/json")
    };
    let minimal = |id: u8| format!("minimal | {id} | /bank | - | - | {MICROS} | - | -");
    let text = |id: u8| format!("héllo | {id} | /bank | 7 | - | {MICROS} | - | text/plain");
    let base64 = format!("base64 | 8 | /bank | 7 | - | {MICROS} | - | -");
    let handled = [
        full(1),
        minimal(2),
        text(3),
        full(1),
        minimal(2),
        text(3),
        full(5),
        full(5),
        minimal(6),
        text(7),
        base64,
    ];
    // The event without data in binary mode has an empty value.
    let without_data = ["the payload is not an event", NO_DATA, NO_DATA];
    let named = [
        "gzip",
        "gzip",
        "UTF-16",
        "UTF-16",
        "UTF-16",
        "UTF-16",
        "magic byte 0",
        "magic byte 0",
        "`__value_schema_id`",
    ];
    let dead = [&without_data[..], &named].concat();
    sent.assert_read(
        false,
        &handled,
        &[&dead[..], &["`__value_schema_id`"]].concat(),
    )
    .await;
    // JSON of Confluent's serializer, with the schema's id in a header, is plain JSON.
    let place = &sent.0;
    let json = format!("7 | 0/23 | kafka:{} | 7 | - | - | - | -", place.topic);
    sent.assert_read(true, &[&handled[..], &[json]].concat(), &dead)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_the_sdk_for_javascript_are_handled_and_its_batches_are_named() {
    let Some(producer) = Source::read("subscriber/foreign/javascript", "producer.js")
        .javascript()
        .await
    else {
        return;
    };
    let sent = Sent::by(&producer, &[]).await;
    let handled = [NANOS, MILLIS].map(|time| {
        [
            format!(
                "7 | javascript é 1 | /bank | 7 | accounts/7 | {time} | acmé | application/json"
            ),
            format!("minimal | 2 | /bank | - | - | {time} | - | -"),
            format!("héllo | 3 | /bank | 7 | - | {time} | - | text/plain"),
            format!("base64 | 4 | /bank | 7 | - | {time} | - | application/json"),
        ]
    });
    sent.assert_read(false, &handled.concat(), &["a batch of CloudEvents"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_spring_kafka_are_handled_if_they_have_a_type_and_named_otherwise() {
    let Some(producer) = Source::read("subscriber/foreign/java", "Producer.java")
        .java()
        .await
    else {
        return;
    };
    let sent = Sent::by(&producer, &["spring"]).await;
    let topic = &sent.0.topic;
    const ID: &str = "0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10";
    let records = |assumes: bool| {
        let of = |(first, serializer): (usize, &str)| {
            let plain = |offset: usize, tenant| {
                format!("{serializer} | 0/{offset} | kafka:{topic} | 7 | - | - | {tenant} | -")
            };
            let cloud_event =
                format!("{serializer} | {ID} | /spring/{serializer} | 7 | - | {NANOS} | acmé | -");
            let assumed = assumes.then(|| plain(first, "-"));
            assumed
                .into_iter()
                .chain([plain(first + 2, "acmé"), cloud_event])
        };
        [(0, "JacksonJsonSerializer"), (4, "JsonSerializer")]
            .into_iter()
            .flat_map(of)
            .collect::<Vec<_>>()
    };
    let named = ["Spring's JsonSerializer (header `__TypeId__`)"; 4];
    sent.assert_read(false, &records(false), &named).await;
    // A list is no event.
    sent.assert_read(true, &records(true), &["the payload is not an event"; 2])
        .await;
}
