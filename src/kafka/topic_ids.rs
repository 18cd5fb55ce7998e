//! Ids of the topics that a group member reads. A topic that is created again has another id.
//!
//! librdkafka reads from a recreated topic at the offset of the deleted one, and no call of its
//! interface returns the id or reports the change (a `FIXME` in `rd_kafka_topic_metadata_update`).
//! It logs each id with the context `topic` before it requests a record of the new topic. The log
//! arrives with the next poll of the member, usually before that record. Brokers before 2.8 have no
//! ids, and nothing is logged.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::fnv::fnv1a;

/// Length of a UUID in base64 without padding.
const ID_CHARS: usize = 22;

/// The id of a topic, and the cluster that it belongs to.
///
/// Offsets and their metadata can be copied to another cluster, where each topic has another id. So
/// ids are compared only within a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicId {
    topic: Arc<str>,
    /// The 64-bit FNV-1a hash of the cluster's id. It is stored in commits, so it must stay the
    /// same in every version.
    cluster: u64,
}

impl TopicId {
    /// Parses the text that [`Display`](fmt::Display) writes. Returns `None` for other text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (topic, cluster) = text.split_at_checked(ID_CHARS)?;
        (is_uuid(topic) && cluster.len() == 16).then_some(())?;
        Some(Self {
            topic: topic.into(),
            cluster: u64::from_str_radix(cluster, 16).ok()?,
        })
    }

    /// Returns `true` if the topic with the id `earlier` was deleted, and this one was created with
    /// the same name in the same cluster. The caller ensures that the names are equal.
    pub(crate) fn replaces(&self, earlier: &Self) -> bool {
        self.cluster == earlier.cluster && self.topic != earlier.topic
    }
}

/// Returns `true` if the text is a UUID in base64 without padding.
fn is_uuid(text: &str) -> bool {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_".contains(&byte);
    text.len() == ID_CHARS && text.bytes().all(is_base64)
}

// === impl Display ===

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:016x}", self.topic, self.cluster)
    }
}

/// Detects that a topic is created again after this value was made.
#[derive(Clone, Debug)]
pub(crate) struct TopicWatch {
    /// `None` if the id is not known yet, or the brokers have no ids.
    pub(crate) id: Option<TopicId>,
    seen: u64,
    replaced: Arc<AtomicU64>,
}

impl TopicWatch {
    /// Returns `true` if the topic was created again.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire) != self.seen
    }
}

/// The id of a topic, and the number of its changes.
#[derive(Debug, Default)]
struct Known {
    id: Option<Arc<str>>,
    replaced: Arc<AtomicU64>,
}

/// The topics that the successive clients of one subscriber have learned about.
#[derive(Debug, Default)]
pub(crate) struct TopicIds {
    topics: Mutex<HashMap<String, Known>>,
    cluster: OnceLock<u64>,
}

impl TopicIds {
    /// Stores the id of the cluster, unless it is known. Without it, no id is known.
    pub(crate) fn know_cluster(&self, id: impl FnOnce() -> Option<String>) {
        if self.cluster.get().is_none()
            && let Some(id) = id()
        {
            let _ = self.cluster.set(fnv1a(id.bytes()));
        }
    }

    /// Evaluates a log line of the client. Returns the name of a topic that was created again.
    pub(crate) fn read(&self, line: &str) -> Option<String> {
        let (topic, id) = change(line)?;
        let mut topics = self.locked();
        let known = topics.entry(topic.to_owned()).or_default();
        let before = known.id.replace(id.clone())?;
        if before == id {
            return None;
        }
        known.replaced.fetch_add(1, Ordering::Release);
        Some(topic.to_owned())
    }

