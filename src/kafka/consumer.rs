//! Member of a consumer group, with a separate queue for each partition.
//!
//! One thread polls the member to handle rebalances and commits. Each partition's records are read
//! from its own queue by the task that handles them. For back-pressure the task stops reading, and
//! librdkafka stops fetching when the queue is full. (`pause` would discard the fetched records and
//! fetch them again.)

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use super::{
    Beat, Settings,
    commit::{CommitError, repeat_while_transient},
    feed::Feed,
    gap::{Restarted, restarted},
    lookout::Lookout,
    member_context::{Change, MemberContext},
};
use crate::failpoint;

/// Timeout of a request for committed offsets, metadata or the end of a partition.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time that a leaving member with open feeds waits for the group to revoke its partitions.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// Delay before a refused commit is retried. A rebalance completes within a round trip of the
/// group's leader.
const COMMIT_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Time after which the coordinator reassigns the partitions of a failed member. With the heartbeat
/// interval and a rebalance, the partitions are read again within 10 s. Brokers accept 6 s or more
/// by default (`group.min.session.timeout.ms`), and six heartbeats fit into it. The default of 45 s
/// is meant for brokers across networks.
const SESSION_TIMEOUT_MS: &str = "7000";

/// The maximum time until the other members notice a rebalance. The default of 3 s would lengthen
/// the standstill.
const HEARTBEAT_INTERVAL_MS: &str = "1000";

/// Properties that a member sets and a user cannot override, with their reasons.
const FIXED: &[(&str, &str)] = &[
    // Offsets are committed explicitly, with metadata about the records that are finished beyond
    // them.
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // Records of aborted transactions must not be read.
    ("isolation.level", "read_committed"),
    ("allow.auto.create.topics", "false"),
];

/// Properties that a member sets unless the settings override them.
const PREFERRED: &[(&str, &str)] = &[
    // Interval of librdkafka's checks of a full queue. The default of one second costs four fifths
    // of the throughput.
    ("fetch.queue.backoff.ms", "5"),
    // With the default of 500 ms, a request for one partition is held back while the queue of
    // another is empty.
    ("fetch.wait.max.ms", "50"),
    // Per partition, because each has its own queue; a response of 1 MB comes on top. 4,000 records
    // are handled in the 50 ms that a request may wait, at 80,000/s per partition. With 10,000
    // records, eight partitions used 40 MB more.
    ("queued.min.messages", "4000"),
    ("queued.max.messages.kbytes", "16384"),
    // Limits the time until new partitions are read. Missing topics are checked more often
    // (`src/subscriber/consume/missing_topics.rs`).
    ("topic.metadata.refresh.interval.ms", "30000"),
    ("reconnect.backoff.max.ms", "2000"),
    // The statistics contain the end of each partition.
    ("statistics.interval.ms", "5000"),
    ("log.connection.close", "false"),
    // librdkafka's counters for client metrics (KIP-714) share one lock, which every thread takes
    // for each record.
    ("enable.metrics.push", "false"),
];

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Partition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
}

/// The end of a partition for readers of committed records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) offset: i64,
    /// All records before it were read.
    pub(crate) is_reached: bool,
}

/// A committed offset of a partition.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) partition: Partition,
    /// The offset of the next record to handle.
    pub(crate) offset: i64,
    pub(crate) metadata: String,
}

/// The committed offsets of a group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) committed: Vec<Committed>,
    /// Partitions for which the group has never committed an offset.
    pub(crate) never: Vec<Partition>,
}

/// Identity of a member.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) group: String,
    /// `group.instance.id`: a member that returns within the session timeout keeps its partitions
    /// without a rebalance (KIP-345).
    pub(crate) instance: Option<String>,
    /// Uses the group protocol that brokers drive (KIP-848) rather than the classic one with the
    /// cooperative-sticky assignor.
    pub(crate) broker_side: bool,
}

/// A member of a consumer group.
pub(crate) struct Member {
    inner: Arc<BaseConsumer<MemberContext>>,
    /// Progress of the member's thread, reported around each call that may block.
    beat: Beat,
}

/// Reason why a member cannot continue. A new member may succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemberError {
    /// The brokers still reserve the instance id for its previous member (KIP-848).
    #[error("the brokers have not released the instance id of this member yet")]
    Unreleased,
    /// Another member has joined with the same instance id.
    #[error("another member has joined the group with the same instance id")]
    Fenced,
    /// Another fatal error, with librdkafka's description.
    #[error("{0}")]
    Other(String),
}

