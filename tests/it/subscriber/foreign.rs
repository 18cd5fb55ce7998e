//! Events of others: CloudEvents of any SDK, Debezium's records, plain JSON; and what is no event.

mod clients;

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tidings::DomainEvent;
use tidings::subscriber::{Event, HandlerError, Meta, State};

use super::place::{Place, start};
use crate::relay::records::Reader;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "account", id = "account", type = "com.example.opened", version = 2, upcast(from = 1, with = add_currency))]
struct Opened {
    account: String,
    currency: String,
}

fn add_currency(mut old: serde_json::Value) -> serde_json::Value {
    if let Some(fields) = old.as_object_mut() {
        fields.insert("currency".into(), "EUR".into());
    }
    old
}

type Seen = Arc<Mutex<Vec<String>>>;

async fn note(
    Event(opened): Event<Opened>,
    meta: Meta,
    State(seen): State<Seen>,
) -> Result<(), HandlerError> {
    seen.lock().expect("no panic").push(format!(
        "{} {} {} {}",
        opened.account,
        opened.currency,
        meta.event_id(),
        meta.source()
    ));
    Ok(())
}

const V2: &str = r#"{"account":"a","currency":"CHF"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn events_of_other_publishers_are_read_and_old_ones_are_lifted() {
    let (place, seen) = (Place::new(1).await, Seen::default());
    let binary = [
        ("ce_specversion", "1.0"),
        ("ce_type", "com.example.opened"),
        ("ce_source", "/bank"),
        ("content-type", "application/json"),
    ];
    place
        .send_raw(
            "a",
            Some(V2),
            &[&binary[..], &[("ce_id", "1"), ("ce_dataversion", "2")]].concat(),
        )
        .await;
    place
        .send_raw(
            "a",
            Some(r#"{"account":"b"}"#),
            &[&binary[..], &[("ce_id", "2")]].concat(),
        )
        .await;
    let structured = r#"{"specversion":"1.0","id":"3","type":"com.example.opened","source":"/bank","dataversion":2,"data":{"account":"c","currency":"USD"}}"#;
    place
        .send_raw(
            "a",
            Some(structured),
            &[("content-type", "application/cloudevents+json")],
        )
        .await;
    // Debezium's EventRouter with the type in a header, and its JsonConverter's quotes around a
    // payload without one.
    place
        .send_raw(
            "a",
            Some(r#"{"account":"d"}"#),
            &[("id", "4"), ("eventType", "com.example.opened")],
        )
        .await;
    place
        .send_raw("a", Some(r#""{\"account\":\"e\"}""#), &[("id", "5")])
        .await;
    place.send_raw("a", Some(r#"{"account":"f"}"#), &[]).await;
    let running = start!(
        place
            .bus
            .subscriber(&place.group)
            .topic::<Opened>(&place.topic)
            .assume::<Opened>()
            .on(note)
            .state(seen.clone())
    );
    running
        .until("all are handled", |seen| seen.handled() == 6)
        .await;
    running.stop().await;
    let kafka = format!("kafka:{}", place.topic);
    let expected = [
        "a CHF 1 /bank".to_owned(),
        "b EUR 2 /bank".into(),
        "c USD 3 /bank".into(),
        format!("d EUR 4 {kafka}"),
        format!("e EUR 5 {kafka}"),
        format!("f EUR 0/5 {kafka}"),
    ];
    assert_eq!(*seen.lock().expect("no panic"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_dead_with_its_reason_and_what_nobody_handles_is_skipped() {
    let (place, seen) = (Place::new(1).await, Seen::default());
    let binary = |id, version| {
        [
            ("ce_specversion", "1.0"),
            ("ce_type", "com.example.opened"),
            ("ce_source", "/bank"),
            ("ce_id", id),
            ("ce_dataversion", version),
        ]
    };
    place.send_raw("a", Some("{"), &binary("1", "2")).await;
    place.send_raw("a", Some(V2), &binary("2", "3")).await;
    place.send_raw("a", Some(V2), &binary("3", "x")).await;
    place
        .send_raw(
            "a",
            Some("not json"),
            &[("content-type", "application/cloudevents+json")],
        )
        .await;
    place.send_raw("a", Some(V2), &[]).await;
    place.send_raw("a", None, &binary("4", "2")).await;
    place
        .send_raw(
            "a",
            Some(V2),
            &[
                ("ce_specversion", "1.0"),
                ("ce_type", "com.example.closed"),
                ("ce_id", "5"),
            ],
        )
        .await;
    place.send_raw("a", None, &[]).await;
    place.send_raw("a", Some(V2), &binary("6", "2")).await;
    let running = start!(
        place
            .bus
            .subscriber(&place.group)
            .topic::<Opened>(&place.topic)
            .on(note)
            .state(seen.clone())
    );
    running
        .until("all have ended", |seen| {
            seen.handled() == 1 && seen.dead_lettered() == 5 && seen.unknown_types() == 3
        })
        .await;
    running.stop().await;
    assert_eq!(*seen.lock().expect("no panic"), ["a CHF 6 /bank"]);
    let mut reader = Reader::new(
        &place.brokers,
        &format!("{}.{}.dlt", place.topic, place.group),
    );
    let reasons: Vec<_> = reader
        .read_to_the_end()
        .iter()
        .map(|record| record.headers["kafka_dlt-exception-message"].clone())
        .collect();
    for (reason, expected) in reasons.iter().zip([
        "the payload is not an event",
        "this code supports `it::subscriber::foreign::Opened` up to version 2",
        "the version \"x\" is not a positive integer",
        "the value is not a CloudEvent",
        "the record has no event type",
    ]) {
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(reasons.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_newer_version_can_be_waited_out_until_newer_code_is_there() {
    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(
        aggregate = "account",
        id = "account",
        type = "com.example.opened",
        version = 3
    )]
    struct Newer {
        account: String,
    }
    async fn newer(
        Event(opened): Event<Newer>,
        State(seen): State<Seen>,
    ) -> Result<(), HandlerError> {
        seen.lock().expect("no panic").push(opened.account);
        Ok(())
    }
    let (place, seen) = (Place::new(1).await, Seen::default());
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_type", "com.example.opened"),
        ("ce_source", "/bank"),
        ("ce_id", "1"),
        ("ce_dataversion", "3"),
    ];
    place.send_raw("a", Some(V2), &headers).await;
    let old = start!(
        place
            .bus
            .subscriber(&place.group)
            .topic::<Opened>(&place.topic)
            .on(note)
            .state(seen.clone())
            .wait_for_newer_code()
    );
    old.until("it pauses", |seen| seen.is_paused()).await;
    old.stop().await;
    let new = start!(
        place
            .bus
            .subscriber(&place.group)
            .topic::<Newer>(&place.topic)
            .on(newer)
            .state(seen.clone())
    );
    new.until("it is handled", |seen| seen.handled() == 1).await;
    new.stop().await;
    assert_eq!(*seen.lock().expect("no panic"), ["a"]);
}
