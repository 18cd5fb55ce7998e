//! Administration of the topics of a history, and readers for dead letters and unfinished records.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Headers as _;
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

use super::super::{Failure, topic::admin};
use super::events::{ACCOUNT_TOPIC, LEDGER, SAGA_TOPIC, SHOP, SHOP_TOPICS};
use super::tables::MARK;

/// The time limit for a response. A broker that has just restarted may be slow.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The initial and the maximum number of partitions.
const PARTITIONS: usize = 4;
const PARTITIONS_MAX: usize = 8;

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Letter {
    /// The topic of dead letters. The next two fields are the position in it.
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// The mark of a hostile record.
    pub(crate) mark: Option<String>,
    pub(crate) event_id: Option<String>,
    pub(crate) reason: String,
}

/// Returns all subscribed topics, each with its group.
pub(crate) fn subscribed() -> Vec<(&'static str, &'static str)> {
    std::iter::once((ACCOUNT_TOPIC, LEDGER))
        .chain(SHOP_TOPICS.map(|topic| (topic, SHOP)))
        .collect()
}

/// Creates every topic that the relay publishes to.
///
/// # Errors
///
/// Returns an error if the broker refuses a topic.
pub(crate) async fn create_all(brokers: &str) -> Result<(), Failure> {
    for (topic, _) in subscribed() {
        create(brokers, topic, PARTITIONS).await?;
    }
    create(brokers, SAGA_TOPIC, 1).await
}

async fn create(brokers: &str, topic: &str, partitions: usize) -> Result<(), Failure> {
    let new = NewTopic::new(
        topic,
        i32::try_from(partitions)?,
        TopicReplication::Fixed(1),
    );
    for answer in admin(brokers)
        .create_topics(&[new], &AdminOptions::new())
        .await?
    {
        answer.map_err(|(topic, code)| format!("topic {topic} cannot be created: {code}"))?;
    }
    Ok(())
}

