//! Reader of many partitions without an end.

use std::ops::ControlFlow;

use rdkafka::{Message as _, Offset, consumer::Consumer as _};

use super::{bounded::POLL, parts::reader, topic_reader::Isolation};
use crate::kafka::{
    Beat, ConsumerError, Incoming, Partition, Settings, TopicError, consumer::is_denied,
    feed::incoming, incoming::Buffers, offsets,
};

/// Passes every committed record of the partitions to `each`, from the given offsets on, until it
/// breaks. Blocks, and reports progress at least every [`POLL`].
///
/// # Errors
///
/// Returns [`TopicError`] if the topics may not be read.
pub(crate) fn follow(
    settings: &Settings,
    from: &[(Partition, i64)],
    beat: &Beat,
    mut each: impl FnMut(Option<Incoming>) -> ControlFlow<()>,
) -> Result<(), TopicError> {
    let reader = reader(settings, Isolation::Committed)?;
    let consumer = reader.consumer();
    let list = offsets::list(from.iter().map(|(one, at)| (one, Offset::Offset(*at))));
    consumer.assign(&list).map_err(ConsumerError::from)?;
    loop {
        beat.touch();
        let record = match consumer.poll(POLL) {
            Some(Ok(message)) => {
                let topic = message.topic().into();
                Some(incoming(Buffers::default(), topic, &message))
            }
            Some(Err(error)) if is_denied(&error) => {
                let topic = String::new();
                return Err(ConsumerError::Reading { topic, error }.into());
            }
            // librdkafka reconnects by itself.
            Some(Err(_)) | None => None,
        };
        if each(record).is_break() {
            return Ok(());
        }
    }
}
