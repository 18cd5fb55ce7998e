//! Upper limit of the Kafka side: librdkafka alone with the records that the relay would send.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
};

use crate::harness::{
    Outcome,
    outbox::{Backlog, KEYS},
    process::cpu_seconds,
    topic::PARTITIONS,
};

#[derive(Default)]
struct Delivered(AtomicU64);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Returns the events per second and the CPU seconds for as many records as the backlog has events.
pub(crate) fn measure(brokers: &str, topic: &str, backlog: Backlog) -> Outcome<(f64, f64)> {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers),
        ("enable.idempotence", "true"),
        ("acks", "all"),
        ("linger.ms", "1"),
        ("batch.size", "1000000"),
        ("batch.num.messages", "10000"),
        ("compression.type", "lz4"),
        ("queue.buffering.max.messages", "50000"),
    ] {
        config.set(name, value);
    }
    let producer: BaseProducer<Delivered> = config.create_with_context(Delivered::default())?;
    let (started, cpu) = (Instant::now(), cpu_seconds(std::process::id()));
    let pad = "x".repeat(backlog.pad as usize);
    for n in 0..backlog.events {
        let (key, value) = (
            (n % u64::from(KEYS)).to_string(),
            format!(r#"{{"n" : {n}, "at" : 1234567890.123456, "pad" : "{pad}"}}"#),
        );
        let partition = (n % u64::from(PARTITIONS.cast_unsigned())) as i32;
        let mut record = BaseRecord::to(topic)
            .partition(partition)
            .key(&key)
            .payload(&value)
            .headers(headers(&key));
        while let Err((error, again)) = producer.send(record) {
            if !matches!(
                error,
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)
            ) {
                return Err(error.into());
            }
            producer.poll(Duration::from_millis(1));
            record = again;
        }
        if n % 64 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(60))?;
    let delivered = producer.context().0.load(Ordering::Relaxed);
    if delivered != backlog.events {
        return Err(format!("{delivered} of {} records were delivered", backlog.events).into());
    }
    Ok((
        delivered as f64 / started.elapsed().as_secs_f64(),
        cpu_seconds(std::process::id()) - cpu,
    ))
}

/// The headers of `docs/wire-format.md`, in the same number and length.
fn headers(key: &str) -> OwnedHeaders {
    [
        ("ce_specversion", "1.0"),
        ("ce_id", "01890a5d-ac96-774b-bcce-b302099a8057"),
        ("ce_type", "OrderPlaced"),
        ("ce_source", "/tidings"),
        ("ce_subject", key),
        ("ce_time", "2026-01-01T00:00:00.000000Z"),
        ("ce_aggregatetype", "order"),
        ("ce_dataversion", "1"),
        ("content-type", "application/json"),
    ]
    .into_iter()
    .fold(
        OwnedHeaders::new_with_capacity(9),
        |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(value),
            })
        },
    )
}
