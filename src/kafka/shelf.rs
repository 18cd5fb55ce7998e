//! Reader of a whole topic. The commits of a group without members record which of its records are
//! finished.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::KafkaError,
};

use super::{
    Beat, Settings,
    consumer::{ASK_TIMEOUT, Committed, Partition, partitions_of},
    drop_on_thread::Dropped,
    feed::incoming,
    group_reader::be_outsider,
    incoming::{Buffers, Incoming},
    silent_context::Quiet,
};

/// Maximum time to wait for the next record before the topic is treated as unreadable.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A topic that is read from the committed offsets to its end. All functions block; call them
/// through [`watched`](super::watched).
pub(crate) struct Shelf {
    consumer: Dropped<BaseConsumer<Quiet>>,
    topic: Arc<str>,
    partitions: Vec<Partition>,
}

impl Shelf {
    /// Creates a reader of the topic.
    ///
    /// # Errors
    ///
    /// Returns the cluster's error, or an error if the topic does not exist.
    pub(crate) fn open(settings: &Settings, group: &str, topic: &str) -> Result<Self, String> {
        let mut config = settings.client_config_over(&[("fetch.wait.max.ms", "50")]);
        be_outsider(&mut config, group);
        let consumer: BaseConsumer<Quiet> = config
            .create_with_context(Quiet)
            .map_err(|error: KafkaError| error.to_string())?;
        let partitions = partitions_of(&consumer, topic)?;
        if partitions.is_empty() {
            return Err(format!("topic `{topic}` does not exist"));
        }
        Ok(Self {
            consumer: Dropped::new(consumer),
            topic: topic.into(),
            partitions,
        })
    }

    /// Returns the committed offsets.
    ///
    /// # Errors
    ///
    /// Returns the cluster's error.
    pub(crate) fn committed(&self) -> Result<Vec<Committed>, String> {
        let list = self
            .consumer
            .get()
            .committed_offsets(self.list(|_| Offset::Invalid), ASK_TIMEOUT)
            .map_err(|error| error.to_string())?;
        let committed = list.elements().into_iter().filter_map(|element| {
            let offset = element.offset().to_raw().filter(|offset| *offset >= 0)?;
            let partition = Partition {
                topic: self.topic.clone(),
                number: element.partition(),
            };
            Some(Committed {
                partition,
                offset,
                metadata: element.metadata().to_owned(),
            })
        });
        Ok(committed.collect())
    }

    /// Reads all records from the committed offsets to the end, one partition after another.
    ///
    /// # Errors
    ///
    /// Returns the cluster's error, or an error if no record arrives within [`READ_TIMEOUT`].
    pub(crate) fn read(
        &self,
        committed: &[Committed],
        beat: &Beat,
        mut each: impl FnMut(Incoming),
    ) -> Result<(), String> {
        for partition in &self.partitions {
            beat.touch();
            let from = committed
                .iter()
                .find(|committed| committed.partition == *partition);
            let mut only = TopicPartitionList::new();
            let offset = from.map_or(Offset::Beginning, |committed| {
                Offset::Offset(committed.offset)
            });
            only.add_partition_offset(&partition.topic, partition.number, offset)
                .map_err(|error| error.to_string())?;
            self.consumer
                .get()
                .assign(&only)
                .map_err(|error| error.to_string())?;
            loop {
                match self.consumer.get().poll(READ_TIMEOUT) {
                    Some(Ok(message)) => {
                        beat.touch();
                        each(incoming(Buffers::default(), self.topic.clone(), &message));
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => break,
                    Some(Err(error)) => return Err(error.to_string()),
                    None => {
                        return Err(format!("topic `{}` cannot be read to its end", self.topic));
                    }
                }
            }
        }
        Ok(())
    }

    /// Commits offsets and waits for the coordinator's response.
    ///
    /// # Errors
    ///
    /// Returns the coordinator's error.
    pub(crate) fn commit(&self, commits: &[Committed]) -> Result<(), String> {
        if commits.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for commit in commits {
            let mut element = list.add_partition(&commit.partition.topic, commit.partition.number);
            element
                .set_offset(Offset::Offset(commit.offset))
                .map_err(|error| error.to_string())?;
            element.set_metadata(&commit.metadata);
        }
        self.consumer
            .get()
            .commit(&list, CommitMode::Sync)
            .map_err(|error| error.to_string())
    }

    fn list(&self, offset: impl Fn(&Partition) -> Offset) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in &self.partitions {
            list.add_partition_offset(&partition.topic, partition.number, offset(partition))
                .expect("a partition that Kafka named");
        }
        list
    }
}
