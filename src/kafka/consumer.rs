//! A member of a consumer group whose partitions have a queue each.
//!
//! One thread polls the member: it learns of rebalances and commits. The records of each partition are read from its own queue by whoever handles them. Who
//! has enough does not read: librdkafka stops fetching when the queue is full. (`pause` would throw away what is fetched and fetch it again.)

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

/// How long a broker may take to tell what is committed, or where a partition ends.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a member whose feeds are not all gone waits for the group to let it go.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// The pause before a refused commit is repeated. A rebalance completes within a round trip of the group's leader.
const COMMIT_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The time for which the partitions of a member that failed wait for it. With a heartbeat and a rebalance they are read again
/// within 10 s. A broker accepts 6 s or more by default (`group.min.session.timeout.ms`), six heartbeats fit into it, and the
/// default of 45 s is meant for brokers across networks.
const SESSION_TIMEOUT_MS: &str = "7000";

/// The time after which the other members notice a rebalance, at most. The default of 3 s would be part of the standstill.
const HEARTBEAT_INTERVAL_MS: &str = "1000";

/// What a member sets and a user may not. Each value has its reason.
const FIXED: &[(&str, &str)] = &[
    // What is finished is committed here, with what is finished beyond it.
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // The records of an aborted transaction never happened.
    ("isolation.level", "read_committed"),
    ("allow.auto.create.topics", "false"),
];

/// What a member prefers; the settings' properties may say otherwise.
const PREFERRED: &[(&str, &str)] = &[
    // How long librdkafka waits before it looks again at a queue that was full: the default of a second takes four fifths of the throughput.
    ("fetch.queue.backoff.ms", "5"),
    // The default of 500 ms holds a request for one partition back while another's queue is empty.
    ("fetch.wait.max.ms", "50"),
    // For each partition, since each has a queue of its own; a response of a megabyte comes on top. As many as are handled while a request waits its 50 ms, at 80,000/s a partition;
    // ten thousand of eight partitions were 40 MB more.
    ("queued.min.messages", "4000"),
    ("queued.max.messages.kbytes", "16384"),
    // Bounds the time until new partitions are read. Topics that are missing are looked for more often (`src/subscriber/missing.rs`).
    ("topic.metadata.refresh.interval.ms", "30000"),
    ("reconnect.backoff.max.ms", "2000"),
    // They say where each partition ends.
    ("statistics.interval.ms", "5000"),
    ("log.connection.close", "false"),
    // What librdkafka counts for brokers that ask its clients (KIP-714) is behind one lock, which every thread takes for each record.
    ("enable.metrics.push", "false"),
];

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Partition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
}

/// Where a partition ends, for readers of committed records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) offset: i64,
    /// Every record before it was read.
    pub(crate) is_reached: bool,
}

/// What is committed for a partition.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) partition: Partition,
    /// The next record to be handled.
    pub(crate) offset: i64,
    pub(crate) metadata: String,
}

/// What a group has committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) committed: Vec<Committed>,
    /// Partitions for which it never has.
    pub(crate) never: Vec<Partition>,
}

/// Who a member is.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) group: String,
    /// `group.instance.id`: a member that returns within the session timeout keeps its partitions without a rebalance (KIP-345).
    pub(crate) instance: Option<String>,
    /// The group protocol that brokers drive (KIP-848), in place of the classic one with the cooperative-sticky assignor.
    pub(crate) broker_side: bool,
}

/// A member of a consumer group.
pub(crate) struct Member {
    inner: Arc<BaseConsumer<MemberContext>>,
    /// Shows that the thread of this member moves: touched around each call that may block.
    beat: Beat,
}

