//! Reads a topic of one partition to its end.

use std::time::{Duration, Instant};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{Beat, OVERDUE, Settings, TopicError, dropped::Dropped, quiet::Quiet, watched};

/// How long to wait for the next record: longer than a leader election.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Which records are read, and from where.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    /// Committed records from the beginning, up to the first record whose transaction has not ended.
    Committed,
    /// Records from this offset on, whether or not their transaction has ended.
    Uncommitted(i64),
}

/// Gives every record, offset and value, to `read`; what that makes of `state`, and an offset: every record before it was read.
///
/// # Errors
/// When the topic may not be read, or the cluster or its client is silent.
///
/// # Cancel safety
/// Dropping the future abandons a thread, which reads on to the end.
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

/// The same, blocking.
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
        // A group is not joined; rdkafka wants its name.
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
    // As the isolation level sees it: before the first record of a transaction that has not ended, or behind the last record.
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
            // It is told once, and then there is silence.
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
