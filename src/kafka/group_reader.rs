//! Unhandled records of a consumer group, read by a client that never joins the group.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

use super::consumer::{ASK_TIMEOUT, Committed, Partition, partitions_of};
use super::drop_on_thread::Dropped;
use super::silent_context::Quiet;
use super::{Beat, OVERDUE, Settings, Unanswered, watched};

/// The end of each partition.
pub(crate) type Ends = BTreeMap<Partition, i64>;

/// The first unhandled record of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unhandled {
    pub(crate) partition: Partition,
    /// The committed offset, or the beginning of the partition.
    pub(crate) committed: i64,
    pub(crate) offset: i64,
}

/// Configures a client that reads to the ends of partitions with a group's id but never joins the
/// group.
pub(super) fn be_outsider<'c>(config: &'c mut ClientConfig, group: &str) -> &'c mut ClientConfig {
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("allow.auto.create.topics", "false")
        .set("auto.offset.reset", "earliest")
}

/// A client that uses a group's id.
pub(crate) struct GroupReader {
    group: String,
    consumer: Dropped<BaseConsumer<Quiet>>,
}

impl GroupReader {
    /// Creates the client.
    ///
    /// # Errors
    ///
    /// Returns librdkafka's message if it refuses a property.
    pub(crate) fn new(settings: &Settings, group: &str) -> Result<Self, String> {
        let mut config = settings.client_config();
        be_outsider(&mut config, group)
            .set("fetch.wait.max.ms", "10")
            // Only the first records of a partition are needed.
            .set("queued.min.messages", "1")
            .set("queued.max.messages.kbytes", "1024");
        let consumer = config
            .create_with_context(Quiet)
            .map_err(|error| error.to_string())?;
        Ok(Self {
            group: group.to_owned(),
            consumer: Dropped::new(consumer),
        })
    }

    /// Runs a blocking query on its own thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the client hangs or the cluster does not respond.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &std::sync::Arc<Self>,
        question: impl FnOnce(&Self, &Beat) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let reader = self.clone();
        let asked = watched("fetch_group_progress", ASK_TIMEOUT + OVERDUE, move |beat| {
            question(&reader, beat)
        });
        asked
            .await
            .unwrap_or_else(|unanswered: Unanswered| Err(unanswered.to_string()))
    }

    /// Returns the current ends of the topics' partitions. A topic that does not exist has none.
    ///
    /// # Errors
    ///
    /// Returns an error if a broker does not respond.
    pub(crate) fn ends(&self, topics: &[String], beat: &Beat) -> Result<Ends, String> {
        let mut ends = Ends::new();
        for topic in topics {
            beat.touch();
            for partition in partitions_of(self.consumer.get(), topic)? {
                beat.touch();
                let (_, end) = self.watermarks(&partition)?;
                ends.insert(partition, end);
            }
        }
        Ok(ends)
    }

    /// Returns the first unhandled record before the given end, for each partition that has one.
    /// Transaction markers occupy offsets too. Therefore a partition whose commit is below its end
    /// is read. `is_finished` reads the metadata of a commit.
    ///
    /// # Errors
    ///
    /// Returns an error if a broker does not respond.
    pub(crate) fn unhandled(
        &self,
        ends: &Ends,
        is_finished: &dyn Fn(&Committed, i64) -> bool,
        beat: &Beat,
    ) -> Result<Vec<Unhandled>, String> {
        let mut list = TopicPartitionList::new();
        for partition in ends.keys() {
            list.add_partition(&partition.topic, partition.number);
        }
        let answer = self
            .consumer
            .get()
            .committed_offsets(list, ASK_TIMEOUT)
            .map_err(|error| self.failed(&error))?;
        let mut doubtful: BTreeMap<&str, Vec<(&Partition, i64, Committed)>> = BTreeMap::new();
        for element in answer.elements() {
            beat.touch();
            let asked = Partition {
                topic: element.topic().into(),
                number: element.partition(),
            };
            let Some((partition, end)) = ends.get_key_value(&asked) else {
                continue;
            };
            element.error().map_err(|error| self.failed(&error))?;
            let offset = match element.offset() {
                Offset::Offset(offset) => offset,
                // A group that has never committed starts at the first record.
                _ => self.watermarks(partition)?.0,
            };
            if offset < *end {
                let committed = Committed {
                    partition: partition.clone(),
                    offset,
                    metadata: element.metadata().to_owned(),
                };
                doubtful
                    .entry(&partition.topic)
                    .or_default()
                    .push((partition, *end, committed));
            }
        }
        let mut unhandled = Vec::new();
        // librdkafka reports the end of a partition without its topic, so topics are read one after
        // another.
        for of_topic in doubtful.into_values() {
            unhandled.extend(self.with_records(&of_topic, is_finished, beat)?);
        }
        Ok(unhandled)
    }

    /// Same as [`unhandled`](Self::unhandled), for partitions of one topic that have a commit below
    /// the end.
    fn with_records(
        &self,
        of_topic: &[(&Partition, i64, Committed)],
        is_finished: &dyn Fn(&Committed, i64) -> bool,
        beat: &Beat,
    ) -> Result<Vec<Unhandled>, String> {
        let mut list = TopicPartitionList::new();
        for (partition, _, committed) in of_topic {
            let from = Offset::Offset(committed.offset);
            list.add_partition_offset(&partition.topic, partition.number, from)
                .map_err(|error| self.failed(&error))?;
        }
        let consumer = self.consumer.get();
        consumer
            .assign(&list)
            .map_err(|error| self.failed(&error))?;
        let mut open: BTreeMap<i32, &(&Partition, i64, Committed)> =
            of_topic.iter().map(|one| (one.0.number, one)).collect();
        let (mut found, until) = (Vec::new(), Instant::now() + ASK_TIMEOUT);
        while !open.is_empty() {
            beat.touch();
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => {
                    let Some((partition, end, committed)) = open.get(&record.partition()) else {
                        continue;
                    };
                    if record.offset() >= *end {
                        open.remove(&record.partition());
                    } else if !is_finished(committed, record.offset()) {
                        let (partition, committed) = ((*partition).clone(), committed.offset);
                        found.push(Unhandled {
                            partition,
                            committed,
                            offset: record.offset(),
                        });
                        open.remove(&record.partition());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                Some(Err(error)) if Instant::now() > until => return Err(self.failed(&error)),
                None if Instant::now() > until => {
                    return Err(format!(
                        "group {}: no record within {ASK_TIMEOUT:?}",
                        self.group
                    ));
                }
                Some(Err(_)) | None => {}
            }
        }
        consumer.unassign().map_err(|error| self.failed(&error))?;
        Ok(found)
    }

    fn watermarks(&self, partition: &Partition) -> Result<(i64, i64), String> {
        self.consumer
            .get()
            .fetch_watermarks(&partition.topic, partition.number, ASK_TIMEOUT)
            .map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &KafkaError) -> String {
        format!("the progress of group {}: {error}", self.group)
    }
}
