//! A plain Kafka consumer.

use chrono::Utc;
use indicatif::ProgressBar;
use rdkafka::{ClientConfig, Message as _, consumer::Consumer as _, consumer::StreamConsumer};
use tokio::sync::watch::Receiver;

use super::{Delivered, Delivery, Failure, OrderChanged};

/// Reads the events as any Kafka consumer can: the key is the order's id, the value its event as
/// JSON.
pub(crate) async fn consume(
    brokers: String,
    topic: String,
    bar: ProgressBar,
    expected: Receiver<usize>,
) -> Result<Delivered, Failure> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", &topic)
        .set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = config
        .set("topic.metadata.refresh.interval.ms", "200")
        .set("fetch.wait.max.ms", "10")
        .create()?;
    consumer.subscribe(&[&topic])?;
    let mut delivered = Vec::new();
    while delivered.len() < *expected.borrow() {
        // If the topic does not exist yet, the consumer returns a temporary error.
        let Ok(Ok(message)) =
            tokio::time::timeout(std::time::Duration::from_millis(100), consumer.recv()).await
        else {
            continue;
        };
        let event: OrderChanged = serde_json::from_slice(message.payload().unwrap_or_default())?;
        let latency_ms = (Utc::now().timestamp_micros() - event.at_micros) as f64 / 1000.0;
        delivered.push(Delivery {
            event,
            partition: message.partition(),
            offset: message.offset(),
            latency_ms,
        });
        bar.inc(1);
    }
    Ok(delivered)
}
