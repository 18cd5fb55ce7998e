//! A topic filled with plain JSON events, as any publisher would write them.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, producer::DefaultProducerContext};

use crate::harness::Outcome;

/// Creates a topic of eight partitions with `records` records over `keys` keys.
pub(crate) async fn topic(brokers: &str, records: u64, keys: u64) -> Outcome<String> {
    let topic = format!("bench-consume-{}", uuid::Uuid::now_v7().simple());
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    admin
        .create_topics(
            [&NewTopic::new(&topic, 8, TopicReplication::Fixed(1))],
            &AdminOptions::new(),
        )
        .await?;
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "50")
        .set("batch.size", "1000000")
        .set("compression.type", "none")
        .create()?;
    for n in 0..records {
        // A multiplicative hash, so that keys arrive in no particular order and equally often.
        let key = format!("k-{:05}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys);
        let value = format!(
            "{{\"event_id\":\"{n:032x}\",\"order_id\":\"{key}\",\"seq\":{n},\
             \"customer\":\"c-{:05}\",\"total_cents\":{},\"currency\":\"EUR\",\
             \"lines\":[{{\"sku\":\"SKU-{:04}\",\"qty\":{},\"price_cents\":1999}}],\
             \"occurred_at\":\"2026-11-24T10:00:00.000Z\"}}",
            n * 31 % 50_000,
            1_000 + n % 9_000,
            n % 10_000,
            1 + n % 5
        );
        let mut record = BaseRecord::to(&topic).key(&key).payload(&value);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back
                }
                Err((error, _)) => return Err(error.into()),
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    producer.flush(std::time::Duration::from_secs(60))?;
    Ok(topic)
}
