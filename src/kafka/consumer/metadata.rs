//! Partitions of a topic, as the brokers report them.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::RDKafkaErrorCode,
    types::RDKafkaRespErr,
};

use super::{ASK_TIMEOUT, Partition};

/// Same as [`Member::partitions_of`], for any consumer.
pub(in crate::kafka) fn partitions_of<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
) -> Result<Vec<Partition>, String> {
    partitions_within(consumer, topic, ASK_TIMEOUT)
}

/// Returns the partitions of a topic, or an empty list if the topic does not exist. Blocks for up
/// to `within`.
pub(in crate::kafka) fn partitions_within<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    within: Duration,
) -> Result<Vec<Partition>, String> {
    let metadata = consumer
        .fetch_metadata(Some(topic), within)
        .map_err(|error| error.to_string())?;
    let told = metadata
        .topics()
        .first()
        .ok_or_else(|| format!("no broker returned metadata of topic {topic}"))?;
    match told.error() {
        None => {}
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => return Ok(Vec::new()),
        Some(error) => return Err(format!("topic {topic}: {}", RDKafkaErrorCode::from(error))),
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
