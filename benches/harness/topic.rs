//! A topic of eight partitions, and how fast it fills.

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

/// Partitions of every topic.
pub(crate) const PARTITIONS: i32 = 8;

/// How often the end of the topic is looked at: 1 % of a drain of five seconds.
const LOOK: Duration = Duration::from_millis(50);

/// How long nothing may arrive before a drain is given up. A transaction of ten million events is decoded for minutes before its first.
const PATIENCE: Duration = Duration::from_secs(300);

/// One drain as the topic shows it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drain {
    /// From the first record seen to the last.
    pub(crate) events_per_second: f64,
    /// From the start of the process to the first record.
    pub(crate) first_after: Duration,
    pub(crate) cost: Cost,
}

/// Creates `topic`.
pub(crate) async fn create(brokers: &str, topic: &str) -> Outcome<()> {
    create_with(brokers, topic, &[]).await
}

/// Creates `topic` with settings of its own.
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
        .ok_or("no answer")?
        .map_err(|(topic, error)| format!("creating {topic}: {error}"))?;
    Ok(())
}

/// Removes `topic`, so that the disk holds one run at a time.
pub(crate) async fn delete(brokers: &str, topic: &str) -> Outcome<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    admin.delete_topics(&[topic], &AdminOptions::new()).await?;
    Ok(())
}

/// Waits until `topic` holds `count` records of `relay`, which was started right before.
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
                format!("{topic} holds {seen} of {count} records and nothing arrives").into(),
            );
        }
        sleep(LOOK);
    }
    let (first_at, held_first) = first.ok_or("an empty backlog")?;
    let seconds = (grew - first_at).as_secs_f64().max(LOOK.as_secs_f64());
    // The marks that end transactions take offsets too.
    if seen > count + count / 100 {
        eprintln!(
            "note: {topic} holds {} records more than the backlog: repeats",
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
