//! Reader of dead letters that keeps none of them, for lists of any number of topics.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::redrive::{DeadLetter, GROUP};
use crate::kafka::{ASK_LIMIT, ConsumerError, Settings, TopicReader, watched};
use crate::subscriber::offsets::metadata::OffsetMetadata;

/// Passes each letter of a topic that is neither replayed nor discarded to `each`, until it breaks.
/// Keeps no letter. Returns `state`.
///
/// # Errors
///
/// Returns the cluster's error, or an error if the client hangs.
///
/// # Cancel safety
///
/// If the future is dropped, its thread continues until `each` breaks.
pub(crate) async fn each_letter<S: Send + 'static>(
    settings: &Settings,
    topic: &str,
    mut state: S,
    mut each: impl FnMut(&mut S, DeadLetter) -> ControlFlow<()> + Send + 'static,
) -> Result<S, ConsumerError> {
    let (settings, topic) = (settings.clone(), topic.to_owned());
    let read = watched("consumer_poll", ASK_LIMIT, move |beat| {
        let reader = TopicReader::of_topics(&settings, GROUP)?;
        let partitions = reader.partitions_of_existing(&topic, beat)?;
        let committed = reader.commits(&partitions, beat)?;
        let finished: HashMap<i32, OffsetMetadata> = committed
            .iter()
            .map(|one| {
                let finished = OffsetMetadata::decode(&one.metadata, one.offset);
                (one.partition.number, finished.unwrap_or_default())
            })
            .collect();
        reader.read_after(&partitions, &committed, beat, |record| {
            let finished = finished.get(&record.partition);
            match finished.is_some_and(|finished| finished.contains(record.offset)) {
                true => ControlFlow::Continue(()),
                false => each(&mut state, DeadLetter::of(record)),
            }
        })?;
        Ok(state)
    });
    read.await?
}
