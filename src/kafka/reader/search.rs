//! Bounded search of a topic, for tools. It joins no group and commits nothing.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::Offset;

use super::bounded::{Part, Polled};
use super::topic_reader::{Isolation, TopicReader};
use crate::kafka::incoming::{Buffers, Incoming};
use crate::kafka::{ASK_LIMIT, Beat, ConsumerError, Partition, Settings, watched};

/// The group id that librdkafka requires. The group is not joined.
const GROUP: &str = "tidings-inspect";

/// Maximum time to wait for the next record of a partition.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The records of a topic that a search reads.
#[derive(Clone, Debug)]
pub(crate) struct RecordSearch {
    pub(crate) topic: String,
    /// All partitions if `None`.
    pub(crate) partition: Option<i32>,
    /// Milliseconds since the Unix epoch. Records with an earlier timestamp are skipped.
    pub(crate) since: i64,
    /// Maximum number of records that are read from each partition.
    pub(crate) records_max: u64,
    /// Maximum duration of the search.
    pub(crate) time_max: Duration,
}

/// Reason for the end of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SearchEnd {
    /// Every partition was read to its end.
    Complete,
    /// The caller ended it.
    Stopped,
    /// A limit ended it. Later records were not read.
    Limit,
}

/// Passes committed records to `each` until it breaks, the topic ends or a limit is reached. Each
/// partition ends at the offset at which it ends when it is reached. A topic that does not exist is
/// complete.
///
/// # Errors
///
/// Returns the cluster's error if the topic cannot be read.
///
/// # Cancel safety
///
/// Dropping the future abandons a thread, which ends after [`RecordSearch::time_max`].
pub(crate) async fn search_records(
    settings: &Settings,
    search: RecordSearch,
    mut each: impl FnMut(Incoming) -> ControlFlow<()> + Send + 'static,
) -> Result<SearchEnd, ConsumerError> {
    let config = settings.client_config_over(&[("fetch.wait.max.ms", "50")]);
    watched("consumer_poll", ASK_LIMIT, move |beat| {
        let reader = TopicReader::open(config, GROUP, Isolation::Committed, SILENCE_MAX)?;
        search_blocking(&reader, &search, &mut each, beat)
    })
    .await?
}

fn search_blocking(
    reader: &TopicReader,
    search: &RecordSearch,
    each: &mut dyn FnMut(Incoming) -> ControlFlow<()>,
    beat: &Beat,
) -> Result<SearchEnd, ConsumerError> {
    let deadline = Instant::now() + search.time_max;
    let mut partitions = reader.partitions_of(&search.topic, beat)?;
    let is_wanted = |one: &Partition| search.partition.is_none_or(|wanted| one.number == wanted);
    partitions.retain(is_wanted);
    let first = Offset::Offset(search.since.max(0));
    let firsts = reader.offsets_at(&partitions, first, beat)?;
    let mut end = SearchEnd::Complete;
    for (partition, first) in partitions.into_iter().zip(firsts) {
        // Without an offset, no record is as late.
        let Some(from) = first else { continue };
        let to = reader.extent(&partition, beat)?.high;
        let mut records = reader.read([Part {
            partition,
            from,
            to,
        }]);
        let mut count = 0;
        loop {
            if count == search.records_max || Instant::now() >= deadline {
                end = SearchEnd::Limit;
                break;
            }
            match records.poll(beat)? {
                Polled::Record(record) => {
                    count += 1;
                    if each(records.incoming(Buffers::default(), &record)).is_break() {
                        return Ok(SearchEnd::Stopped);
                    }
                }
                Polled::Nothing => {}
                Polled::End => break,
            }
        }
    }
    Ok(end)
}
