//! The limit: librdkafka's consumer alone, whose records nobody looks at.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::harness::Outcome;
use crate::report::Measured;
use crate::scenarios::cpu_seconds;

/// How long no record may come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the whole topic once, by one thread.
///
/// # Errors
/// What the client says.
pub(crate) fn read(brokers: &str, topic: &str, records: u64) -> Outcome<Measured> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("bench-{}", uuid::Uuid::now_v7().simple()))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        // As the subscriber has them; the queue is as large as librdkafka likes it.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.wait.max.ms", "50")
        .create()?;
    consumer.subscribe(&[topic])?;
    let (mut read, mut began, mut last, before) = (0, None, Instant::now(), cpu_seconds());
    while read < records {
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(_)) => read += 1,
            Some(Err(error)) => return Err(error.into()),
            // A rebalance ends a poll too.
            None if last.elapsed() < PATIENCE => continue,
            None => return Err(format!("no record within {PATIENCE:?} after {read} of {records}").into()),
        }
        if read % 1_000 == 0 {
            last = Instant::now();
        }
        began.get_or_insert_with(Instant::now);
    }
    let seconds = began.map_or(f64::NAN, |began| began.elapsed().as_secs_f64());
    Ok(Measured { records, seconds, cpu_seconds: cpu_seconds() - before, peak_megabytes: 0.0 })
}
