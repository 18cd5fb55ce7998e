//! Reads a topic from its beginning, with a plain consumer.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
};

/// How long a test waits for records that must come. A hang is a failure; a slow machine is not.
const PATIENCE: Duration = Duration::from_secs(120);

/// One record as a consumer sees it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) timestamp: i64,
}

impl Record {
    /// The value as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("a value")).expect("UTF-8")
    }
}

/// A consumer of one topic that remembers what it has read.
pub(crate) struct Reader {
    consumer: BaseConsumer,
    brokers: String,
    topic: String,
    records: Vec<Record>,
    /// Partitions whose end was reached.
    ended: HashSet<i32>,
}

impl Reader {
    /// Reads `topic`, all partitions, from the beginning.
    pub(crate) fn new(brokers: &str, topic: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "tests-never-commit")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10")
            .set("fetch.message.max.bytes", "10485760")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a consumer");
        Self {
            consumer,
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            records: Vec::new(),
            ended: HashSet::new(),
        }
    }

    pub(crate) fn partitions(&self) -> usize {
        let metadata = self
            .consumer
            .fetch_metadata(Some(&self.topic), Duration::from_secs(10))
            .expect("the broker answers");
        metadata.topics()[0].partitions().len()
    }

    fn assign(&self) {
        let until = Instant::now() + PATIENCE;
        let partitions = loop {
            match self.partitions() {
                0 => assert!(
                    Instant::now() < until,
                    "topic {} does not appear",
                    self.topic
                ),
                partitions => break partitions,
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(
                &self.topic,
                i32::try_from(partition).expect("few"),
                Offset::Beginning,
            )
            .expect("a partition");
        }
        self.consumer.assign(&list).expect("assigned");
    }

    fn read_one(&mut self) -> bool {
        if self.consumer.assignment().expect("asked").count() == 0 {
            self.assign();
        }
        let message = match self.consumer.poll(Duration::from_millis(50)) {
            Some(Ok(message)) => message,
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                self.ended.insert(partition);
                return false;
            }
            Some(Err(_)) | None => return false,
        };
        let headers = message.headers().map(|headers| {
            let text = |bytes: Option<&[u8]>| {
                String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
            };
            headers
                .iter()
                .map(|header| (header.key.to_owned(), text(header.value)))
                .collect()
        });
        self.records.push(Record {
            partition: message.partition(),
            key: message.key().unwrap_or_default().to_vec(),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
            timestamp: message.timestamp().to_millis().unwrap_or(-1),
        });
        true
    }

    /// Reads until `distinct` different records (key and value) were seen.
    pub(crate) fn until_distinct(&mut self, distinct: usize) -> &[Record] {
        let mut seen: HashSet<(Vec<u8>, Option<Vec<u8>>)> = HashSet::new();
        let mut at = 0;
        let mut last = Instant::now();
        loop {
            while at < self.records.len() {
                seen.insert((self.records[at].key.clone(), self.records[at].value.clone()));
                at += 1;
            }
            if seen.len() >= distinct {
                return &self.records;
            }
            if self.read_one() {
                last = Instant::now();
            }
            assert!(
                last.elapsed() < PATIENCE,
                "{} of {distinct} events within {PATIENCE:?} of silence",
                seen.len()
            );
        }
    }

    /// Reads until there are more than `count` records, or the topic has been silent for a while; how many there are.
    pub(crate) fn until_more_than(&mut self, count: usize) -> usize {
        let mut last = Instant::now();
        while self.records.len() <= count && last.elapsed() < Duration::from_secs(5) {
            if self.read_one() {
                last = Instant::now();
            }
        }
        self.records.len()
    }

    /// Reads every partition from its beginning to its end, as committed: call it once nobody writes any more.
    pub(crate) fn read_to_the_end(&mut self) -> &[Record] {
        // Anew: an end is told once, and the marks that end transactions take offsets, so positions do not tell it.
        *self = Self::new(&self.brokers, &self.topic);
        let until = Instant::now() + PATIENCE;
        self.read_one();
        // Asked once: an answer costs a round trip, and there may be a hundred thousand records.
        let partitions = self.partitions().max(1);
        while self.ended.len() < partitions {
            self.read_one();
            assert!(
                Instant::now() < until,
                "the end of {} is not reached",
                self.topic
            );
        }
        &self.records
    }
}

pub(crate) fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("a client")
}

/// Creates a topic as an operator would.
pub(crate) async fn create_topic(brokers: &str, topic: &str, partitions: i32) {
    create_topic_with(brokers, topic, partitions, &[]).await;
}

/// Creates a topic with settings of its own.
pub(crate) async fn create_topic_with(
    brokers: &str,
    topic: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) {
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (name, value) in settings {
        new = new.set(name, value);
    }
    let answer = admin(brokers)
        .create_topics([&new], &AdminOptions::new())
        .await
        .expect("the broker answers");
    assert!(answer.iter().all(Result::is_ok), "{answer:?}");
}

/// Changes settings of a topic.
pub(crate) async fn alter_topic(brokers: &str, topic: &str, settings: &[(&str, &str)]) {
    let resource = settings.iter().fold(
        AlterConfig::new(ResourceSpecifier::Topic(topic)),
        |all, (name, value)| all.set(name, value),
    );
    let answer = admin(brokers)
        .alter_configs([&resource], &AdminOptions::new())
        .await
        .expect("the broker answers");
    assert!(answer.iter().all(Result::is_ok), "{answer:?}");
}

/// Deletes a topic and waits until the broker does not list it any more.
pub(crate) async fn delete_topic(brokers: &str, topic: &str) {
    let answer = admin(brokers)
        .delete_topics(&[topic], &AdminOptions::new())
        .await
        .expect("the broker answers");
    assert!(answer.iter().all(Result::is_ok), "{answer:?}");
    let until = Instant::now() + PATIENCE;
    while Reader::new(brokers, topic).partitions() > 0 {
        assert!(Instant::now() < until, "topic {topic} is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Adds partitions to a topic, as an operator would who does not know what that does to keys.
pub(crate) async fn grow_topic(brokers: &str, topic: &str, partitions: usize) {
    let more = NewPartitions::new(topic, partitions);
    let answer = admin(brokers)
        .create_partitions([&more], &AdminOptions::new())
        .await
        .expect("the broker answers");
    assert!(answer.iter().all(Result::is_ok), "{answer:?}");
}