/// Why a member cannot continue. A new one may.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemberError {
    /// The brokers still keep the instance id for the member that had it last (KIP-848).
    #[error("the brokers have not released the instance id of this member yet")]
    Unreleased,
    /// Another member has joined with the same instance id.
    #[error("another member has joined the group with the same instance id")]
    Fenced,
    /// Another fatal error, in the client's words.
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
    /// Joins the group at the first poll.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(crate) fn join(settings: &Settings, membership: &Membership, topics: &[&str], beat: Beat) -> Result<Self, String> {
        let mut config = settings.client_config_over(PREFERRED);
        for (name, value) in FIXED {
            config.set(*name, *value);
        }
        config.set("group.id", &membership.group);
        // The client would skip records that were removed before they were read, and report nothing: see `Change::OutOfRange`.
        config.set("auto.offset.reset", "error");
        if membership.broker_side {
            config.set("group.protocol", "consumer");
        } else {
            config.set("partition.assignment.strategy", "cooperative-sticky");
            // A static member is expected back: its partitions wait for it.
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
        let inner: BaseConsumer<MemberContext> = config.create_with_context(MemberContext::default()).map_err(|error| error.to_string())?;
        inner.subscribe(topics).map_err(|error| error.to_string())?;
        Ok(Self { inner: Arc::new(inner), beat })
    }

    /// Looks for topics from another thread.
    pub(crate) fn lookout(&self) -> Lookout {
        Lookout::new(&self.inner)
    }

    /// Runs a call that may block, whose limit is its own, and shows that the thread moves.
    fn call<T>(&self, name: &'static str, call: impl FnOnce() -> T) -> T {
        self.beat.touch();
        failpoint::called(name);
        let answer = call();
        self.beat.touch();
        answer
    }

    /// Waits this long for something to happen; what the group has decided since the last call.
    ///
    /// # Errors
    /// When the client can go no further: fenced, or not allowed.
    pub(crate) fn poll(&self, timeout: Duration) -> Result<Vec<Change>, MemberError> {
        match self.call("member_poll", || self.inner.poll(timeout)) {
            None => {}
            Some(Ok(message)) => {
                // Every partition is split before it is assigned, so this cannot be; its offset is not finished, so it comes again.
                tracing::error!(topic = message.topic(), partition = message.partition(), "a record came past its partition's queue");
            }
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => return Err(code.into()),
            Some(Err(error)) => self.inner.context().complain(&error),
        }
        Ok(self.inner.context().changes.take())
    }

    /// What is committed for the partitions. Blocks for up to ten seconds.
    ///
    /// # Errors
    /// When the coordinator does not tell.
    pub(crate) fn committed(&self, partitions: &[Partition]) -> Result<Known, String> {
        let list = list(partitions.iter().map(|partition| (partition, Offset::Invalid)));
        let answer = self.call("committed", || self.inner.committed_offsets(list, ASK_TIMEOUT)).map_err(|error| error.to_string())?;
        let mut known = Known::default();
        for element in answer.elements().into_iter().filter(|element| element.error().is_ok()) {
            let partition = partitions.iter().find(|p| p.number == element.partition() && *p.topic == *element.topic());
            let (Some(partition), offset) = (partition.cloned(), element.offset().to_raw().filter(|offset| *offset >= 0)) else { continue };
            match offset {
                Some(offset) => known.committed.push(Committed { partition, offset, metadata: element.metadata().to_owned() }),
                None => known.never.push(partition),
            }
        }
        Ok(known)
    }

    /// The partitions that a topic has; none if there is no such topic. Blocks for up to ten seconds.
    ///
    /// # Errors
    /// When no broker tells.
    pub(crate) fn partitions_of(&self, topic: &str) -> Result<Vec<Partition>, String> {
        self.call("fetch_metadata", || partitions_of(&self.inner, topic))
    }

    /// Where a partition ends at this moment. Blocks for up to ten seconds.
    ///
    /// # Errors
    /// When the partition's leader does not tell.
    pub(crate) fn end_now(&self, partition: &Partition) -> Result<i64, String> {
        self.watermarks(partition).map(|(_, end)| end)
    }

    fn watermarks(&self, partition: &Partition) -> Result<(i64, i64), String> {
        let fetch = || self.inner.fetch_watermarks(&partition.topic, partition.number, ASK_TIMEOUT);
        self.call("fetch_watermarks", fetch).map_err(|error| error.to_string())
    }

    /// Reads a partition again that has no record at `next`: from its beginning if `next` does not exist any more, or is not
    /// known. Its feed stays. Blocks for up to ten seconds.
    ///
    /// # Errors
    /// When the partition's leader does not answer, or the client refuses.
    pub(crate) fn restart(&self, partition: &Partition, next: Option<i64>) -> Result<Restarted, String> {
        let (low, high) = self.watermarks(partition)?;
        let restarted = restarted(next, low, high);
        let one = |offset| list(std::iter::once((partition, offset)));
        // The client has stopped the partition and accepts no seek.
        self.inner.incremental_unassign(&one(Offset::Invalid)).map_err(|error| error.to_string())?;
        self.inner.incremental_assign(&one(Offset::Offset(restarted.from))).map_err(|error| error.to_string())?;
        Ok(restarted)
    }

    /// Starts reading partitions that were assigned, each by a feed of its own: from their committed offsets, from their beginning
    /// if the group has never committed any, or else as the client finds out.
    ///
    /// # Errors
    /// When librdkafka refuses the assignment.
    pub(crate) fn take(&self, partitions: &[Partition], known: &Known) -> Result<Vec<Feed>, String> {
        let offset_of = |partition: &Partition| match known.committed.iter().find(|committed| committed.partition == *partition) {
            Some(committed) => Offset::Offset(committed.offset),
            None if known.never.contains(partition) => Offset::Beginning,
            None => Offset::Invalid,
        };
        let feeds = partitions.iter().map(|partition| self.feed(partition)).collect::<Result<Vec<_>, _>>()?;
        let list = list(partitions.iter().map(|partition| (partition, offset_of(partition))));
        let done = if is_cooperative(&self.inner) { self.inner.incremental_assign(&list) } else { self.inner.assign(&list) };
        done.map(|()| feeds).map_err(|error| error.to_string())
    }

    /// Stops reading partitions that were revoked. Their feeds should be gone by now.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub(crate) fn give_up(&self, partitions: &[Partition]) -> Result<(), String> {
        let list = list(partitions.iter().map(|partition| (partition, Offset::Invalid)));
        let done = if is_cooperative(&self.inner) { self.inner.incremental_unassign(&list) } else { self.inner.unassign() };
        done.map_err(|error| error.to_string())
    }

    /// Commits, and waits for the coordinator's response if asked to.
    ///
    /// # Errors
    ///
    /// Returns the coordinator's refusal. Failures of a commit that is not waited for are logged.
    pub(crate) fn commit(&self, commits: &[Committed], wait: bool) -> Result<(), CommitError> {
        if commits.is_empty() {
            return Ok(());
        }
        let list = list(commits.iter().map(|commit| (&commit.partition, Offset::Offset(commit.offset))));
        for (mut element, commit) in list.elements().into_iter().zip(commits) {
            element.set_metadata(&commit.metadata);
        }
        let mode = if wait { CommitMode::Sync } else { CommitMode::Async };
        self.call("commit", || self.inner.commit(&list, mode)).map_err(CommitError::from)
    }

    /// Commits, waits for the coordinator's response, and repeats a refusal that may pass, until `patience` is over.
    ///
    /// # Errors
    ///
    /// Returns the coordinator's last refusal.
    pub(crate) fn commit_within(&self, commits: &[Committed], patience: Duration) -> Result<(), CommitError> {
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

    /// True if a commit that was not waited for has failed since the last call: during a rebalance, say. It has to be repeated, also for
    /// partitions in which nothing changes any more.
    pub(crate) fn has_failed_commit(&self) -> bool {
        self.inner.context().commit_failed.swap(false, Ordering::AcqRel)
    }

    /// Where a partition ends, as of some seconds ago; `None` if that is not known yet.
    pub(crate) fn end_of(&self, partition: &Partition) -> Option<End> {
        self.inner.context().ends().get(&*partition.topic)?.get(&partition.number).copied()
    }

    /// Leaves the group and destroys the client. Blocks for seconds: librdkafka waits for its own threads.
    pub(crate) fn leave(self) {
        self.inner.context().leaving.store(true, Ordering::Release);
        self.inner.unsubscribe();
        // The last feed destroys the client, and whoever is stuck with one may have it for long: the group shall not wait for that.
        let until = Instant::now() + LEAVE_PATIENCE;
        while Arc::strong_count(&self.inner) > 1 && Instant::now() < until && self.inner.assignment().is_ok_and(|left| left.count() > 0) {
            let _ = self.call("member_poll", || self.inner.poll(Duration::from_millis(10)));
        }
        drop(self);
    }

    fn feed(&self, partition: &Partition) -> Result<Feed, String> {
        let queue = self.inner.split_partition_queue(&partition.topic, partition.number);
        let queue = queue.ok_or_else(|| format!("partition {} of topic {} has no queue", partition.number, partition.topic))?;
        // A name of its own: each record has it, and threads that counted its owners in one place would wait for each other.
        let partition = Partition { topic: Arc::from(&*partition.topic), number: partition.number };
        Ok(Feed::new(partition, queue, self.inner.context().changes.clone()))
    }
}

/// As [`Member::partitions_of`], by any consumer.
pub(super) fn partitions_of<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str) -> Result<Vec<Partition>, String> {
    partitions_within(consumer, topic, ASK_TIMEOUT)
}

pub(super) fn partitions_within<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    within: Duration,
) -> Result<Vec<Partition>, String> {
    let metadata = consumer.fetch_metadata(Some(topic), within).map_err(|error| error.to_string())?;
    let told = metadata.topics().first().ok_or_else(|| format!("no broker tells of topic {topic}"))?;
    match told.error() {
        None => {}
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => return Ok(Vec::new()),
        Some(error) => return Err(format!("topic {topic}: {}", RDKafkaErrorCode::from(error))),
    }
    let topic: Arc<str> = topic.into();
    Ok(told.partitions().iter().map(|partition| Partition { topic: topic.clone(), number: partition.id() }).collect())
}

pub(super) fn is_cooperative(consumer: &BaseConsumer<MemberContext>) -> bool {
    matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative)
}

fn list<'p>(partitions: impl Iterator<Item = (&'p Partition, Offset)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(&partition.topic, partition.number, offset).expect("a partition that Kafka named, and an offset");
    }
    list
}
