//! `tidings dead-letters list` without a topic: the newest letters of all topics of a cluster.

use std::process::Command;
use std::time::Duration;

use dev_services::{Acl, AclOperation, AclResource, KafkaOptions};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;

use super::{ended, tidings};
use crate::support::records::{byte_headers, create_topic};
use crate::support::services::own_kafka;

/// Sends a letter that failed at a second of an hour.
async fn letter(brokers: &str, topic: &str, second: u32, event_type: &str) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("a producer");
    let id = format!("e-{second}");
    let failed_at = format!("2026-01-02T03:00:{second:02}Z");
    let group = topic.split('.').nth(1).unwrap_or("none");
    let (partition, offset) = (0_i32.to_be_bytes(), 7_i64.to_be_bytes());
    let headers: [(&str, &[u8]); 9] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", id.as_bytes()),
        ("ce_type", event_type.as_bytes()),
        ("kafka_dlt-original-topic", b"order"),
        ("kafka_dlt-original-consumer-group", group.as_bytes()),
        ("kafka_dlt-original-partition", &partition),
        ("kafka_dlt-original-offset", &offset),
        ("kafka_dlt-exception-message", b"the warehouse is closed"),
        ("tidings_failed_at", failed_at.as_bytes()),
    ];
    let record = FutureRecord::to(topic)
        .key("7")
        .payload("{}")
        .headers(byte_headers(&headers));
    let sent = producer.send(record, Duration::from_secs(60)).await;
    sent.expect("the record is sent");
}

fn list(brokers: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command: Command = tidings(&["dead-letters", "list"]);
    command.args(arguments).env("KAFKA_BROKERS", brokers);
    tokio::task::block_in_place(|| ended(command))
}

/// Returns the ids of listed letters.
fn ids(text: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(text).expect("JSON");
    let id = |letter: &Value| letter["id"].as_str().expect("an id").to_owned();
    list.as_array().expect("a list").iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_letters_of_all_topics_are_listed_and_topics_that_cannot_be_read_are_named() {
    let options = KafkaOptions::new()
        .set(
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        )
        .set("allow.everyone.if.no.acl.found", "true");
    let kafka = own_kafka(options).await;
    let brokers = kafka.brokers();
    let none = "no dead letters in any topic whose name ends with .dlt\n";
    assert_eq!(list(&brokers, &[]), (0, none.into(), String::new()));

    for topic in ["order.stock.dlt", "order.mail.dlt", "order.secret.dlt"] {
        create_topic(&brokers, topic, 2).await;
    }
    create_topic(&brokers, "order", 1).await;
    letter(&brokers, "order", 59, "OrderPlaced").await;
    for (topic, second, event_type) in [
        ("order.stock.dlt", 20, "OrderPlaced"),
        ("order.stock.dlt", 40, "OrderPaid"),
        ("order.mail.dlt", 10, "OrderPlaced"),
        ("order.mail.dlt", 30, "OrderPlaced"),
        ("order.secret.dlt", 50, "OrderPlaced"),
    ] {
        letter(&brokers, topic, second, event_type).await;
    }
    let json = |arguments: &[&str]| {
        let (code, text, error) = list(&brokers, &[&["--json"], arguments].concat());
        assert_eq!((code, error.as_str()), (0, ""), "{text}");
        ids(&text)
    };
    assert_eq!(json(&[]), ["e-50", "e-40", "e-30", "e-20", "e-10"]);
    assert_eq!(json(&["--max", "2"]), ["e-50", "e-40"]);
    assert_eq!(json(&["--type", "OrderPaid"]), ["e-40"]);
    assert_eq!(json(&["--since", "1h"]), [""; 0]);
    // The list of one topic has the same form.
    assert_eq!(json(&["order.mail.dlt"]).len(), 2);

    // A letter that is discarded is not listed.
    let mut discard = tidings(&["dead-letters", "discard", "order.stock.dlt"]);
    discard.args(["--all", "--type", "OrderPaid", "--yes"]);
    discard.env("KAFKA_BROKERS", &brokers);
    assert_eq!(ended(discard).0, 0);
    assert_eq!(json(&[]), ["e-50", "e-30", "e-20", "e-10"]);

    let (code, text, error) = list(&brokers, &["--max", "1"]);
    assert_eq!((code, error.as_str()), (0, ""), "{text}");
    for part in [
        "order.secret.dlt",
        "2026-01-02 03:00:50Z",
        "OrderPlaced",
        "e-50",
        "secret\n",
        "the warehouse is closed",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );

    let denied =
        [(AclOperation::All, true), (AclOperation::Read, false)].map(|(operation, allow)| Acl {
            resource: AclResource::Topic,
            name: "order.secret.dlt".to_owned(),
            prefixed: false,
            principal: "User:*".to_owned(),
            operation,
            allow,
        });
    for entry in &denied {
        kafka.create_acl(entry).expect("added");
    }
    let (code, text, error) = list(&brokers, &[]);
    assert_eq!((code, error.as_str()), (1, ""), "{text}");
    assert!(
        text.contains("1 topic could not be read") && text.contains("\n  order.secret.dlt: "),
        "{text}"
    );
    assert!(text.contains("e-30") && !text.contains("e-50"), "{text}");
    let (code, text, error) = list(&brokers, &["--json"]);
    assert_eq!(code, 1, "{error}");
    assert_eq!(ids(&text), ["e-30", "e-20", "e-10"]);
    assert!(error.contains("order.secret.dlt"), "{error}");
}
