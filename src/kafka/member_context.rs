//! Rebalances, errors and partition ends that a group member's client reports.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    statistics::Partition as PartitionStatistics,
    types::RDKafkaRespErr,
};

use super::{
    Partition,
    consumer::{End, is_cooperative},
    topic_ids::TopicIds,
};

/// A change that the owner of the partitions must handle.
#[derive(Debug)]
pub(crate) enum Change {
    /// The group assigned these partitions. [`Member::take`](super::Member::take) starts reading
    /// them.
    Assigned(Vec<Partition>),
    /// The member must give up these partitions with [`Member::give_up`](super::Member::give_up).
    Revoked {
        partitions: Vec<Partition>,
        /// The partitions already have another owner, so nothing can be committed.
        lost: bool,
    },
    /// The partition has no record at the next offset. It is not read until
    /// [`Member::restart`](super::Member::restart) is called.
    OutOfRange {
        partition: Partition,
        /// The offset after the last record that was read, or `None` if none was read.
        next: Option<i64>,
    },
    /// This topic was deleted and created again. The client reads the new topic at the offsets of
    /// the deleted one, so the member must be replaced. Its feeds of this topic have ended.
    TopicReplaced(String),
}

/// Queue of changes.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<VecDeque<Change>>);

impl Changes {
    pub(super) fn push(&self, change: Change) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(change);
    }

    pub(super) fn take(&self) -> Vec<Change> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .collect()
    }
}

/// Receives the events of a member's client on the polling thread.
#[derive(Default)]
pub(crate) struct MemberContext {
    pub(super) changes: Arc<Changes>,
    pub(super) leaving: AtomicBool,
    /// The coordinator has refused an asynchronous commit.
    pub(super) commit_failed: AtomicBool,
    /// The client reported a subscribed topic as missing.
    pub(super) lacks_topic: AtomicBool,
    pub(super) topic_ids: Arc<TopicIds>,
    complained: Mutex<Option<RDKafkaErrorCode>>,
    /// By topic and partition.
    ends: Mutex<HashMap<String, HashMap<i32, End>>>,
}

impl MemberContext {
    pub(super) fn new(topic_ids: Arc<TopicIds>) -> Self {
        Self {
            topic_ids,
            ..Self::default()
        }
    }

    pub(super) fn ends(&self) -> MutexGuard<'_, HashMap<String, HashMap<i32, End>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs each kind of error once rather than at each attempt.
    pub(super) fn complain(&self, error: &KafkaError) {
        let code = error.rdkafka_error_code();
        // Topics may be created later, for instance those of replayed events.
        if matches!(
            code,
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
        ) {
            self.lacks_topic.store(true, Ordering::Release);
            return tracing::debug!(%error, "kafka consumer");
        }
        let mut last = self
            .complained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if code != *last || last.is_none() {
            match code {
                Some(
                    RDKafkaErrorCode::GroupAuthorizationFailed
                    | RDKafkaErrorCode::TopicAuthorizationFailed,
                ) => tracing::warn!(
                    %error,
                    "the principal of this subscriber needs Read on its group, and Read and \
                     Describe on its topics"
                ),
                _ => tracing::warn!(%error, "kafka consumer"),
            }
        }
        *last = code;
    }
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::warn!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Warning => {
                tracing::debug!(target: "librdkafka", facility, "{message}");
            }
            _ => {
                if let Some(topic) = self.topic_ids.read(message) {
                    self.changes.push(Change::TopicReplaced(topic));
                }
                tracing::trace!(target: "librdkafka", facility, "{message}");
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        let ends = |partitions: HashMap<i32, PartitionStatistics>| {
            // A negative offset means that the value is unknown.
            let known = partitions
                .into_iter()
                .filter(|(_, partition)| partition.ls_offset >= 0);
            let end = |at: PartitionStatistics| End {
                offset: at.ls_offset,
                is_reached: at.fetchq_cnt == 0 && at.next_offset >= at.ls_offset,
            };
            known.map(|(number, at)| (number, end(at))).collect()
        };
        *self.ends() = statistics
            .topics
            .into_iter()
            .map(|(name, topic)| (name, ends(topic.partitions)))
            .collect();
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for MemberContext {
    /// Queues the change for the owner of the partitions. Draining takes time and needs more than
    /// this callback provides.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let elements = list.elements();
        let partitions = elements
            .iter()
            .map(|element| Partition {
                topic: element.topic().into(),
                number: element.partition(),
            })
            .collect();
        if self.leaving.load(Ordering::Acquire) {
            // Everything has already been drained and committed.
            let revoked = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS;
            let _ = if revoked && is_cooperative(consumer) {
                consumer.incremental_unassign(list)
            } else {
                consumer.unassign()
            };
            return;
        }
        self.changes.push(match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Change::Assigned(partitions),
            _ => Change::Revoked {
                partitions,
                lost: consumer.assignment_lost(),
            },
        });
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // `NoOffset` means that there was nothing to commit.
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset) {
                tracing::warn!(%error, "offsets are not committed; the next commit includes them");
                self.commit_failed.store(true, Ordering::Release);
            }
        }
    }
}
