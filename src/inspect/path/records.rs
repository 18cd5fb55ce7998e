//! Records of an event in Kafka: in its topic, in retry topics and among the dead letters.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::DateTime;

use super::{Step, StepKind};
use crate::kafka::{
    ConsumerError, Incoming, Message, RecordSearch, SearchEnd, Settings, TopicError, partition_of,
    partitions_of, search_records, topic_names,
};
use crate::subscriber::failure::redrive::DeadLetter;

/// Limits of the search in one topic. A record is near the time of its event, so a search usually
/// ends early.
pub(super) const RECORDS_MAX: u64 = 200_000;
pub(super) const TIME_MAX: Duration = Duration::from_secs(20);

/// Difference between the clock of a publisher and a record's timestamp.
const CLOCK_SKEW_MILLIS: i64 = 60_000;

/// A search for the records of one event.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: String,
    /// The key of its records. If `None`, all partitions are searched.
    pub(super) key: Option<String>,
    /// Time of the event in milliseconds since the Unix epoch.
    pub(super) since: i64,
    /// The topics in which it may be.
    pub(super) topics: Vec<String>,
}

/// Records of an event.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) steps: Vec<Step>,
    /// The source attribute of the first record.
    pub(super) source: Option<String>,
    /// Parts of topics that were not read, each with the reason.
    pub(super) unread: Vec<String>,
}

/// Error of reading one topic.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
}

/// Searches the topics of an event, and the retry topics and dead letters that belong to them.
/// After `time_max`, the remaining topics are listed as unread.
pub(super) async fn find(settings: &Settings, wanted: &Wanted, time_max: Duration) -> Records {
    let deadline = Instant::now() + time_max;
    let mut records = Records::default();
    let names = match topic_names(settings).await {
        Ok(names) => names,
        Err(error) => {
            records.unread.push(format!("Kafka: {error}"));
            return records;
        }
    };
    for topic in &wanted.topics {
        let mut related: Vec<&String> = names.iter().filter(|name| belongs(name, topic)).collect();
        related.sort_by_key(|name| (name.len(), *name));
        for name in related {
            // An event is in its own topic once. A retry topic may contain several attempts.
            let only_first = name == topic;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                records.unread.push(format!(
                    "topic {name}: the topics before it took {} s",
                    time_max.as_secs()
                ));
                continue;
            }
            let limit = left.min(TIME_MAX);
            match find_in(settings, wanted, name, only_first, limit).await {
                Ok((found, end)) => {
                    if end == SearchEnd::Limit {
                        records.unread.push(format!(
                            "topic {name}: more than {RECORDS_MAX} records in a partition, or \
                             longer than {} s",
                            limit.as_secs()
                        ));
                    }
                    for record in found {
                        records.add(record, topic);
                    }
                }
                Err(reason) => records.unread.push(format!("topic {name}: {reason}")),
            }
        }
    }
    records
}

async fn find_in(
    settings: &Settings,
    wanted: &Wanted,
    topic: &str,
    only_first: bool,
    time_max: Duration,
) -> Result<(Vec<Incoming>, SearchEnd), ReadError> {
    let partition = match &wanted.key {
        Some(key) => {
            let partitions = partitions_of(settings, topic).await?;
            Some(partition_of(key.as_bytes(), partitions))
        }
        None => None,
    };
    let found = Arc::new(Mutex::new(Vec::new()));
    let (id, sink) = (wanted.id.clone(), found.clone());
    let search = |partition| RecordSearch {
        topic: topic.to_owned(),
        partition,
        since: wanted.since - CLOCK_SKEW_MILLIS,
        records_max: RECORDS_MAX,
        time_max,
    };
    let end = search_records(settings, search(partition), move |record| {
        if !has_id(&record, &id) {
            return ControlFlow::Continue(());
        }
        sink.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(record);
        match only_first {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
    .await?;
    let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((found, end))
}

/// Returns `true` for the topic itself and for the topics that subscribers derive from it.
fn belongs(name: &str, topic: &str) -> bool {
    let Some(rest) = name.strip_prefix(topic) else {
        return false;
    };
    rest.is_empty()
        || rest.starts_with('.')
            && (rest.ends_with(".dlt") || rest.ends_with(".redrive") || rest.contains(".retry."))
}

fn has_id(record: &Incoming, id: &str) -> bool {
    let plain = record.header("ce_id").or_else(|| record.header("id"));
    match plain {
        Some(found) => found == id.as_bytes(),
        None => Message::read(record.clone(), None).is_ok_and(|message| message.id() == id),
    }
}

impl Records {
    fn add(&mut self, record: Incoming, topic: &str) {
        let at = DateTime::from_timestamp_millis(record.timestamp);
        let (name, partition, offset) = (record.topic.to_string(), record.partition, record.offset);
        if self.source.is_none() {
            self.source = Message::read(record.clone(), None)
                .ok()
                .map(|message| message.source_from(topic).into_owned());
        }
        let kind = if name.ends_with(".dlt") {
            let letter = DeadLetter::of(record);
            StepKind::DeadLetter {
                topic: name,
                partition,
                offset,
                reason: letter.reason,
                attempts: letter.attempts,
            }
        } else {
            StepKind::Record {
                topic: name,
                partition,
                offset,
            }
        };
        self.steps.push(Step {
            at,
            database: None,
            kind,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_subscribers_belong_to_the_topic_that_they_are_derived_from() {
        for (name, is_related) in [
            ("order", true),
            ("order.stock.dlt", true),
            ("order.stock.retry.30s", true),
            ("order.stock.redrive", true),
            ("orders", false),
            ("order.archive", false),
            ("payment.stock.dlt", false),
        ] {
            assert_eq!(belongs(name, "order"), is_related, "{name}");
        }
    }
}
