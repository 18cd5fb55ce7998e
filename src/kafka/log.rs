//! Reader of a single-partition topic to its end.

use std::time::{Duration, Instant};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    Beat, OVERDUE, Settings, TopicError, drop_on_thread::Dropped, silent_context::Quiet, watched,
};

/// Maximum time to wait for the next record. Longer than a leader election.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The records to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    /// Committed records from the beginning, up to the first record of an open transaction.
    Committed,
    /// Records from this offset on, including those of open transactions.
    Uncommitted(i64),
}

/// Passes the offset and value of each record to `read`. Returns `state` and the offset before
/// which all records were read.
///
/// # Errors
///
/// Returns [`TopicError`] if the topic may not be read, or the cluster or the client does not
/// respond.
///
/// # Cancel safety
///
/// Dropping the future abandons a thread, which continues to read to the end.
pub(crate) async fn read_to_the_end<S: Send + 'static>(
    settings: &Settings,
    topic: &str,
    extent: Extent,
    mut state: S,
    mut read: impl FnMut(&mut S, i64, &[u8]) + Send + 'static,
) -> Result<(S, i64), TopicError> {
    let (settings, topic) = (settings.clone(), topic.to_owned());
    watched("consumer_poll", SILENCE_MAX + OVERDUE, move |beat| {
        read_all(&settings, &topic, extent, beat, |offset, value| {
            read(&mut state, offset, value)
        })
        .map(|end| (state, end))
    })
    .await?
}

/// Same as [`read_to_the_end`], blocking.
fn read_all(
    settings: &Settings,
    topic: &str,
    extent: Extent,
    beat: &Beat,
    mut read: impl FnMut(i64, &[u8]),
) -> Result<i64, TopicError> {
    let (isolation, from) = match extent {
        Extent::Committed => ("read_committed", Offset::Beginning),
        Extent::Uncommitted(from) => ("read_uncommitted", Offset::Offset(from)),
    };
    let failed = |error: KafkaError| match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => TopicError::Denied {
            topic: topic.to_owned(),
            reason: error.to_string(),
        },
        _ => TopicError::Unreachable(format!("reading `{topic}`: {error}")),
    };
    let mut config = settings.client_config();
    config
        // rdkafka requires a group id. The group is not joined.
        .set("group.id", "tidings-position")
        .set("enable.auto.commit", "false")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .set("allow.auto.create.topics", "false")
        .set("fetch.wait.max.ms", "10");
    let owned: Dropped<BaseConsumer<Quiet>> =
        Dropped::new(config.create_with_context(Quiet).map_err(failed)?);
    let consumer = owned.get();
    let mut partitions = TopicPartitionList::new();
    partitions
        .add_partition_offset(topic, 0, from)
        .and_then(|()| consumer.assign(&partitions))
        .map_err(failed)?;
    // The end depends on the isolation level: before the first record of an open transaction, or
    // after the last record.
    let (_, end) = consumer
        .fetch_watermarks(topic, 0, SILENCE_MAX)
        .map_err(failed)?;
    let mut heard = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                heard = Instant::now();
                beat.touch();
                read(record.offset(), record.payload().unwrap_or_default());
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break Ok(end),
            // librdkafka reports this error once and then stays silent.
            Some(Err(error))
                if error.rdkafka_error_code()
                    == Some(RDKafkaErrorCode::TopicAuthorizationFailed) =>
            {
                break Err(failed(error));
            }
            Some(Err(error)) if heard.elapsed() > SILENCE_MAX => break Err(failed(error)),
            None if heard.elapsed() > SILENCE_MAX => {
                break Err(failed(KafkaError::NoMessageReceived));
            }
            Some(Err(_)) | None => {}
        }
    }
}
