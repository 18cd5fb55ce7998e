//! Topics of a test: a plain consumer that reads one from its beginning, and their administration.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
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
    message::{Header, Headers as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

use super::eventually::{PATIENCE, until, until_blocking};

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
    /// Reads the committed records of all partitions of `topic` from the beginning.
    pub(crate) fn new(brokers: &str, topic: &str) -> Self {
        Self::isolated(brokers, topic, "read_committed")
    }

    fn isolated(brokers: &str, topic: &str, isolation: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "tests-never-commit")
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation)
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
        let appears = format!("topic {} appears", self.topic);
        let partitions = until_blocking(&appears, || {
            Some(self.partitions()).filter(|partitions| *partitions > 0)
        });
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
        self.until_distinct_or(distinct, String::new)
    }

    /// Same as [`until_distinct`](Self::until_distinct). The panic shows the state of the program
    /// that publishes, and what another consumer finds.
    pub(crate) fn until_distinct_or(
        &mut self,
        distinct: usize,
        state: impl FnOnce() -> String,
    ) -> &[Record] {
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
            if last.elapsed() > PATIENCE {
                let state = state();
                let count = |isolation| {
                    Self::isolated(&self.brokers, &self.topic, isolation)
                        .read_on_to_the_end()
                        .len()
                };
                panic!(
                    "{} of {distinct} events within {PATIENCE:?} of silence; another consumer finds \
                     {} committed records and {} in all; {state}",
                    seen.len(),
                    count("read_committed"),
                    count("read_uncommitted"),
                );
            }
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
        self.read_on_to_the_end()
    }

    fn read_on_to_the_end(&mut self) -> &[Record] {
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

/// Settings of a reader, as environment variables: the broker collects records for a second before
/// it responds. A topic that is written without pause then never has an empty response, which would
/// be its end.
pub(crate) const NEVER_AT_THE_END: [(&str, &str); 2] = [
    ("TIDINGS_KAFKA_PROPERTIES_FETCH_MIN_BYTES", "1000000"),
    ("TIDINGS_KAFKA_PROPERTIES_FETCH_WAIT_MAX_MS", "1000"),
];

/// Programs that write to a topic without pause.
pub(crate) struct Writing {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writing {
    /// Writes records that are no events to each partition of a topic with two programs.
    pub(crate) fn start(brokers: &str, topic: &str) -> Self {
        let partitions = Reader::new(brokers, topic).partitions();
        let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let threads = (0..2 * partitions).map(|number| {
            let producer: BaseProducer = ClientConfig::new()
                .set("bootstrap.servers", brokers)
                .set("linger.ms", "0")
                .create()
                .expect("a producer");
            let (stop, written, topic) = (stop.clone(), written.clone(), topic.to_owned());
            std::thread::spawn(move || {
                let partition = i32::try_from(number % partitions).expect("a partition");
                let until = Instant::now() + PATIENCE;
                // A reader that waits for the writers to end then ends too, and fails its test.
                while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                    let record = BaseRecord::to(&topic).key("k").payload("{}");
                    let sent = producer.send(record.partition(partition));
                    sent.map_err(|(error, _)| error).expect("queued");
                    producer.flush(PATIENCE).expect("acknowledged");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            written,
        }
    }

    /// Waits until this number of further records is written.
    pub(crate) async fn until_more(&self, count: u64) {
        let before = self.written.load(Ordering::Relaxed);
        until("more records are written", async || {
            (self.written.load(Ordering::Relaxed) >= before + count).then_some(())
        })
        .await;
    }

    /// Ends the writers. Panics if they have ended before.
    pub(crate) fn stop(self) {
        assert!(
            self.threads.iter().all(|thread| !thread.is_finished()),
            "the reader has waited for the writers"
        );
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("the writer does not panic");
        }
    }
}

/// Returns the headers of a record to send.
pub(crate) fn byte_headers(headers: &[(&str, &[u8])]) -> OwnedHeaders {
    headers
        .iter()
        .fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(Header {
                key,
                value: Some(*value),
            })
        })
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
    until(&format!("topic {topic} is deleted"), async || {
        (Reader::new(brokers, topic).partitions() == 0).then_some(())
    })
    .await;
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
