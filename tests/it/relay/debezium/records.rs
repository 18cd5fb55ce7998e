//! Records as they are on the wire, including the order of headers and null values.

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use serde_json::{Value, json};

/// Reads `count` records from a topic with one partition and returns them as JSON.
pub(super) async fn read(brokers: &str, topic: &str, count: usize) -> Vec<Value> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_blocking(&brokers, &topic, count))
        .await
        .expect("the task does not panic")
}

fn read_blocking(brokers: &str, topic: &str, count: usize) -> Vec<Value> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", "tests-never-commit")
        .set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning)
        .expect("a partition");
    consumer.assign(&list).expect("the assignment succeeds");
    let (mut records, until) = (Vec::new(), Instant::now() + Duration::from_secs(120));
    while records.len() < count {
        assert!(
            Instant::now() < until,
            "{} of {count} records in {topic}: {records:?}",
            records.len()
        );
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            records.push(shown(&message));
        }
    }
    records
}

fn shown(message: &impl Message) -> Value {
    let headers: Vec<Value> = message
        .headers()
        .into_iter()
        .flat_map(rdkafka::message::Headers::iter)
        .map(|header| json!([header.key, bytes(header.value)]))
        .collect();
    json!({ "key": bytes(message.key()), "value": bytes(message.payload()), "headers": headers })
}

/// Returns the text, or its hexadecimal form if it is not valid UTF-8.
fn bytes(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(bytes)) => {
            json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() })
        }
    }
}
