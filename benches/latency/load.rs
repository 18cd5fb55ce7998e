//! Writers at a steady rate, and a consumer that measures the latency.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::harness::{Outcome, topic::PARTITIONS};

/// Number of concurrent writers, so that one slow commit does not delay the others.
const WRITERS: u32 = 4;

/// Time limit for the last events after the last insert.
const TAIL: Duration = Duration::from_secs(10);

/// Latencies from insert to consumer in milliseconds.
pub(crate) struct Latencies {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// Inserts `rate` events per second for `seconds`, each in its own transaction, and consumes them.
pub(crate) async fn run(
    url: &str,
    brokers: &str,
    topic: &str,
    rate: u32,
    seconds: u32,
) -> Outcome<Latencies> {
    let stop = Arc::new(AtomicBool::new(false));
    let consuming = std::thread::spawn({
        let (consumer, stop, expected) = (
            consumer(brokers, topic)?,
            stop.clone(),
            u64::from(rate * seconds),
        );
        move || consume(&consumer, expected, &stop)
    });
    let start = Instant::now() + Duration::from_millis(500);
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let mut session = PgConnection::connect(url).await?;
        let pause = Duration::from_secs(1) * WRITERS / rate;
        let mut ticks = interval_at(start + Duration::from_secs(1) * writer / rate, pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        writers.push(async move {
            for n in 0..rate * seconds / WRITERS {
                ticks.tick().await;
                // The row records the time of its insert, so the latency includes the commit.
                let insert =
                    "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
                     values ('order', $1, 'OrderPlaced', json_build_object(
                         'at', (extract(epoch from clock_timestamp()) * 1000000)::bigint,
                         'pad', repeat('x', 200)))";
                sqlx::query(insert)
                    .bind(format!("{}", n % 1000))
                    .execute(&mut session)
                    .await?;
            }
            session.close().await
        });
    }
    let mut tasks = tokio::task::JoinSet::new();
    writers
        .into_iter()
        .for_each(|writer| drop(tasks.spawn(writer)));
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let until = Instant::now() + TAIL;
    while !consuming.is_finished() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Release);
    let histogram = consuming.join().map_err(|_| "the consumer panicked")?;
    if histogram.len() < u64::from(rate * seconds) {
        return Err(format!("{} of {} events arrived", histogram.len(), rate * seconds).into());
    }
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Latencies {
        p50: at(0.5),
        p95: at(0.95),
        p99: at(0.99),
        max: histogram.max() as f64 / 1000.0,
    })
}

/// A consumer at the end of the topic. The broker returns each record at once.
fn consumer(brokers: &str, topic: &str) -> Outcome<BaseConsumer> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", "latency")
        .set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config
        .set("fetch.wait.max.ms", "500")
        .set("fetch.min.bytes", "1")
        .create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let (_, end) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(10))?;
        list.add_partition_offset(topic, partition, Offset::Offset(end))?;
    }
    consumer.assign(&list)?;
    Ok(consumer)
}

fn consume(consumer: &BaseConsumer, expected: u64, stop: &AtomicBool) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
    while histogram.len() < expected && !stop.load(Ordering::Acquire) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_micros() as u64;
        let event: serde_json::Value =
            serde_json::from_slice(message.payload().unwrap_or_default()).unwrap_or_default();
        let at = event["at"].as_u64().unwrap_or(now);
        histogram.saturating_record(now.saturating_sub(at).max(1));
    }
    histogram
}