    /// Returns the current id of a topic, with the means to detect its change.
    pub(crate) fn watch(&self, topic: &str) -> TopicWatch {
        let mut topics = self.locked();
        let known = topics.entry(topic.to_owned()).or_default();
        TopicWatch {
            id: known
                .id
                .clone()
                .zip(self.cluster.get().copied())
                .map(|(topic, cluster)| TopicId { topic, cluster }),
            seen: known.replaced.load(Ordering::Acquire),
            replaced: known.replaced.clone(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the topic and the new id of the line `Topic NAME changed id from ID to ID`, which may
/// follow the name of a thread.
fn change(line: &str) -> Option<(&str, Arc<str>)> {
    let (before, ids) = line.split_once(" changed id from ")?;
    let (_, topic) = before.rsplit_once("Topic ")?;
    let (_, id) = ids.split_once(" to ")?;
    let id = id.trim_end();
    is_uuid(id).then(|| (topic, id.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    const ONE: &str = "zRHyCUTESxuRmvmVTs5kZQ";
    const OTHER: &str = "y/TxDjvvSt+5P5brNGFqSA";

    fn line(topic: &str, from: &str, to: &str) -> String {
        format!("[thrd:main]: Topic {topic} changed id from {from} to {to}")
    }

    #[test]
    fn a_topic_that_is_created_again_is_told_from_one_that_becomes_known() {
        let ids = TopicIds::default();
        ids.know_cluster(|| Some("cluster".into()));
        let early = ids.watch("order");
        assert_eq!(
            (early.id.clone(), ids.read("Topic order [0] Leader 1")),
            (None, None)
        );
        assert_eq!(ids.read(&line("order", NONE, ONE)), None);
        let first = ids.watch("order");
        let (one, other) = (id(ONE, "cluster"), id(OTHER, "cluster"));
        assert_eq!(first.id.as_ref(), Some(&one));
        assert!(!early.is_replaced() && !first.is_replaced());
        // The client forgets a topic that it does not read, and learns its id again.
        assert_eq!(ids.read(&line("order", NONE, ONE)), None);
        assert!(!first.is_replaced());
        assert_eq!(
            ids.read(&line("order", ONE, OTHER)).as_deref(),
            Some("order")
        );
        assert!(early.is_replaced() && first.is_replaced());
        let second = ids.watch("order");
        assert_eq!(second.id.as_ref(), Some(&other));
        assert!(other.replaces(&one) && !one.replaces(&one));
        assert!(!second.is_replaced() && !ids.watch("payment").is_replaced());
    }

    fn id(topic: &str, cluster: &str) -> TopicId {
        TopicId {
            topic: topic.into(),
            cluster: fnv1a(cluster.bytes()),
        }
    }

    #[test]
    fn a_topic_of_another_cluster_replaces_none() {
        assert!(!id(OTHER, "a").replaces(&id(ONE, "b")));
        assert!(id(OTHER, "a").replaces(&id(ONE, "a")));
    }

    #[test]
    fn an_id_is_written_and_read_again() {
        let written = id(OTHER, "cluster").to_string();
        assert_eq!(written, format!("{OTHER}72bd87d332d5304d"));
        assert_eq!(TopicId::parse(&written), Some(id(OTHER, "cluster")));
        for other in [
            "",
            OTHER,
            &written[1..],
            &format!("{written}0"),
            "\u{e9}".repeat(19).as_str(),
        ] {
            assert_eq!(TopicId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn without_a_cluster_no_id_is_known() {
        let ids = TopicIds::default();
        assert_eq!(ids.read(&line("order", NONE, ONE)), None);
        assert_eq!(ids.watch("order").id, None);
        ids.know_cluster(|| Some("cluster".into()));
        assert_eq!(ids.watch("order").id, Some(id(ONE, "cluster")));
    }

    #[test]
    fn other_lines_change_nothing() {
        for other in [
            "",
            "Topic order changed id from",
            "Topic order changed id from a to b",
            "order changed id from a to zRHyCUTESxuRmvmVTs5kZQ",
        ] {
            assert_eq!(change(other), None, "{other}");
        }
    }
}
