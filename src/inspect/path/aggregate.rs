//! Records of one aggregate in Kafka. They remain after retention has deleted the rows.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::records::{RECORDS_MAX, ReadError, TIME_MAX};
use super::{Cluster, NamedDatabase, database};
use crate::inspect::InspectError;
use crate::kafka::{
    Incoming, Message, RecordSearch, SearchEnd, Settings, partition_of, partitions_of,
    search_records,
};

/// A record of an aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AggregateRecord {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// `None` if the record has no valid timestamp.
    pub(crate) at: Option<DateTime<Utc>>,
    /// `None` if the record is not an event.
    pub(crate) id: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) is_tombstone: bool,
}

/// Records of an aggregate.
#[derive(Clone, Debug, Default)]
pub(crate) struct AggregateRecords {
    pub(crate) newest_first: Vec<AggregateRecord>,
    /// There are older records than the ones that are returned.
    pub(crate) has_more: bool,
    /// Parts of topics that were not read, each with the reason.
    pub(crate) unread: Vec<String>,
}

/// Searches the topics of the relays for records whose key is the id of an aggregate, in the
/// partition of this key. The topic with the name of the aggregate's type is searched alone if it
/// exists. Returns up to `limit` records since a time.
///
/// # Errors
///
/// Returns an error if the database cannot be read. A topic that cannot be read is listed.
pub(crate) async fn aggregate_records(
    place: &NamedDatabase,
    cluster: &Cluster,
    (kind, id): (&str, &str),
    since: DateTime<Utc>,
    limit: usize,
) -> Result<AggregateRecords, InspectError> {
    let mut found = AggregateRecords::default();
    let (settings, time_max) = match cluster {
        Cluster::Searched { settings, time_max } => (settings, *time_max),
        Cluster::Unread(reason) => {
            found.unread.push(format!("Kafka: {reason}"));
            return Ok(found);
        }
    };
    let mut topics = database::topics(&place.database).await?;
    if topics.iter().any(|topic| topic == kind) {
        topics.retain(|topic| topic == kind);
    }
    let deadline = Instant::now() + time_max;
    for topic in topics {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let seconds = time_max.as_secs();
            let text = format!("topic {topic}: the topics before it took {seconds} s");
            found.unread.push(text);
            continue;
        }
        let limits = (limit, left.min(TIME_MAX));
        match newest_in(settings, &topic, id, since, limits).await {
            Ok((records, end)) => {
                if end == SearchEnd::Limit {
                    found.unread.push(format!(
                        "topic {topic}: the newest records, because the time span has more than \
                         {RECORDS_MAX} or takes longer than {} s; choose a shorter one",
                        limits.1.as_secs()
                    ));
                }
                found.has_more |= records.len() > limit;
                found
                    .newest_first
                    .extend(records.iter().rev().map(AggregateRecord::of));
            }
            Err(error) => found.unread.push(format!("topic {topic}: {error}")),
        }
    }
    found
        .newest_first
        .sort_by_key(|record| std::cmp::Reverse(record.at));
    found.has_more |= found.newest_first.len() > limit;
    found.newest_first.truncate(limit);
    Ok(found)
}

/// Returns the newest records with a key, in the order of their offsets: one more than the limit if
/// there are older ones.
async fn newest_in(
    settings: &Settings,
    topic: &str,
    key: &str,
    since: DateTime<Utc>,
    (limit, time_max): (usize, Duration),
) -> Result<(Vec<Incoming>, SearchEnd), ReadError> {
    let partitions = partitions_of(settings, topic).await?;
    let search = RecordSearch {
        topic: topic.to_owned(),
        partition: Some(partition_of(key.as_bytes(), partitions)),
        since: since.timestamp_millis(),
        records_max: RECORDS_MAX,
        time_max,
    };
    let found = Arc::new(Mutex::new(VecDeque::new()));
    let (sink, key) = (found.clone(), key.as_bytes().to_vec());
    let end = search_records(settings, search, move |record| {
        if record.key() == Some(key.as_slice()) {
            let mut found = sink.lock().unwrap_or_else(PoisonError::into_inner);
            found.push_back(record);
            if found.len() > limit + 1 {
                found.pop_front();
            }
        }
        ControlFlow::Continue(())
    })
    .await?;
    let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((found.into(), end))
}

impl AggregateRecord {
    fn of(record: &Incoming) -> Self {
        let message = Message::read(record.clone(), None).ok();
        Self {
            topic: record.topic.to_string(),
            partition: record.partition,
            offset: record.offset,
            at: DateTime::from_timestamp_millis(record.timestamp),
            id: message.as_ref().map(|message| message.id().into_owned()),
            event_type: message.map(|message| message.event_type().to_owned()),
            is_tombstone: record.value().is_none(),
        }
    }
}
