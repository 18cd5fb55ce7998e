//! Which consumer groups have not read a topic to its end.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
};

use super::{
    Beat, OVERDUE, Settings, TopicError, dropped::Dropped, group_reader::be_outsider, quiet::Quiet,
    watched,
};

/// How long the cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A group that has committed offsets on the topic, and has not consumed it as far as was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) group: String,
    pub(crate) partitions: Vec<i32>,
}

/// How far a group must have read not to be behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// All committed records.
    ToTheEnd,
    /// All but about so many of each partition.
    NearlyToTheEnd(i64),
}

/// The groups, other than `except`, that are behind.
///
/// The marks that end transactions take offsets too, so an offset below the end does not say that there is something to read: it is read.
///
/// # Errors
/// When the cluster does not answer, or does not let us ask; when the client hangs.
pub(crate) async fn groups_behind(
    settings: &Settings,
    topic: &str,
    partitions: i32,
    except: &[String],
    read: Read,
) -> Result<Vec<Behind>, TopicError> {
    let (settings, topic, except) = (settings.clone(), topic.to_owned(), except.to_vec());
    // The end of one partition after the other is asked for.
    let limit = TIMEOUT * u32::try_from(partitions).unwrap_or(1).saturating_add(2) + OVERDUE;
    watched("fetch_group_list", limit, move |beat| {
        ask(&settings, &topic, partitions, &except, read, beat)
    })
    .await?
}

/// The same, blocking.
fn ask(
    settings: &Settings,
    topic: &str,
    partitions: i32,
    except: &[String],
    read: Read,
    beat: &Beat,
) -> Result<Vec<Behind>, TopicError> {
    let failed =
        |error: KafkaError| TopicError::Unreachable(format!("asking for consumer groups: {error}"));
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

/// A consumer under the group's name that never joins it.
fn consumer(settings: &Settings, group: &str) -> Result<Dropped<BaseConsumer<Quiet>>, KafkaError> {
    let mut config = settings.client_config();
    be_outsider(&mut config, group).set("fetch.wait.max.ms", "10");
    config.create_with_context(Quiet).map(Dropped::new)
}

/// Where the group goes on, by partition; none if it never committed anything on the topic. Where it committed nothing it has read nothing.
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

/// The partitions that end more than so many offsets after there.
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

/// The partitions that hold a committed record from there on.
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
