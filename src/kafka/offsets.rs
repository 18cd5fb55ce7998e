//! Queries of partitions: the partitions of a topic, their first offsets and ends, and the commits
//! of a group.
//!
//! Each function is one request, which may take up to [`ASK_TIMEOUT`].

use std::{sync::Arc, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use super::{ASK_TIMEOUT, consumer::ConsumerError};

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Partition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
}

/// The offsets of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionExtent {
    pub(crate) partition: Partition,
    /// The first offset that Kafka keeps.
    pub(crate) low: i64,
    /// The end.
    pub(crate) high: i64,
}

/// A committed offset of a partition.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) partition: Partition,
    /// The offset of the next record to handle.
    pub(crate) offset: i64,
    pub(crate) metadata: String,
}

/// The commit of a partition: `None` if the group has never committed an offset, or the
/// coordinator's error.
pub(super) type Commit = Result<Option<Committed>, KafkaError>;

/// Returns the partitions of a topic, or an empty list if the topic does not exist.
pub(super) fn partitions_of<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
) -> Result<Vec<Partition>, ConsumerError> {
    partitions_within(consumer, topic, ASK_TIMEOUT)
}

/// Same as [`partitions_of`], with another timeout.
pub(super) fn partitions_within<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    within: Duration,
) -> Result<Vec<Partition>, ConsumerError> {
    let metadata = consumer.fetch_metadata(Some(topic), within)?;
    let told = metadata
        .topics()
        .first()
        .ok_or_else(|| ConsumerError::NoMetadata(topic.to_owned()))?;
    match told.error() {
        None => {}
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => return Ok(Vec::new()),
        Some(error) => {
            return Err(ConsumerError::Topic {
                topic: topic.to_owned(),
                code: RDKafkaErrorCode::from(error),
            });
        }
    }
    let topic: Arc<str> = topic.into();
    Ok(told
        .partitions()
        .iter()
        .map(|partition| Partition {
            topic: topic.clone(),
            number: partition.id(),
        })
        .collect())
}

/// Returns the first offset and the end of a partition. The end depends on the isolation level of
/// the client: before the first record of an open transaction, or after the last record.
pub(super) fn extent<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partition: &Partition,
) -> Result<PartitionExtent, ConsumerError> {
    let (low, high) = consumer
        .fetch_watermarks(&partition.topic, partition.number, ASK_TIMEOUT)
        .map_err(|error| ConsumerError::Reading {
            topic: partition.topic.to_string(),
            error,
        })?;
    Ok(PartitionExtent {
        partition: partition.clone(),
        low,
        high,
    })
}

/// Returns the commit of the client's group on each partition, in the same order.
pub(super) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[Partition],
) -> Result<Vec<Commit>, ConsumerError> {
    let list = list(partitions.iter().map(|one| (one, Offset::Invalid)));
    let answer = consumer.committed_offsets(list, ASK_TIMEOUT)?;
    let commits = answer.elements().into_iter().zip(partitions);
    let commit = commits.map(|(element, partition)| {
        debug_assert_eq!(element.partition(), partition.number, "fills in the list");
        element.error()?;
        let offset = element.offset().to_raw().filter(|offset| *offset >= 0);
        Ok(offset.map(|offset| Committed {
            partition: partition.clone(),
            offset,
            metadata: element.metadata().to_owned(),
        }))
    });
    Ok(commit.collect())
}

/// Returns for each partition, in the same order, the offset of the first record with this
/// timestamp in milliseconds or a later one. The special offsets of the client are the special
/// timestamps of this request.
#[cfg(feature = "cli")]
pub(super) fn offsets_at<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[Partition],
    at: Offset,
) -> Result<Vec<Option<i64>>, ConsumerError> {
    let list = list(partitions.iter().map(|one| (one, at)));
    let answer = consumer.offsets_for_times(list, ASK_TIMEOUT)?;
    let offsets = answer.elements().into_iter().zip(partitions);
    let offset = offsets.map(|(element, partition)| {
        debug_assert_eq!(element.partition(), partition.number, "fills in the list");
        element.offset().to_raw().filter(|offset| *offset >= 0)
    });
    Ok(offset.collect())
}

/// Returns the client's list of these offsets.
pub(super) fn list<'p>(
    partitions: impl Iterator<Item = (&'p Partition, Offset)>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(&partition.topic, partition.number, offset)
            .expect("a partition that Kafka named, and an offset");
    }
    list
}

/// Returns the client's list of these commits.
pub(super) fn commit_list(commits: &[Committed]) -> TopicPartitionList {
    let offset = |commit: &Committed| Offset::Offset(commit.offset);
    let list = list(commits.iter().map(|one| (&one.partition, offset(one))));
    for (mut element, commit) in list.elements().into_iter().zip(commits) {
        element.set_metadata(&commit.metadata);
    }
    list
}
