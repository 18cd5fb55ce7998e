//! Gap in delivery when the leader of two relays is killed with SIGKILL: from the last record
//! before to the first record after.
//!
//! Run it with `cargo bench --bench takeover`. `docs/benchmarks.md` explains the figures.

// The runtime of the benchmark owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

#[path = "harness/mod.rs"]
mod harness;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use harness::{
    Outcome,
    outbox::Outbox,
    servers::Servers,
    tidings::{Mode, Tidings},
    topic,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use sqlx::{Connection as _, PgConnection};

/// Measures the gap at a takeover.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench takeover --")]
struct Options {
    /// Number of leaders to kill.
    #[arg(long, default_value_t = 10)]
    kills: usize,
}

/// Pause between two inserts.
const PAUSE: Duration = Duration::from_millis(2);

/// Time between two kills. Meanwhile the next standby starts and the new leader begins to stream.
const BETWEEN: Duration = Duration::from_secs(6);

/// Time after a kill. Records that arrive later are the new leader's.
const SETTLED: Duration = Duration::from_secs(3);

const ONE: &str = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
    values ('order', '1', 'OrderPlaced', '{}')";

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Outcome<()> {
    let options = Options::parse_from(harness::arguments());
    let servers = Servers::start()?;
    println!("{}", servers.describe());
    let brokers = servers.kafka.brokers();
    let tidings = Tidings::new(None, brokers.clone());
    let outbox = Outbox::create(&servers, "takeover", &tidings).await?;
    topic::create(&brokers, "takeover").await?;

    let stop = Arc::new(AtomicBool::new(false));
    let arrivals: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let consuming = std::thread::spawn({
        let (consumer, stop, arrivals) = (consumer(&brokers)?, stop.clone(), arrivals.clone());
        move || {
            while !stop.load(Ordering::Acquire) {
                if let Some(Ok(_)) = consumer.poll(Duration::from_millis(100)) {
                    arrivals
                        .lock()
                        .expect("no thread panics while it holds the lock")
                        .push(Instant::now());
                }
            }
        }
    });
    let writing = tokio::spawn({
        let (mut session, stop) = (PgConnection::connect(&outbox.url).await?, stop.clone());
        async move {
            while !stop.load(Ordering::Acquire) {
                sqlx::raw_sql(ONE).execute(&mut session).await?;
                tokio::time::sleep(PAUSE).await;
            }
            session.close().await
        }
    });

    println!("\n| delivery | kills | p50 s | max s |\n|---|---|---|---|");
    for (name, mode) in [
        ("exactly once", Mode::Default),
        ("at least once", Mode::WalAtLeastOnce),
    ] {
        let mut leader = tidings.start(&outbox.url, "takeover", mode)?;
        let mut gaps = Vec::new();
        for _ in 0..options.kills {
            tokio::time::sleep(BETWEEN / 2).await;
            let standby = tidings.start(&outbox.url, "takeover", mode)?;
            tokio::time::sleep(BETWEEN / 2).await;
            let killed = Instant::now();
            // Dropping the process kills it.
            drop(std::mem::replace(&mut leader, standby));
            gaps.push(gap(&arrivals, killed).await?);
        }
        leader.stop()?;
        gaps.sort();
        println!(
            "| {name} | {} | {:.2} | {:.2} |",
            gaps.len(),
            gaps[gaps.len() / 2].as_secs_f64(),
            gaps[gaps.len() - 1].as_secs_f64()
        );
    }
    stop.store(true, Ordering::Release);
    writing.await??;
    consuming.join().map_err(|_| "the consumer panicked")?;
    outbox.finish().await
}

/// Returns the longest pause around the kill: from the last record that the killed leader may have
/// sent to the first one of the new leader.
async fn gap(arrivals: &Mutex<Vec<Instant>>, killed: Instant) -> Outcome<Duration> {
    let until = killed + Duration::from_secs(60);
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let after: Vec<Instant> = {
            let arrivals = arrivals.lock().map_err(|_| "the consumer panicked")?;
            let from = arrivals
                .partition_point(|at| *at < killed)
                .saturating_sub(1);
            arrivals[from..].to_vec()
        };
        // Records that reached the broker before the kill still arrive for a moment.
        let longest = after
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default();
        if after.last().is_some_and(|last| *last > killed + SETTLED) {
            return Ok(longest);
        }
        if Instant::now() > until {
            return Err("no relay took over within a minute".into());
        }
    }
}

fn consumer(brokers: &str) -> Outcome<BaseConsumer> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", "takeover")
        .set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..topic::PARTITIONS {
        list.add_partition_offset("takeover", partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    Ok(consumer)
}