/// Deletes existing topics and waits until the broker no longer lists them.
///
/// # Errors
///
/// Returns an error if the broker refuses, or still lists a topic after the time limit.
pub(crate) async fn delete(brokers: &str, topics: &[String]) -> Result<(), Failure> {
    let names: Vec<_> = topics.iter().map(String::as_str).collect();
    if names.is_empty() {
        return Ok(());
    }
    for answer in admin(brokers)
        .delete_topics(&names, &AdminOptions::new())
        .await?
    {
        answer.map_err(|(topic, code)| format!("topic {topic} cannot be deleted: {code}"))?;
    }
    let until = Instant::now() + ANSWER_LIMIT;
    while list(brokers)?
        .iter()
        .any(|(name, _)| names.contains(&name.as_str()))
    {
        if Instant::now() > until {
            return Err("the broker still lists deleted topics".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Deletes a topic and creates it again with the same number of partitions.
///
/// # Errors
///
/// Returns the errors of [`delete`], and an error if the topic cannot be created.
pub(crate) async fn create_again(brokers: &str, topic: &str) -> Result<(), Failure> {
    let partitions = list(brokers)?
        .into_iter()
        .find(|(name, _)| name == topic)
        .map_or(PARTITIONS, |(_, partitions)| partitions);
    delete(brokers, &[topic.to_owned()]).await?;
    create(brokers, topic, partitions).await
}

/// Adds one partition to each subscribed topic, up to a limit.
///
/// # Errors
///
/// Returns an error if the broker refuses.
pub(crate) async fn add_partition(brokers: &str) -> Result<(), Failure> {
    let subscribed: HashSet<_> = subscribed().into_iter().map(|(topic, _)| topic).collect();
    for (topic, partitions) in list(brokers)? {
        if !subscribed.contains(topic.as_str()) || partitions >= PARTITIONS_MAX {
            continue;
        }
        for answer in admin(brokers)
            .create_partitions(
                &[NewPartitions::new(&topic, partitions + 1)],
                &AdminOptions::new(),
            )
            .await?
        {
            answer.map_err(|(topic, code)| format!("topic {topic} cannot be extended: {code}"))?;
        }
    }
    Ok(())
}

/// Returns every topic with its number of partitions.
fn list(brokers: &str) -> Result<Vec<(String, usize)>, Failure> {
    let metadata = admin(brokers).inner().fetch_metadata(None, ANSWER_LIMIT)?;
    Ok(metadata
        .topics()
        .iter()
        .map(|topic| (topic.name().to_owned(), topic.partitions().len()))
        .collect())
}

/// Returns the existing topics of dead letters and of retries.
///
/// # Errors
///
/// Returns an error if the broker does not respond.
pub(crate) fn letters_and_retries(brokers: &str) -> Result<(Vec<String>, Vec<String>), Failure> {
    let (mut letters, mut retries) = (Vec::new(), Vec::new());
    for (name, _) in list(brokers)? {
        for (topic, group) in subscribed() {
            if name == format!("{topic}.{group}.dlt") {
                letters.push(name.clone());
            } else if name.starts_with(&format!("{topic}.{group}.retry.")) {
                retries.push(name.clone());
            }
        }
    }
    Ok((letters, retries))
}

fn consumer(brokers: &str, group: &str) -> Result<BaseConsumer, Failure> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false");
    Ok(config
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "20")
        .set("fetch.message.max.bytes", "4000000")
        .create()?)
}

/// A partition and a range of its offsets.
struct Range {
    topic: String,
    partition: i32,
    from: i64,
    to: i64,
}

/// Calls `each` for every committed record of the ranges.
fn read(
    consumer: &BaseConsumer,
    ranges: &[Range],
    mut each: impl FnMut(&rdkafka::message::BorrowedMessage<'_>),
) -> Result<(), Failure> {
    let mut list = TopicPartitionList::new();
    for range in ranges {
        list.add_partition_offset(&range.topic, range.partition, Offset::Offset(range.from))?;
    }
    consumer.assign(&list)?;
    let until = Instant::now() + ANSWER_LIMIT;
    loop {
        // Errors are ignored, because brokers stop and start during a history.
        while let Some(message) = consumer.poll(Duration::from_millis(30)) {
            if let Ok(message) = message {
                each(&message);
            }
        }
        let positions = consumer.position()?;
        let is_behind = |range: &&Range| {
            let at = positions
                .find_partition(&range.topic, range.partition)
                .map(|at| at.offset());
            !matches!(at, Some(Offset::Offset(offset)) if offset >= range.to)
        };
        match ranges.iter().find(is_behind) {
            None => return Ok(()),
            Some(range) if Instant::now() > until => {
                return Err(format!(
                    "the consumer did not reach the end of {}/{}",
                    range.topic, range.partition
                )
                .into());
            }
            Some(_) => {}
        }
    }
}

/// Returns every dead letter that exists now.
///
/// # Errors
///
/// Returns an error if the broker does not respond or the end is not reached.
pub(crate) fn read_letters(brokers: &str) -> Result<Vec<Letter>, Failure> {
    let (topics, _) = letters_and_retries(brokers)?;
    let consumer = consumer(brokers, "never-commits")?;
    let mut ranges = Vec::new();
    for topic in topics {
        for partition in partitions(&consumer, &topic)? {
            let (from, to) = consumer.fetch_watermarks(&topic, partition, ANSWER_LIMIT)?;
            if to > from {
                ranges.push(Range {
                    topic: topic.clone(),
                    partition,
                    from,
                    to,
                });
            }
        }
    }
    let mut letters = Vec::new();
    read(&consumer, &ranges, |message| {
        let header = |name: &str| {
            let headers = message.headers()?;
            let found = headers.iter().find(|header| header.key == name)?;
            Some(String::from_utf8_lossy(found.value?).into_owned())
        };
        letters.push(Letter {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            mark: header(MARK),
            event_id: header("ce_id"),
            reason: header("kafka_dlt-exception-message").unwrap_or_default(),
        });
    })?;
    Ok(letters)
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i32>, Failure> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_LIMIT)?;
    Ok(metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions())
        .map(|partition| partition.id())
        .collect())
}

/// Returns the partitions with committed records that their group has not finished, each with the
/// first such offset. Returns an empty list once all offsets are at the end.
///
/// # Errors
///
/// Returns an error if the broker does not respond.
pub(crate) fn unfinished(brokers: &str) -> Result<Vec<String>, Failure> {
    let mut unfinished = BTreeMap::new();
    for group in [LEDGER, SHOP] {
        let consumer = consumer(brokers, group)?;
        let mut list_of_all = TopicPartitionList::new();
        for (name, partitions) in list(brokers)? {
            let is_read = |(topic, of): (&str, &str)| {
                of == group
                    && (name == topic
                        || name == format!("{topic}.{group}.redrive")
                        || name.starts_with(&format!("{topic}.{group}.retry.")))
            };
            if subscribed().into_iter().any(is_read) {
                list_of_all.add_partition_range(&name, 0, i32::try_from(partitions)? - 1);
            }
        }
        let mut ranges = Vec::new();
        for at in consumer
            .committed_offsets(list_of_all, ANSWER_LIMIT)?
            .elements()
        {
            let (low, to) = consumer.fetch_watermarks(at.topic(), at.partition(), ANSWER_LIMIT)?;
            let from = if let Offset::Offset(offset) = at.offset() {
                offset.max(low)
            } else {
                low
            };
            if to > from {
                ranges.push(Range {
                    topic: at.topic().to_owned(),
                    partition: at.partition(),
                    from,
                    to,
                });
            }
        }
        // The ranges may contain only transaction markers, which are not records.
        read(&consumer, &ranges, |message| {
            let at = (group, message.topic().to_owned(), message.partition());
            unfinished.entry(at).or_insert(message.offset());
        })?;
    }
    let line = |((group, topic, partition), offset)| {
        format!("{topic}/{partition} of {group}, from offset {offset}")
    };
    Ok(unfinished.into_iter().map(line).collect())
}
