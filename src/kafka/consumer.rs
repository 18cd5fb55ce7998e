//! A member of a consumer group whose partitions have a queue each.
//!
//! One thread polls the member: it learns of rebalances and commits. The records of each partition are read from its own queue by whoever handles them. Who
//! has enough does not read: librdkafka stops fetching when the queue is full. (`pause` would throw away what is fetched and fetch it again.)

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message as _, Offset, Statistics, Timestamp, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers as _},
    statistics::Partition as PartitionStatistics,
    types::RDKafkaRespErr,
};
use tokio::sync::Notify;

use super::{
    Settings,
    incoming::{Buffers, Incoming, Place},
};

/// How long a broker may take to tell what is committed, or where a partition ends.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a member whose feeds are not all gone waits for the group to let it go.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// The time for which the partitions of a member that failed wait for it. A broker accepts 6 s or more by default
/// (`group.min.session.timeout.ms`), three heartbeats fit into it, and the default of 45 s is meant for brokers across networks.
const SESSION_TIMEOUT_MS: &str = "10000";

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
    // A topic that is made later is read after this long at most.
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

/// What the group has decided.
#[derive(Debug)]
pub(crate) enum Change {
    /// These are this member's now; [`Member::take`] starts reading them.
    Assigned(Vec<Partition>),
    /// These are to be given up by [`Member::give_up`].
    Revoked {
        partitions: Vec<Partition>,
        /// They have another owner already: nothing can be committed.
        lost: bool,
    },
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
    inner: Arc<BaseConsumer<Context>>,
}

