//! Topics of a test: a plain consumer that reads one from its beginning, and their administration.

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

/// Time limit for records that must arrive. It is long, so that only a hang fails the test and not
/// a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One record as a consumer receives it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) timestamp: i64,
}

impl Record {
    /// Returns the value as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("a value")).expect("UTF-8")
    }
}

/// A consumer of one topic that keeps the records it has read.
pub(crate) struct Reader {
    consumer: BaseConsumer,
    brokers: String,
    topic: String,
    records: Vec<Record>,
    /// Partitions whose end has been reached.
    ended: HashSet<i32>,
}

impl Reader {
    /// Reads all partitions of `topic` from the beginning.
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
                i32::try_from(partition).expect("the number fits"),
                Offset::Beginning,
            )
            .expect("a partition");
        }
        self.consumer
            .assign(&list)
            .expect("the assignment succeeds");
    }

    fn read_one(&mut self) -> bool {
        if self
            .consumer
            .assignment()
            .expect("the assignment is known")
            .count()
            == 0
        {
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

    /// Reads until `distinct` different records (key and value) have arrived.
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

    /// Reads until there are more than `count` records, or until the topic has been silent for five
    /// seconds. Returns the number of records.
    pub(crate) fn until_more_than(&mut self, count: usize) -> usize {
        let mut last = Instant::now();
        while self.records.len() <= count && last.elapsed() < Duration::from_secs(5) {
            if self.read_one() {
                last = Instant::now();
            }
        }
        self.records.len()
    }

    /// Reads all committed records of every partition. Call this after the last write.
    pub(crate) fn read_to_the_end(&mut self) -> &[Record] {
        // Start with a new consumer: it reports the end of a partition only once, and offsets do
        // not show the end, because transaction markers take offsets, too.
        *self = Self::new(&self.brokers, &self.topic);
        let until = Instant::now() + PATIENCE;
        self.read_one();
        // Fetch the number of partitions once: a request costs a round trip, and there may be a
        // hundred thousand records.
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

/// Creates a topic, as an operator does.
pub(crate) async fn create_topic(brokers: &str, topic: &str, partitions: i32) {
    create_topic_with(brokers, topic, partitions, &[]).await;
}

/// Creates a topic with the given settings.
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

/// Deletes a topic and waits until the broker no longer lists it.
pub(crate) async fn delete_topic(brokers: &str, topic: &str) {
    let answer = admin(brokers)
        .delete_topics(&[topic], &AdminOptions::new())
        .await
        .expect("the broker answers");
    assert!(answer.iter().all(Result::is_ok), "{answer:?}");
    let until = Instant::now() + PATIENCE;
    while Reader::new(brokers, topic).partitions() > 0 {
        assert!(Instant::now() < until, "topic {topic} still exists");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Adds partitions to a topic without regard for the partitions of existing keys.
pub(crate) async fn grow_topic(brokers: &str, topic: &str, partitions: usize) {
    let more = NewPartitions::new(topic, partitions);
    let answer = admin(brokers)
        .create_partitions([&more], &AdminOptions::new())
        .await
        .expect("the broker answers");
    assert!(answer.iter().all(Result::is_ok), "{answer:?}");
}