impl From<String> for MemberError {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

impl From<RDKafkaErrorCode> for MemberError {
    fn from(code: RDKafkaErrorCode) -> Self {
        match code {
            RDKafkaErrorCode::UnreleasedInstanceId => Self::Unreleased,
            RDKafkaErrorCode::FencedInstanceId => Self::Fenced,
            code => Self::Other(code.to_string()),
        }
    }
}

impl Member {
    /// Creates a member, which joins the group at the first poll.
    ///
    /// # Errors
    ///
    /// Returns librdkafka's message if it refuses a property.
    pub(crate) fn join(
        settings: &Settings,
        membership: &Membership,
        topics: &[&str],
        beat: Beat,
    ) -> Result<Self, String> {
        let mut config = settings.client_config_over(PREFERRED);
        for (name, value) in FIXED {
            config.set(*name, *value);
        }
        config.set("group.id", &membership.group);
        // With other values, the client skips records that were removed before they were read and
        // reports nothing. See `Change::OutOfRange`.
        config.set("auto.offset.reset", "error");
        if membership.broker_side {
            config.set("group.protocol", "consumer");
        } else {
            config.set("partition.assignment.strategy", "cooperative-sticky");
            // A static member is expected to return, so its partitions stay assigned to it for the
            // default time.
            if membership.instance.is_none() && config.get("session.timeout.ms").is_none() {
                config.set("session.timeout.ms", SESSION_TIMEOUT_MS);
                if config.get("heartbeat.interval.ms").is_none() {
                    config.set("heartbeat.interval.ms", HEARTBEAT_INTERVAL_MS);
                }
            }
        }
        if let Some(instance) = &membership.instance {
            config.set("group.instance.id", instance);
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        let inner: BaseConsumer<MemberContext> = config
            .create_with_context(MemberContext::default())
            .map_err(|error| error.to_string())?;
        inner.subscribe(topics).map_err(|error| error.to_string())?;
        Ok(Self {
            inner: Arc::new(inner),
            beat,
        })
    }

    /// Returns a handle that checks from another thread whether topics exist.
    pub(crate) fn lookout(&self) -> Lookout {
        Lookout::new(&self.inner)
    }

    /// Runs a call that may block, with its own time limit, and reports progress before and after
    /// it.
    fn call<T>(&self, name: &'static str, call: impl FnOnce() -> T) -> T {
        self.beat.touch();
        failpoint::called(name);
        let answer = call();
        self.beat.touch();
        answer
    }

    /// Polls for up to `timeout` and returns the changes since the last call.
    ///
    /// # Errors
    ///
    /// Returns [`MemberError`] if the client has failed permanently, e.g. because it was fenced.
    pub(crate) fn poll(&self, timeout: Duration) -> Result<Vec<Change>, MemberError> {
        match self.call("member_poll", || self.inner.poll(timeout)) {
            None => {}
            Some(Ok(message)) => {
                // Each partition's queue is split off before the partition is assigned, so this
                // cannot happen. The record is not marked as finished, so it would be delivered
                // again.
                tracing::error!(
                    topic = message.topic(),
                    partition = message.partition(),
                    "a record arrived outside its partition's queue"
                );
            }
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => return Err(code.into()),
            Some(Err(error)) => self.inner.context().complain(&error),
        }
        Ok(self.inner.context().changes.take())
    }

    /// Returns the committed offsets of the partitions. Omits partitions for which the coordinator
    /// returns an error. Blocks for up to ten seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the coordinator does not respond.
    pub(crate) fn committed(&self, partitions: &[Partition]) -> Result<Known, String> {
        let list = list(
            partitions
                .iter()
                .map(|partition| (partition, Offset::Invalid)),
        );
        let answer = self
            .call("committed", || {
                self.inner.committed_offsets(list, ASK_TIMEOUT)
            })
            .map_err(|error| error.to_string())?;
        let mut known = Known::default();
        for element in answer
            .elements()
            .into_iter()
            .filter(|element| element.error().is_ok())
        {
            let partition = partitions
                .iter()
                .find(|p| p.number == element.partition() && *p.topic == *element.topic());
            let (Some(partition), offset) = (
                partition.cloned(),
                element.offset().to_raw().filter(|offset| *offset >= 0),
            ) else {
                continue;
            };
            match offset {
                Some(offset) => known.committed.push(Committed {
                    partition,
                    offset,
                    metadata: element.metadata().to_owned(),
                }),
                None => known.never.push(partition),
            }
        }
        Ok(known)
    }

    /// Returns the partitions of a topic, or an empty list if the topic does not exist. Blocks for
    /// up to ten seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if no broker responds.
    pub(crate) fn partitions_of(&self, topic: &str) -> Result<Vec<Partition>, String> {
        self.call("fetch_metadata", || partitions_of(&self.inner, topic))
    }

    /// Returns the current end of a partition. Blocks for up to ten seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the partition's leader does not respond.
    pub(crate) fn end_now(&self, partition: &Partition) -> Result<i64, String> {
        self.watermarks(partition).map(|(_, end)| end)
    }

    fn watermarks(&self, partition: &Partition) -> Result<(i64, i64), String> {
        let fetch = || {
            self.inner
                .fetch_watermarks(&partition.topic, partition.number, ASK_TIMEOUT)
        };
        self.call("fetch_watermarks", fetch)
            .map_err(|error| error.to_string())
    }

    /// Restarts reading of a partition that has no record at `next`. Starts at the first record if
    /// `next` no longer exists or is unknown. The feed stays valid. Blocks for up to ten seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the partition's leader does not respond or the client refuses.
    pub(crate) fn restart(
        &self,
        partition: &Partition,
        next: Option<i64>,
    ) -> Result<Restarted, String> {
        let (low, high) = self.watermarks(partition)?;
        let restarted = restarted(next, low, high);
        let one = |offset| list(std::iter::once((partition, offset)));
        // The client has stopped fetching the partition and refuses a seek.
        self.inner
            .incremental_unassign(&one(Offset::Invalid))
            .map_err(|error| error.to_string())?;
        self.inner
            .incremental_assign(&one(Offset::Offset(restarted.from)))
            .map_err(|error| error.to_string())?;
        Ok(restarted)
    }

    /// Starts reading newly assigned partitions, each through its own feed. Reading starts at the
    /// committed offset, or at the beginning if the group has never committed one. If neither is
    /// known, the client determines the offset.
    ///
    /// # Errors
    ///
    /// Returns an error if librdkafka refuses the assignment.
    pub(crate) fn take(
        &self,
        partitions: &[Partition],
        known: &Known,
    ) -> Result<Vec<Feed>, String> {
        let offset_of = |partition: &Partition| match known
            .committed
            .iter()
            .find(|committed| committed.partition == *partition)
        {
            Some(committed) => Offset::Offset(committed.offset),
            None if known.never.contains(partition) => Offset::Beginning,
            None => Offset::Invalid,
        };
        let feeds = partitions
            .iter()
            .map(|partition| self.feed(partition))
            .collect::<Result<Vec<_>, _>>()?;
        let list = list(
            partitions
                .iter()
                .map(|partition| (partition, offset_of(partition))),
        );
        let done = if is_cooperative(&self.inner) {
            self.inner.incremental_assign(&list)
        } else {
            self.inner.assign(&list)
        };
        done.map(|()| feeds).map_err(|error| error.to_string())
    }

    /// Stops reading revoked partitions. Their feeds should be dropped before.
    ///
    /// # Errors
    ///
    /// Returns an error if librdkafka refuses.
    pub(crate) fn give_up(&self, partitions: &[Partition]) -> Result<(), String> {
        let list = list(
            partitions
                .iter()
                .map(|partition| (partition, Offset::Invalid)),
        );
        let done = if is_cooperative(&self.inner) {
            self.inner.incremental_unassign(&list)
        } else {
            self.inner.unassign()
        };
        done.map_err(|error| error.to_string())
    }

    /// Commits offsets. If `wait` is set, waits for the coordinator's response.
    ///
    /// # Errors
    ///
    /// Returns the coordinator's refusal. Without `wait`, failures are logged.
    pub(crate) fn commit(&self, commits: &[Committed], wait: bool) -> Result<(), CommitError> {
        if commits.is_empty() {
            return Ok(());
        }
        let list = list(
            commits
                .iter()
                .map(|commit| (&commit.partition, Offset::Offset(commit.offset))),
        );
        for (mut element, commit) in list.elements().into_iter().zip(commits) {
            element.set_metadata(&commit.metadata);
        }
        let mode = if wait {
            CommitMode::Sync
        } else {
            CommitMode::Async
        };
        self.call("commit", || self.inner.commit(&list, mode))
            .map_err(CommitError::from)
    }

    /// Commits offsets, waits for the coordinator's response, and retries transient refusals for up
    /// to `patience`.
    ///
    /// # Errors
    ///
    /// Returns the coordinator's last refusal.
    pub(crate) fn commit_within(
        &self,
        commits: &[Committed],
        patience: Duration,
    ) -> Result<(), CommitError> {
        let until = Instant::now() + patience;
        repeat_while_transient(
            || self.commit(commits, true),
            || {
                self.beat.touch();
                std::thread::sleep(COMMIT_RETRY_PAUSE);
                Instant::now() < until
            },
        )
    }

    /// Returns `true` if a commit without `wait` has failed since the last call, e.g. during a
    /// rebalance. The offsets must then be committed again, also for partitions that make no
    /// further progress.
    pub(crate) fn has_failed_commit(&self) -> bool {
        self.inner
            .context()
            .commit_failed
            .swap(false, Ordering::AcqRel)
    }

    /// Returns the end of a partition as of a few seconds ago, or `None` if it is not known yet.
    pub(crate) fn end_of(&self, partition: &Partition) -> Option<End> {
        self.inner
            .context()
            .ends()
            .get(&*partition.topic)?
            .get(&partition.number)
            .copied()
    }

    /// Leaves the group and destroys the client. Blocks for seconds, because librdkafka waits for
    /// its own threads.
    pub(crate) fn leave(self) {
        self.inner.context().leaving.store(true, Ordering::Release);
        self.inner.unsubscribe();
        // Dropping the last feed destroys the client. A stuck handler may hold its feed for long,
        // and the group must not wait for it.
        let until = Instant::now() + LEAVE_PATIENCE;
        while Arc::strong_count(&self.inner) > 1
            && Instant::now() < until
            && self.inner.assignment().is_ok_and(|left| left.count() > 0)
        {
            let _ = self.call("member_poll", || self.inner.poll(Duration::from_millis(10)));
        }
        drop(self);
    }

    fn feed(&self, partition: &Partition) -> Result<Feed, String> {
        let queue = self
            .inner
            .split_partition_queue(&partition.topic, partition.number);
        let queue = queue.ok_or_else(|| {
            format!(
                "partition {} of topic {} has no queue",
                partition.number, partition.topic
            )
        })?;
        // Each feed has its own copy of the topic name. Its records share that copy, so threads of
        // different partitions do not contend for one reference count.
        let partition = Partition {
            topic: Arc::from(&*partition.topic),
            number: partition.number,
        };
        Ok(Feed::new(
            partition,
            queue,
            self.inner.context().changes.clone(),
        ))
    }
}

/// Same as [`Member::partitions_of`], for any consumer.
pub(super) fn partitions_of<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
) -> Result<Vec<Partition>, String> {
    partitions_within(consumer, topic, ASK_TIMEOUT)
}

pub(super) fn partitions_within<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    within: Duration,
) -> Result<Vec<Partition>, String> {
    let metadata = consumer
        .fetch_metadata(Some(topic), within)
        .map_err(|error| error.to_string())?;
    let told = metadata
        .topics()
        .first()
        .ok_or_else(|| format!("no broker returned metadata of topic {topic}"))?;
    match told.error() {
        None => {}
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => return Ok(Vec::new()),
        Some(error) => return Err(format!("topic {topic}: {}", RDKafkaErrorCode::from(error))),
    }
    let topic: Arc<str> = topic.into();
    Ok(told
        .partitions()
        .iter()
        .map(|partition| Partition {
            topic: topic.clone(),
            number: partition.id(),
        })
        .collect())
}

pub(super) fn is_cooperative(consumer: &BaseConsumer<MemberContext>) -> bool {
    matches!(
        consumer.rebalance_protocol(),
        RebalanceProtocol::Cooperative
    )
}

fn list<'p>(partitions: impl Iterator<Item = (&'p Partition, Offset)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(&partition.topic, partition.number, offset)
            .expect("a partition that Kafka named, and an offset");
    }
    list
}