impl Member {
    /// Joins the group at the first poll.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(crate) fn join(settings: &Settings, membership: &Membership, topics: &[&str]) -> Result<Self, String> {
        let mut config = settings.client_config_over(PREFERRED);
        for (name, value) in FIXED {
            config.set(*name, *value);
        }
        config.set("group.id", &membership.group);
        // Also where records are gone that were not read yet, or the topic was made anew: whoever wants to begin at the end says so once.
        config.set("auto.offset.reset", "earliest");
        if membership.broker_side {
            config.set("group.protocol", "consumer");
        } else {
            config.set("partition.assignment.strategy", "cooperative-sticky");
            // A static member is expected back: its partitions wait for it.
            if membership.instance.is_none() && config.get("session.timeout.ms").is_none() {
                config.set("session.timeout.ms", SESSION_TIMEOUT_MS);
            }
        }
        if let Some(instance) = &membership.instance {
            config.set("group.instance.id", instance);
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        let inner: BaseConsumer<Context> = config.create_with_context(Context::default()).map_err(|error| error.to_string())?;
        inner.subscribe(topics).map_err(|error| error.to_string())?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Waits this long for something to happen; what the group has decided since the last call.
    ///
    /// # Errors
    /// When the client can go no further: fenced, or not allowed.
    pub(crate) fn poll(&self, timeout: Duration) -> Result<Vec<Change>, String> {
        match self.inner.poll(timeout) {
            None => {}
            Some(Ok(message)) => {
                // Every partition is split before it is assigned, so this cannot be; its offset is not finished, so it comes again.
                tracing::error!(topic = message.topic(), partition = message.partition(), "a record came past its partition's queue");
            }
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => return Err(code.to_string()),
            Some(Err(error)) => self.inner.context().complain(&error),
        }
        Ok(self.inner.context().changes().drain(..).collect())
    }

    /// What is committed for the partitions. Blocks for up to ten seconds.
    ///
    /// # Errors
    /// When the coordinator does not tell.
    pub(crate) fn committed(&self, partitions: &[Partition]) -> Result<Known, String> {
        let list = list(partitions.iter().map(|partition| (partition, Offset::Invalid)));
        let answer = self.inner.committed_offsets(list, ASK_TIMEOUT).map_err(|error| error.to_string())?;
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
        partitions_of(&self.inner, topic)
    }

    /// Where a partition ends at this moment. Blocks for up to ten seconds.
    ///
    /// # Errors
    /// When the partition's leader does not tell.
    pub(crate) fn end_now(&self, partition: &Partition) -> Result<i64, String> {
        let watermarks = self.inner.fetch_watermarks(&partition.topic, partition.number, ASK_TIMEOUT);
        watermarks.map(|(_, end)| end).map_err(|error| error.to_string())
    }

    /// Starts reading partitions that were assigned, from where it was committed, or else from their beginning. Each has a feed of its own.
    ///
    /// # Errors
    /// When librdkafka refuses the assignment.
    pub(crate) fn take(&self, partitions: &[Partition], committed: &[Committed]) -> Result<Vec<Feed>, String> {
        let offset_of = |partition: &Partition| {
            committed.iter().find(|committed| committed.partition == *partition).map_or(Offset::Invalid, |c| Offset::Offset(c.offset))
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

    /// Commits, and waits for the coordinator's answer if asked to.
    ///
    /// # Errors
    /// What the coordinator says; when it is not waited for, failures are logged.
    pub(crate) fn commit(&self, commits: &[Committed], wait: bool) -> Result<(), String> {
        if commits.is_empty() {
            return Ok(());
        }
        let list = list(commits.iter().map(|commit| (&commit.partition, Offset::Offset(commit.offset))));
        for (mut element, commit) in list.elements().into_iter().zip(commits) {
            element.set_metadata(&commit.metadata);
        }
        let mode = if wait { CommitMode::Sync } else { CommitMode::Async };
        self.inner.commit(&list, mode).map_err(|error| error.to_string())
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
            let _ = self.inner.poll(Duration::from_millis(10));
        }
        drop(self);
    }

    fn feed(&self, partition: &Partition) -> Result<Feed, String> {
        let mut queue = self
            .inner
            .split_partition_queue(&partition.topic, partition.number)
            .ok_or_else(|| format!("partition {} of topic {} has no queue", partition.number, partition.topic))?;
        let readable = Arc::new(Notify::new());
        let waker = readable.clone();
        queue.set_nonempty_callback(move || waker.notify_one());
        // What was there before the callback was set.
        readable.notify_one();
        // A name of its own: each record has it, and threads that counted its owners in one place would wait for each other.
        let partition = Partition { topic: Arc::from(&*partition.topic), number: partition.number };
        Ok(Feed { partition, queue, readable })
    }
}

/// The records of one partition.
pub(crate) struct Feed {
    pub(crate) partition: Partition,
    queue: PartitionQueue<Context>,
    readable: Arc<Notify>,
}

impl Feed {
    /// The next record, if one is here, copied into what this gives.
    pub(crate) fn next(&self, buffers: impl FnOnce() -> Buffers) -> Option<Incoming> {
        loop {
            match self.queue.poll(Duration::ZERO)? {
                Ok(message) => return Some(incoming(buffers(), self.partition.topic.clone(), &message)),
                Err(error) => self.queue_complains(&error),
            }
        }
    }

    /// Waits until there may be a record. Call it after [`next`](Self::next) had none.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn readable(&self) {
        self.readable.notified().await;
    }

    fn queue_complains(&self, error: &KafkaError) {
        tracing::warn!(topic = &*self.partition.topic, partition = self.partition.number, %error, "kafka consumer");
    }
}

/// As [`Member::partitions_of`], by any consumer.
pub(super) fn partitions_of<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str) -> Result<Vec<Partition>, String> {
    let metadata = consumer.fetch_metadata(Some(topic), ASK_TIMEOUT).map_err(|error| error.to_string())?;
    let told = metadata.topics().first().ok_or_else(|| format!("no broker tells of topic {topic}"))?;
    match told.error() {
        None => {}
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => return Ok(Vec::new()),
        Some(error) => return Err(format!("topic {topic}: {}", RDKafkaErrorCode::from(error))),
    }
    let topic: Arc<str> = topic.into();
    Ok(told.partitions().iter().map(|partition| Partition { topic: topic.clone(), number: partition.id() }).collect())
}

fn is_cooperative(consumer: &BaseConsumer<Context>) -> bool {
    matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative)
}

