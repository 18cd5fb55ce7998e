//! Consumer groups that have not read a topic to its end.

use std::sync::Arc;

use rdkafka::consumer::Consumer as _;

use super::{topic_reader::TopicReader, unhandled::Progress};
use crate::kafka::{
    ASK_LIMIT, ASK_TIMEOUT, Beat, ConsumerError, Partition, PartitionExtent, Settings, TopicError,
    watched,
};

/// Group id of the client that lists the groups. It never joins the group.
const GROUP: &str = "tidings-topics";

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
    let (settings, except) = (settings.clone(), except.to_vec());
    let topic: Arc<str> = topic.into();
    let partition = |number| Partition {
        topic: topic.clone(),
        number,
    };
    let partitions: Vec<Partition> = (0..partitions).map(partition).collect();
    let asked = watched("fetch_group_list", ASK_LIMIT, move |beat| {
        ask(&settings, &partitions, &except, read, beat)
    });
    let failed = |error| TopicError::Unreachable(format!("querying consumer groups: {error}"));
    asked.await?.map_err(failed)
}

/// Same as [`groups_behind`], blocking.
fn ask(
    settings: &Settings,
    partitions: &[Partition],
    except: &[String],
    read: Read,
    beat: &Beat,
) -> Result<Vec<Behind>, ConsumerError> {
    let asking = TopicReader::of_first_records(settings, GROUP)?;
    let groups = asking.consumer().fetch_group_list(None, ASK_TIMEOUT)?;
    let names = groups.groups().iter().map(|group| group.name().to_owned());
    let names = names.filter(|name| !name.is_empty() && !except.contains(name));
    let extents = partitions.iter().map(|one| asking.extent(one, beat));
    let extents = extents.collect::<Result<Vec<PartitionExtent>, _>>()?;
    let mut behind = Vec::new();
    for group in names {
        let reader = TopicReader::of_first_records(settings, &group)?;
        let commits = reader.committed(partitions, beat)?.into_iter();
        let commits: Vec<_> = commits.map(|commit| commit.ok().flatten()).collect();
        if commits.iter().all(Option::is_none) {
            continue;
        }
        let progress = extents.iter().zip(commits);
        let progress = progress.map(|(extent, commit)| Progress::new(extent, commit));
        let mut partitions: Vec<i32> = match read {
            Read::ToTheEnd => {
                let found = reader.first_unhandled(progress, &|_, _| false, beat)?;
                found.iter().map(|one| one.partition.number).collect()
            }
            Read::NearlyToTheEnd(offsets) => progress
                .filter(|one| one.left() > offsets)
                .map(|one| one.commit.partition.number)
                .collect(),
        };
        if !partitions.is_empty() {
            partitions.sort_unstable();
            behind.push(Behind { group, partitions });
        }
    }
    Ok(behind)
}
