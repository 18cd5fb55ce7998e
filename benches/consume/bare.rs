//! Upper limits: librdkafka's consumer alone, and the same consumer with a JSON parser.
//!
//! A parser is the least work that a handler of typed events can do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::harness::Outcome;
use crate::report::Measured;
use crate::scenarios::{OrderPlaced, cpu_seconds};

/// Time without a record after which a run fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Partitions of the topic. They are parsed by one thread per core of the reference machine.
const PARTITIONS: i32 = 8;
const THREADS: usize = 2;

/// Records that are read from one partition before the next one.
const TURN: usize = 128;

/// Reads the whole topic once, on one thread.
///
/// # Errors
///
/// Returns the error of the Kafka client, or an error if no record arrives within [`PATIENCE`].
pub(crate) fn read(brokers: &str, topic: &str, records: u64) -> Outcome<Measured> {
    let before = cpu_seconds();
    let consumer = consumer(brokers)?;
    consumer.subscribe(&[topic])?;
    let (mut read, mut began, mut last) = (0, None, Instant::now());
    while read < records {
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(_)) => read += 1,
            Some(Err(error)) => return Err(error.into()),
            // A poll can also return early, e.g. because of a rebalance.
            None if last.elapsed() < PATIENCE => continue,
            None => {
                return Err(
                    format!("no record within {PATIENCE:?} after {read} of {records}").into(),
                );
            }
        }
        if read % 1_000 == 0 {
            last = Instant::now();
        }
        began.get_or_insert_with(Instant::now);
    }
    measured(records, began, before)
}

/// Reads the whole topic once on [`THREADS`] threads and parses each record with serde_json.
///
/// Each thread polls the queues of its own partitions.
///
/// # Errors
///
/// Returns the error of the Kafka client or of the parser, or an error if no record arrives within
/// [`PATIENCE`].
pub(crate) fn parse(brokers: &str, topic: &str, records: u64) -> Outcome<Measured> {
    let before = cpu_seconds();
    let consumer = Arc::new(consumer(brokers)?);
    let queues = (0..PARTITIONS).map(|partition| {
        consumer
            .split_partition_queue(topic, partition)
            .ok_or("a partition has no queue")
    });
    let mut queues = queues.collect::<Result<Vec<_>, _>>()?;
    let mut from_the_beginning = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        from_the_beginning.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&from_the_beginning)?;
    let parsed = AtomicU64::new(0);
    let mut began = None;
    thread::scope(|scope| -> Outcome<()> {
        let mut threads = Vec::new();
        while !queues.is_empty() {
            let own = queues.split_off(queues.len().saturating_sub(PARTITIONS as usize / THREADS));
            let parsed = &parsed;
            threads.push(scope.spawn(move || -> Result<(), String> {
                let mut last = Instant::now();
                while parsed.load(Ordering::Relaxed) < records {
                    let mut turn = 0;
                    for queue in &own {
                        for _ in 0..TURN {
                            let Some(message) = queue.poll(Duration::ZERO) else {
                                break;
                            };
                            let message = message.map_err(|error| error.to_string())?;
                            let text = std::str::from_utf8(message.payload().unwrap_or_default())
                                .map_err(|error| error.to_string())?;
                            std::hint::black_box(
                                serde_json::from_str::<OrderPlaced>(text)
                                    .map_err(|error| error.to_string())?,
                            );
                            turn += 1;
                        }
                    }
                    parsed.fetch_add(turn, Ordering::Relaxed);
                    if turn > 0 {
                        last = Instant::now();
                    } else if last.elapsed() > PATIENCE {
                        return Err(format!("no record within {PATIENCE:?}"));
                    } else {
                        thread::sleep(Duration::from_micros(100));
                    }
                }
                Ok(())
            }));
        }
        while threads.iter().any(|thread| !thread.is_finished()) {
            if let Some(Err(error)) = consumer.poll(Duration::from_millis(1)) {
                return Err(error.into());
            }
            if began.is_none() && parsed.load(Ordering::Relaxed) > 0 {
                began = Some(Instant::now());
            }
        }
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| "a thread panicked")?
                .map_err(Into::into)
        })
    })?;
    measured(records, began, before)
}

fn consumer(brokers: &str) -> Outcome<BaseConsumer> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set(
            "group.id",
            format!("bench-{}", uuid::Uuid::now_v7().simple()),
        )
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        // The subscriber's settings, except that the queue keeps librdkafka's default size.
        .set("enable.metrics.push", "false")
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.wait.max.ms", "50");
    Ok(config.create()?)
}

fn measured(records: u64, began: Option<Instant>, cpu_before: f64) -> Outcome<Measured> {
    let seconds = began.map_or(f64::NAN, |began| began.elapsed().as_secs_f64());
    Ok(Measured {
        records,
        seconds,
        cpu_seconds: cpu_seconds() - cpu_before,
        peak_megabytes: 0.0,
    })
}