fn list<'p>(partitions: impl Iterator<Item = (&'p Partition, Offset)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(&partition.topic, partition.number, offset).expect("a partition that Kafka named, and an offset");
    }
    list
}

/// Learns of rebalances and errors on the polling thread.
#[derive(Default)]
pub(crate) struct Context {
    changes: Mutex<VecDeque<Change>>,
    leaving: AtomicBool,
    complained: Mutex<Option<RDKafkaErrorCode>>,
    /// By topic and partition.
    ends: Mutex<HashMap<String, HashMap<i32, End>>>,
}

impl Context {
    fn changes(&self) -> std::sync::MutexGuard<'_, VecDeque<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, HashMap<String, HashMap<i32, End>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says each kind of trouble once, not at each attempt.
    fn complain(&self, error: &KafkaError) {
        // Topics may come later: those that replayed events come back by do.
        if matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) {
            return tracing::debug!(%error, "kafka consumer");
        }
        let mut last = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if error.rdkafka_error_code() != *last || last.is_none() {
            tracing::warn!(%error, "kafka consumer");
        }
        *last = error.rdkafka_error_code();
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(target: "librdkafka", facility, "{message}");
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let ends = |partitions: HashMap<i32, PartitionStatistics>| {
            // Offsets below zero stand for what is not known.
            let known = partitions.into_iter().filter(|(_, partition)| partition.ls_offset >= 0);
            let end =
                |at: PartitionStatistics| End { offset: at.ls_offset, is_reached: at.fetchq_cnt == 0 && at.next_offset >= at.ls_offset };
            known.map(|(number, at)| (number, end(at))).collect()
        };
        *self.ends() = statistics.topics.into_iter().map(|(name, topic)| (name, ends(topic.partitions))).collect();
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for Context {
    /// Writes down what is to be done: draining takes time and needs more than this callback has.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let elements = list.elements();
        let partitions = elements.iter().map(|element| Partition { topic: element.topic().into(), number: element.partition() }).collect();
        if self.leaving.load(Ordering::Acquire) {
            // Everything is drained and committed already.
            let revoked = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS;
            let _ = if revoked && is_cooperative(consumer) { consumer.incremental_unassign(list) } else { consumer.unassign() };
            return;
        }
        self.changes().push_back(match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Change::Assigned(partitions),
            _ => Change::Revoked { partitions, lost: consumer.assignment_lost() },
        });
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // `NoOffset`: there was nothing to commit.
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset) {
                tracing::warn!(%error, "offsets are not committed; the next commit says it again");
            }
        }
    }
}

/// Header names that are not UTF-8 and are read past, counted twice because headers are passed over twice. Each costs a panic
/// that is caught, with its message on stderr. A record with more of them is no event.
const UNREADABLE_HEADERS_MAX: u32 = 8;

/// A message as a record of `topic`.
pub(super) fn incoming(buffers: Buffers, topic: Arc<str>, message: &BorrowedMessage<'_>) -> Incoming {
    let place =
        Place { topic, partition: message.partition(), offset: message.offset(), timestamp: message.timestamp().to_millis().unwrap_or(-1) };
    let headers = message.headers();
    let unreadable = Cell::new(0);
    let read = (0..headers.map_or(0, |headers| headers.count())).filter_map(|at| {
        if unreadable.get() > UNREADABLE_HEADERS_MAX {
            return None;
        }
        // It panics at a name that is not UTF-8, which no broker refuses. Nobody can ask for such a header: the record goes without it.
        let header = catch_unwind(AssertUnwindSafe(|| headers.map(|headers| headers.get(at))));
        let header = header.inspect_err(|_| unreadable.set(unreadable.get() + 1)).ok()??;
        Some((header.key, header.value))
    });
    let mut incoming = Incoming::within(buffers, place, message.key(), message.payload(), read);
    incoming.lacks_headers = unreadable.get() > UNREADABLE_HEADERS_MAX;
    incoming.is_stamped_by_broker = matches!(message.timestamp(), Timestamp::LogAppendTime(_));
    incoming
}
