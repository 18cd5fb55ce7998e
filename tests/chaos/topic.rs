//! Records of both topics, read with `read_committed`, and administration of the topics.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde::Deserialize;
use uuid::Uuid;

use super::Failure;
use super::plan::Plan;

/// The relay's `--topic`. [`TYPES`] lists the two aggregate types.
pub(crate) const TEMPLATE: &str = "chaos-{aggregatetype}";
pub(crate) const TYPES: [&str; 2] = ["account", "early"];

/// The time limit for a response. A broker that has just restarted may be slow.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A record and its position.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Arc<str>,
    pub(crate) mark: Uuid,
}

/// The payload of the events.
#[derive(Deserialize)]
struct Marked {
    mark: Uuid,
}

/// A consumer of both topics.
pub(crate) struct Topics {
    consumer: BaseConsumer,
    partitions: Vec<(String, i32)>,
    /// Interned keys and topics: a long history has millions of records, but few distinct keys and
    /// topics.
    names: RefCell<HashSet<Arc<str>>>,
}

impl Topics {
    /// Starts reading at the beginning of each partition.
    ///
    /// # Errors
    ///
    /// Returns an error if the broker does not list the topics.
    pub(crate) fn new(brokers: &str) -> Result<Self, Failure> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("group.id", "never-commits")
            .set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "20")
            .create()
            .expect("a consumer");
        let partitions = partitions(&consumer)?;
        let mut list = TopicPartitionList::new();
        for (topic, partition) in &partitions {
            list.add_partition_offset(topic, *partition, Offset::Beginning)
                .expect("a partition");
        }
        consumer.assign(&list).expect("assigned");
        Ok(Self {
            consumer,
            partitions,
            names: RefCell::default(),
        })
    }

    /// Returns the records that arrive within `limit`.
    ///
    /// # Errors
    ///
    /// Returns an error if a record is not an event of this test.
    pub(crate) fn read(&self, limit: Duration) -> Result<Vec<Record>, Failure> {
        let until = Instant::now() + limit;
        let mut records = Vec::new();
        while Instant::now() < until {
            // Errors are ignored, because brokers stop and start during a history.
            let Some(Ok(message)) = self.consumer.poll(Duration::from_millis(20)) else {
                continue;
            };
            let Marked { mark } = serde_json::from_slice(message.payload().unwrap_or_default())
                .map_err(|error| {
                    format!(
                        "the record at {}/{}/{} is not an event of this test: {error}",
                        message.topic(),
                        message.partition(),
                        message.offset()
                    )
                })?;
            let key = self.name(std::str::from_utf8(message.key().unwrap_or_default())?);
            let (topic, partition, offset) = (
                self.name(message.topic()),
                message.partition(),
                message.offset(),
            );
            records.push(Record {
                topic,
                partition,
                offset,
                key,
                mark,
            });
        }
        Ok(records)
    }

    fn name(&self, text: &str) -> Arc<str> {
        let mut names = self.names.borrow_mut();
        if let Some(known) = names.get(text) {
            return Arc::clone(known);
        }
        let name: Arc<str> = text.into();
        names.insert(Arc::clone(&name));
        name
    }

    /// Reads the remaining records up to the end of every partition, after all writers and relays
    /// have stopped or paused.
    ///
    /// # Errors
    ///
    /// Returns an error if the end is not reached, for example because an unfinished transaction
    /// hides the records after it.
    pub(crate) fn read_to_the_end(&self) -> Result<Vec<Record>, Failure> {
        let mut ends = HashMap::new();
        for (topic, partition) in &self.partitions {
            ends.insert(
                (topic.as_str(), *partition),
                self.consumer
                    .fetch_watermarks(topic, *partition, ANSWER_LIMIT)?
                    .1,
            );
        }
        let mut records = Vec::new();
        let until = Instant::now() + ANSWER_LIMIT;
        loop {
            records.extend(self.read(Duration::from_millis(200))?);
            let positions = self.consumer.position()?;
            let behind = positions.elements().into_iter().find(|at| {
                let end = ends
                    .get(&(at.topic(), at.partition()))
                    .copied()
                    .unwrap_or_default();
                // A partition has no position before its first record is read.
                end > 0 && !matches!(at.offset(), Offset::Offset(offset) if offset >= end)
            });
            match behind {
                None => return Ok(records),
                Some(at) if Instant::now() > until => {
                    return Err(format!(
                        "the consumer did not reach the end of {}/{}: {:?}",
                        at.topic(),
                        at.partition(),
                        at.offset()
                    )
                    .into());
                }
                Some(_) => {}
            }
        }
    }
}

