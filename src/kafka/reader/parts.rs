//! Reader of given parts of many topics, without a group.

use std::time::{Duration, Instant};

use rdkafka::Offset;

use super::{
    bounded::Part,
    topic_reader::{Isolation, SILENCE_MAX, TopicReader},
};
use crate::kafka::{
    ASK_LIMIT, Beat, ConsumerError, Incoming, Partition, PartitionExtent, Settings, TopicError,
    incoming::Buffers, watched,
};

/// Group id of the client, which never joins the group.
const GROUP: &str = "tidings-reader";

/// Interval of queries while a transaction is open.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The end of a part that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartEnd {
    pub(crate) partition: Partition,
    /// All committed records before this offset were read.
    pub(crate) offset: i64,
    /// A transaction has not ended in time, so the part was not read completely.
    pub(crate) is_hidden: bool,
}

/// Returns the offsets of every partition of the topics that exist.
///
/// # Errors
///
/// Returns [`TopicError`] if the cluster does not respond or refuses the request.
pub(crate) async fn extents(
    settings: &Settings,
    topics: Vec<String>,
    end: Isolation,
) -> Result<Vec<PartitionExtent>, TopicError> {
    let settings = settings.clone();
    let asked = watched("fetch_watermarks", ASK_LIMIT, move |beat| {
        reader(&settings, end)?.extents(&topics, beat)
    });
    Ok(asked.await??)
}

/// Returns for each partition the offset of the first record with this timestamp or a later one, or
/// its end.
///
/// # Errors
///
/// Returns [`TopicError`] if the cluster does not respond.
pub(crate) async fn offsets_at(
    settings: &Settings,
    extents: Vec<PartitionExtent>,
    millis: i64,
) -> Result<Vec<i64>, TopicError> {
    let settings = settings.clone();
    let asked = watched("offsets_for_times", ASK_LIMIT, move |beat| {
        let partitions: Vec<Partition> = extents.iter().map(|one| one.partition.clone()).collect();
        let reader = reader(&settings, Isolation::Uncommitted)?;
        let found = reader.offsets_at(&partitions, Offset::Offset(millis.max(0)), beat)?;
        let offset =
            |(found, extent): (Option<i64>, &PartitionExtent)| found.unwrap_or(extent.high);
        Ok::<_, ConsumerError>(found.into_iter().zip(&extents).map(offset).collect())
    });
    Ok(asked.await??)
}

/// Passes every committed record of the parts to `each`, which returns the memory of the record for
/// the next one. Records that were committed before the first one is read may be included. Waits
/// for up to `patience` for the end of open transactions.
///
/// # Errors
///
/// Returns [`TopicError`] if the topics may not be read, or the cluster or the client does not
/// respond.
///
/// # Cancel safety
///
/// Dropping the future abandons a thread, which continues to read to the end.
pub(crate) async fn read_parts<S: Send + 'static>(
    settings: &Settings,
    parts: Vec<Part>,
    patience: Duration,
    mut state: S,
    mut each: impl FnMut(&mut S, Incoming) -> Buffers + Send + 'static,
) -> Result<(S, Vec<PartEnd>), TopicError> {
    let settings = settings.clone();
    let read = watched("consumer_poll", ASK_LIMIT, move |beat| {
        let reader = reader(&settings, Isolation::Committed)?;
        let ends = wait_for_transactions(&reader, &parts, patience, beat)?;
        // A part that is hidden may still contain committed records before the transaction.
        let visible = parts.into_iter().zip(&ends).filter_map(|(part, end)| {
            let to = end.offset;
            (part.from < to).then_some(Part { to, ..part })
        });
        let (mut records, mut buffers) = (reader.read(visible), Buffers::default());
        while let Some(record) = records.next(beat)? {
            let record = records.incoming(std::mem::take(&mut buffers), &record);
            buffers = each(&mut state, record);
        }
        Ok::<_, ConsumerError>((state, ends))
    });
    Ok(read.await??)
}

/// Creates a reader without a group.
pub(super) fn reader(settings: &Settings, end: Isolation) -> Result<TopicReader, ConsumerError> {
    let config = settings.client_config_over(&[
        ("fetch.wait.max.ms", "50"),
        // These bound the memory of the client. A fetched batch is decompressed as a whole.
        ("queued.max.messages.kbytes", "2048"),
        ("fetch.max.bytes", "1000000"),
        ("max.partition.fetch.bytes", "131072"),
    ]);
    TopicReader::open(config, GROUP, end, SILENCE_MAX)
}

/// Waits until every transaction that was open before the end of a part has ended.
fn wait_for_transactions(
    reader: &TopicReader,
    parts: &[Part],
    patience: Duration,
    beat: &Beat,
) -> Result<Vec<PartEnd>, ConsumerError> {
    let began = Instant::now();
    let mut ends = Vec::with_capacity(parts.len());
    for part in parts {
        let end = loop {
            // Without records, the partition need not be queried.
            let stable = match part.from < part.to {
                true => reader.extent(&part.partition, beat)?.high,
                false => part.to,
            };
            if stable >= part.to || began.elapsed() > patience {
                break PartEnd {
                    partition: part.partition.clone(),
                    offset: stable,
                    is_hidden: stable < part.to,
                };
            }
            #[expect(clippy::disallowed_methods, reason = "called on a thread of its own")]
            std::thread::sleep(LOOK_AGAIN);
        };
        ends.push(end);
    }
    Ok(ends)
}
