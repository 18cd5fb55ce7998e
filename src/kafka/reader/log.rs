//! Reader of a single-partition topic to its end.

use rdkafka::Message as _;

use super::{
    bounded::Part,
    topic_reader::{Isolation, SILENCE_MAX, TopicReader},
};
use crate::kafka::{ASK_LIMIT, ConsumerError, Partition, Settings, TopicError, watched};

/// Group id of the client, which never joins the group.
const GROUP: &str = "tidings-position";

/// Passes the offset and value of each record to `each`, from `from` to the end that the isolation
/// selects. Returns `state` and the offset before which all records were read.
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
    (end, from): (Isolation, i64),
    mut state: S,
    mut each: impl FnMut(&mut S, i64, &[u8]) + Send + 'static,
) -> Result<(S, i64), TopicError> {
    let mut config = settings.client_config();
    config.set("fetch.wait.max.ms", "10");
    let partition = Partition {
        topic: topic.into(),
        number: 0,
    };
    let read = watched("consumer_poll", ASK_LIMIT, move |beat| {
        let reader = TopicReader::open(config, GROUP, end, SILENCE_MAX)?;
        let extent = reader.extent(&partition, beat)?;
        let part = Part {
            partition,
            from: from.max(extent.low),
            to: extent.high,
        };
        let mut records = reader.read([part]);
        while let Some(record) = records.next(beat)? {
            let value = record.payload().unwrap_or_default();
            each(&mut state, record.offset(), value);
        }
        Ok::<_, ConsumerError>((state, extent.high))
    });
    Ok(read.await??)
}
