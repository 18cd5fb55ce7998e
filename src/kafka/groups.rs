//! Consumer groups that have not read a topic to its end.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
};

use super::{
    Beat, OVERDUE, Settings, TopicError, drop_on_thread::Dropped, group_reader::be_outsider,
    silent_context::Quiet, watched,
};

/// Timeout of a request to the cluster.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A group that has committed offsets on the topic but has not read as far as required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) group: String,
    pub(crate) partitions: Vec<i32>,
}

/// The position that a group must have reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// After the last committed record.
    ToTheEnd,
    /// At most this number of offsets before the end of each partition.
    NearlyToTheEnd(i64),
}

/// Returns the groups, other than `except`, that are behind.
///
/// Transaction markers occupy offsets too. An offset below the end therefore does not prove that a
/// record follows, so the partition is read.
///
/// # Errors
///
/// Returns [`TopicError`] if the cluster does not respond or denies the request, or the client
/// hangs.
pub(crate) async fn groups_behind(
    settings: &Settings,
    topic: &str,
    partitions: i32,
    except: &[String],
    read: Read,
) -> Result<Vec<Behind>, TopicError> {
    let (settings, topic, except) = (settings.clone(), topic.to_owned(), except.to_vec());
    // The ends of the partitions are requested one after another.
    let limit = TIMEOUT * u32::try_from(partitions).unwrap_or(1).saturating_add(2) + OVERDUE;
    watched("fetch_group_list", limit, move |beat| {
        ask(&settings, &topic, partitions, &except, read, beat)
    })
    .await?
}

/// Same as [`groups_behind`], blocking.
fn ask(
    settings: &Settings,
    topic: &str,
    partitions: i32,
    except: &[String],
    read: Read,
    beat: &Beat,
) -> Result<Vec<Behind>, TopicError> {
    let failed =
        |error: KafkaError| TopicError::Unreachable(format!("querying consumer groups: {error}"));
    let asking = consumer(settings, "tidings-topics").map_err(failed)?;
    let groups = asking
        .get()
        .fetch_group_list(None, TIMEOUT)
        .map_err(failed)?;
    let names = groups.groups().iter().map(|group| group.name().to_owned());
    let names: Vec<String> = names
        .filter(|name| !name.is_empty() && !except.contains(name))
        .collect();
    let mut behind = Vec::new();
    for group in names {
        beat.touch();
        let consumer = consumer(settings, &group).map_err(failed)?;
        let Some(committed) = committed(consumer.get(), topic, partitions).map_err(failed)? else {
            continue;
        };
        let left = match read {
            Read::ToTheEnd => not_consumed(consumer.get(), &committed),
            Read::NearlyToTheEnd(offsets) => far_from_the_end(consumer.get(), &committed, offsets),
        };
        let left = left.map_err(failed)?;
        if !left.is_empty() {
            behind.push(Behind {
                group,
                partitions: left,
            });
        }
    }
    Ok(behind)
}

/// Creates a consumer that uses the group's id but never joins the group.
fn consumer(settings: &Settings, group: &str) -> Result<Dropped<BaseConsumer<Quiet>>, KafkaError> {
    let mut config = settings.client_config();
    be_outsider(&mut config, group).set("fetch.wait.max.ms", "10");
    config.create_with_context(Quiet).map(Dropped::new)
}

/// Returns the offsets where the group would continue, or `None` if it has never committed any on
/// the topic. Partitions without a commit start at the beginning.
fn committed(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partitions: i32,
) -> Result<Option<TopicPartitionList>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(topic, partition);
    }
    let committed = consumer.committed_offsets(list, TIMEOUT)?;
    let elements = committed.elements();
    if !elements
        .iter()
        .any(|element| matches!(element.offset(), Offset::Offset(_)))
    {
        return Ok(None);
    }
    let mut list = TopicPartitionList::new();
    for element in elements {
        let from = match element.offset() {
            from @ Offset::Offset(_) => from,
            _ => Offset::Beginning,
        };
        list.add_partition_offset(topic, element.partition(), from)?;
    }
    Ok(Some(list))
}

/// Returns the partitions that end more than `offsets` offsets after the position in `from`.
fn far_from_the_end(
    consumer: &BaseConsumer<Quiet>,
    from: &TopicPartitionList,
    offsets: i64,
) -> Result<Vec<i32>, KafkaError> {
    let mut far = Vec::new();
    for element in from.elements() {
        let (first, end) =
            consumer.fetch_watermarks(element.topic(), element.partition(), TIMEOUT)?;
        let at = match element.offset() {
            Offset::Offset(at) => at.max(first),
            _ => first,
        };
        if end - at > offsets {
            far.push(element.partition());
        }
    }
    Ok(far)
}

/// Returns the partitions with a committed record at or after the position in `from`.
fn not_consumed(
    consumer: &BaseConsumer<Quiet>,
    from: &TopicPartitionList,
) -> Result<Vec<i32>, KafkaError> {
    consumer.assign(from)?;
    let (mut ended, mut left) = (Vec::new(), Vec::new());
    let until = Instant::now() + TIMEOUT;
    while ended.len() + left.len() < from.count() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                let partition = rdkafka::Message::partition(&record);
                if !left.contains(&partition) {
                    left.push(partition);
                    ended.retain(|one| *one != partition);
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition)))
                if !left.contains(&partition) && !ended.contains(&partition) =>
            {
                ended.push(partition)
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None if Instant::now() < until => {}
            Some(Err(error)) if Instant::now() > until => return Err(error),
            Some(Err(_)) => {}
            None => return Err(KafkaError::NoMessageReceived),
        }
    }
    left.sort_unstable();
    Ok(left)
}
