//! Member of a consumer group, with a separate queue for each partition.
//!
//! One thread polls the member to handle rebalances and commits. Each partition's records are read
//! from its own queue by the task that handles them. For back-pressure the task stops reading, and
//! librdkafka stops fetching when the queue is full. (`pause` would discard the fetched records and
//! fetch them again.)
//!
//! | file | content |
//! |---|---|
//! | `properties` | librdkafka properties of a member |
//! | `assignment` | reading of assigned partitions |
//! | `error` | errors of members and readers |

mod assignment;
mod error;
mod properties;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
};

pub(crate) use self::error::ConsumerError;
use self::properties::client_config;
pub(super) use self::{assignment::is_cooperative, error::is_denied};
use super::{
    Beat, Settings,
    commit::{CommitError, repeat_while_transient},
    lookout::Lookout,
    member_context::{Change, MemberContext},
    offsets::{self, Committed, Partition, PartitionExtent},
    topic_ids::TopicIds,
};
use crate::failpoint;

/// Maximum time that a leaving member with open feeds waits for the group to revoke its partitions.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// Time limit for the ids of assigned topics. The client logs them at once if it has them.
const TOPIC_ID_PATIENCE: Duration = Duration::from_millis(500);

/// Delay before a refused commit is retried. A rebalance completes within a round trip of the
/// group's leader.
const COMMIT_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The end of a partition for readers of committed records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) offset: i64,
    /// All records before it were read.
    pub(crate) is_reached: bool,
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
        topic_ids: Arc<TopicIds>,
        beat: Beat,
    ) -> Result<Self, ConsumerError> {
        let inner: BaseConsumer<MemberContext> = client_config(settings, membership)
            .create_with_context(MemberContext::new(topic_ids))?;
        inner.subscribe(topics)?;
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
        self.serve(timeout)?;
        Ok(self.inner.context().changes.take())
    }

    /// Waits for up to half a second until the ids of these topics are known. Changes are returned
    /// by the next [`poll`](Self::poll).
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`poll`](Self::poll).
    pub(crate) fn learn_topic_ids(&self, topics: &[&str]) -> Result<(), MemberError> {
        let until = Instant::now() + TOPIC_ID_PATIENCE;
        let ids = &self.inner.context().topic_ids;
        // The client has the id since its first response.
        ids.know_cluster(|| {
            self.call("fetch_cluster_id", || {
                self.inner.client().fetch_cluster_id(TOPIC_ID_PATIENCE)
            })
        });
        while topics.iter().any(|topic| ids.watch(topic).id.is_none()) && Instant::now() < until {
            self.serve(Duration::from_millis(10))?;
        }
        Ok(())
    }

    fn serve(&self, timeout: Duration) -> Result<(), MemberError> {
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
        Ok(())
    }

    /// Returns the committed offsets of the partitions. Omits partitions for which the coordinator
    /// returns an error. Blocks for up to ten seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the coordinator does not respond.
    pub(crate) fn committed(&self, partitions: &[Partition]) -> Result<Known, ConsumerError> {
        let commits = self.call("committed", || offsets::committed(&self.inner, partitions))?;
        let mut known = Known::default();
        for (partition, commit) in partitions.iter().zip(commits) {
            match commit {
                Ok(Some(commit)) => known.committed.push(commit),
                Ok(None) => known.never.push(partition.clone()),
                Err(_) => {}
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
    pub(crate) fn partitions_of(&self, topic: &str) -> Result<Vec<Partition>, ConsumerError> {
        self.call("fetch_metadata", || {
            offsets::partitions_of(&self.inner, topic)
        })
    }

    /// Returns the current end of a partition. Blocks for up to ten seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the partition's leader does not respond.
    pub(crate) fn end_now(&self, partition: &Partition) -> Result<i64, ConsumerError> {
        Ok(self.extent(partition)?.high)
    }

    fn extent(&self, partition: &Partition) -> Result<PartitionExtent, ConsumerError> {
        self.call("fetch_watermarks", || {
            offsets::extent(&self.inner, partition)
        })
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
        let list = offsets::commit_list(commits);
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
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the polling thread is not one of the runtime"
                )]
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
    /// A topic that the member reads was created again. A new member starts at its beginning.
    #[error("topic `{0}` was deleted and created again")]
    TopicReplaced(String),
    /// Another fatal error of the client.
    #[error("{0}")]
    Fatal(RDKafkaErrorCode),
    /// The caller's task for a partition has ended early.
    #[error("the task of partition {} of topic {} panicked", .0.number, .0.topic)]
    TaskPanicked(Partition),
    /// The member cannot read its partitions.
    #[error("{0}")]
    Consumer(#[from] ConsumerError),
}

impl From<RDKafkaErrorCode> for MemberError {
    fn from(code: RDKafkaErrorCode) -> Self {
        match code {
            RDKafkaErrorCode::UnreleasedInstanceId => Self::Unreleased,
            RDKafkaErrorCode::FencedInstanceId => Self::Fenced,
            code => Self::Fatal(code),
        }
    }
}