// === impl Display ===

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}: {} ({})",
            self.topic, self.partition, self.offset, self.key, self.mark
        )
    }
}

/// Returns every partition of both topics that the broker currently lists.
fn partitions(consumer: &BaseConsumer) -> Result<Vec<(String, i32)>, Failure> {
    let mut partitions = Vec::new();
    for topic in topics() {
        let metadata = consumer.fetch_metadata(Some(&topic), ANSWER_LIMIT)?;
        let listed = metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions());
        partitions.extend(listed.map(|partition| (topic.clone(), partition.id())));
    }
    Ok(partitions)
}

pub(crate) fn topics() -> Vec<String> {
    TYPES
        .iter()
        .map(|name| TEMPLATE.replace("{aggregatetype}", name))
        .collect()
}

/// Creates a client for administrative requests.
pub(crate) fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("a client")
}

/// Creates both topics with replicas on all brokers.
pub(crate) async fn create(brokers: &str, plan: &Plan) -> Result<(), Failure> {
    let names = topics();
    let replicas = i32::try_from(plan.brokers)?;
    let new: Vec<_> = names
        .iter()
        .map(|name| NewTopic::new(name, plan.partitions, TopicReplication::Fixed(replicas)))
        .collect();
    for answer in admin(brokers)
        .create_topics(&new, &AdminOptions::new())
        .await?
    {
        answer.map_err(|(topic, code)| format!("topic {topic} cannot be created: {code}"))?;
    }
    Ok(())
}

/// Deletes both topics and waits until the broker no longer lists them.
pub(crate) async fn delete(brokers: &str) -> Result<(), Failure> {
    let (client, names) = (admin(brokers), topics());
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    for answer in client.delete_topics(&names, &AdminOptions::new()).await? {
        answer.map_err(|(topic, code)| format!("topic {topic} cannot be deleted: {code}"))?;
    }
    let until = Instant::now() + ANSWER_LIMIT;
    loop {
        let metadata = client.inner().fetch_metadata(None, ANSWER_LIMIT)?;
        if !metadata
            .topics()
            .iter()
            .any(|topic| names.contains(&topic.name()))
        {
            return Ok(());
        }
        if Instant::now() > until {
            return Err("the broker still lists the deleted topics".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Adds one partition to both topics, up to `most` partitions.
pub(crate) async fn add_partition(brokers: &str, most: i32) -> Result<(), Failure> {
    let client = admin(brokers);
    for name in topics() {
        let metadata = client.inner().fetch_metadata(Some(&name), ANSWER_LIMIT)?;
        let now = metadata
            .topics()
            .first()
            .map_or(0, |topic| topic.partitions().len());
        if now == 0 || now >= usize::try_from(most)? {
            continue;
        }
        for answer in client
            .create_partitions(&[NewPartitions::new(&name, now + 1)], &AdminOptions::new())
            .await?
        {
            answer.map_err(|(topic, code)| format!("topic {topic} cannot be extended: {code}"))?;
        }
    }
    Ok(())
}

/// Makes both topics refuse records larger than `bytes`.
pub(crate) async fn limit_messages(brokers: &str, bytes: u32) -> Result<(), Failure> {
    let (names, bytes) = (topics(), bytes.to_string());
    let changes: Vec<_> = names
        .iter()
        .map(|name| {
            AlterConfig::new(ResourceSpecifier::Topic(name)).set("max.message.bytes", &bytes)
        })
        .collect();
    for answer in admin(brokers)
        .alter_configs(&changes, &AdminOptions::new())
        .await?
    {
        answer.map_err(|(topic, code)| format!("{topic:?} cannot be changed: {code}"))?;
    }
    Ok(())
}
