//! A topic of eight partitions, and its fill rate.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{
    Outcome,
    process::{Cost, Process},
};

/// Number of partitions of each topic.
pub(crate) const PARTITIONS: i32 = 8;

/// Interval between reads of the topic's end offsets: 1 % of a drain of five seconds.
const LOOK: Duration = Duration::from_millis(50);

/// Time without a new record after which a drain fails. Decoding a transaction of ten million
/// events takes minutes before its first event arrives.
const PATIENCE: Duration = Duration::from_secs(300);

/// Figures of one drain, measured at the topic.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drain {
    /// Rate from the first observed record to the last.
    pub(crate) events_per_second: f64,
    /// Time from the start of the process to the first record.
    pub(crate) first_after: Duration,
    pub(crate) cost: Cost,
}

/// Creates `topic`.
pub(crate) async fn create(brokers: &str, topic: &str) -> Outcome<()> {
    create_with(brokers, topic, &[]).await
}

/// Creates `topic` with these topic settings.
pub(crate) async fn create_with(
    brokers: &str,
    topic: &str,
    settings: &[(&str, &str)],
) -> Outcome<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    let new = settings
        .iter()
        .fold(new, |new, (name, value)| new.set(name, value));
    let created = admin.create_topics(&[new], &AdminOptions::new()).await?;
    created
        .into_iter()
        .next()
        .ok_or("the broker returned no result")?
        .map_err(|(topic, error)| format!("creating {topic}: {error}"))?;
    Ok(())
}

/// Deletes `topic`, so that the disk holds the records of one run at a time.
pub(crate) async fn delete(brokers: &str, topic: &str) -> Outcome<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    admin.delete_topics(&[topic], &AdminOptions::new()).await?;
    Ok(())
}

/// Waits until `topic` holds `count` records. The relay was started immediately before.
pub(crate) fn watch(brokers: &str, topic: &str, count: u64, relay: &Process) -> Outcome<Drain> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "watch")
        .create()?;
    let start = Instant::now();
    let (mut first, mut seen, mut grew) = (None, 0, start);
    loop {
        let now = held(&consumer, topic)?;
        if now > seen {
            (seen, grew) = (now, Instant::now());
            first.get_or_insert((grew, now));
        }
        if seen >= count {
            break;
        }
        relay.still_runs()?;
        if grew.elapsed() > PATIENCE {
            return Err(
                format!("{topic} holds {seen} of {count} records and no more arrive").into(),
            );
        }
        sleep(LOOK);
    }
    let (first_at, held_first) = first.ok_or("an empty backlog")?;
    let seconds = (grew - first_at).as_secs_f64().max(LOOK.as_secs_f64());
    // The control records that end transactions take offsets too.
    if seen > count + count / 100 {
        eprintln!(
            "note: {topic} holds {} more records than the backlog; some are duplicates",
            seen - count
        );
    }
    Ok(Drain {
        events_per_second: (seen - held_first) as f64 / seconds,
        first_after: first_at - start,
        cost: relay.cost(),
    })
}

fn held(consumer: &BaseConsumer, topic: &str) -> Outcome<u64> {
    let mut held = 0;
    for partition in 0..PARTITIONS {
        held += consumer
            .fetch_watermarks(topic, partition, Duration::from_secs(10))?
            .1
            .cast_unsigned();
    }
    Ok(held)
}
