//! The polling thread: a member of the group and its partitions.
//!
//! Each partition has a task that handles its records, and a watermark that the task and the thread
//! share. The thread commits the watermarks once a second. When the group revokes a partition, the
//! thread waits for the partition's task to end, commits, and releases the partition.

mod assignment;
mod commit;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::assignment_wait::Awaiting;
use super::partition::Progress;
use super::supervision::Term;
use super::topic_role::Source;
use crate::{
    kafka::{
        Change, Gap, Member, MemberError, Membership, Partition, Settings, TopicId, TopicIds,
        TopicWatch,
    },
    subscriber::{
        PartitionStatistics, attempt::Runner, control::Control, deployment::instances::Registry,
        failure::parked::ParkedEvents, offsets::start_offsets::StartOffsets,
        startup::leftovers::report_abandoned,
    },
};

/// Maximum delay until the thread notices that it must stop or commit.
const POLL: Duration = Duration::from_millis(100);

/// Time within which an aborted task should end. A task that blocks its thread does not notice the
/// abort, and the group must not wait for it.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// Everything that the successive members of a subscriber share.
pub(crate) struct Seat {
    pub(crate) settings: Settings,
    pub(crate) membership: Membership,
    pub(crate) runner: Arc<Runner>,
    pub(crate) parked_events: Option<Arc<ParkedEvents>>,
    pub(crate) control: Option<Arc<Control>>,
    pub(crate) registry: Option<Arc<Registry>>,
    /// Each topic, with its role.
    pub(crate) topics: HashMap<String, Source>,
    /// Subscribed topics that exist already.
    pub(crate) found: Vec<String>,
    /// Topics of the group whose origin is not subscribed.
    pub(crate) abandoned: Vec<String>,
    /// Topics at whose end a new group starts.
    pub(crate) from_end: Vec<String>,
    /// Where the group starts in these topics, once the first member has determined it.
    pub(crate) beginning: Mutex<Option<StartOffsets>>,
    pub(crate) topic_ids: Arc<TopicIds>,
}

impl Seat {
    fn beginning(&self) -> MutexGuard<'_, Option<StartOffsets>> {
        self.beginning
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a topic was created again, and returns the reason to replace the member.
    fn replaced(&self, topic: &str) -> MemberError {
        if let Some(beginning) = &mut *self.beginning() {
            beginning.forget(topic);
        }
        MemberError::TopicReplaced(topic.to_owned())
    }
}

/// The polling thread's state: the member and its partitions.
pub(crate) struct Owner {
    member: Member,
    seat: Arc<Seat>,
    term: Arc<Term>,
    runtime: Handle,
    partitions: HashMap<Partition, Owned>,
    awaiting: Awaiting,
    /// Time of the last commit of all offsets.
    committed_all: Instant,
    /// Partitions that are not read until they are restarted, with the offset to read next.
    out_of_range: Vec<(Partition, Option<i64>)>,
}

/// A partition while this member owns it.
struct Owned {
    progress: Arc<Progress>,
    drain: CancellationToken,
    task: JoinHandle<()>,
    committed: Option<(i64, String)>,
    /// Detects that the topic is created again.
    topic: TopicWatch,
    /// The topic that the offsets belong to: the one of the commit at the start while the current
    /// one is not known.
    topic_id: Option<TopicId>,
    /// The offset that the member started from, if it is known.
    began: Option<i64>,
}

impl Owner {
    pub(crate) fn new(member: Member, seat: Arc<Seat>, term: Arc<Term>, runtime: Handle) -> Self {
        Self {
            member,
            seat,
            term,
            runtime,
            partitions: HashMap::new(),
            awaiting: Awaiting::default(),
            committed_all: Instant::now(),
            out_of_range: Vec::new(),
        }
    }

    /// Polls until `stop` is cancelled or the member cannot continue. In both cases it drains and
    /// leaves the group, unless the member has been replaced in the meantime.
    ///
    /// # Errors
    ///
    /// Returns the reason if the member cannot continue.
    pub(crate) fn run(mut self, stop: &CancellationToken) -> Result<(), MemberError> {
        self.look_where_to_begin(stop);
        report_abandoned(&self.member, &self.seat.runner.name, &self.seat.abandoned);
        let mut next_commit = Instant::now() + self.seat.runner.options.commit_interval;
        let result = loop {
            if stop.is_cancelled() {
                break Ok(());
            }
            if let Err(error) = self.poll_once() {
                break Err(error);
            }
            // Another member of this subscriber owns the partitions now.
            if self.term.is_over() {
                return Ok(());
            }
            // Without a task, the partition would look like one without events.
            if let Some((partition, _)) = self
                .partitions
                .iter()
                .find(|(_, owned)| owned.task.is_finished())
            {
                break Err(MemberError::TaskPanicked(partition.clone()));
            }
            self.report_wait();
            if let Err(error) = self.learn_topic_ids() {
                break Err(error);
            }
            if Instant::now() >= next_commit {
                self.commit();
                self.restart_out_of_range();
                self.tell();
                next_commit = Instant::now() + self.seat.runner.options.commit_interval;
            }
        };
        let all: Vec<Partition> = self.partitions.keys().cloned().collect();
        self.drain(&all, false);
        self.tell();
        self.member.leave();
        result
    }

    fn report_wait(&mut self) {
        if self
            .awaiting
            .is_to_report(!self.partitions.is_empty(), Instant::now())
        {
            tracing::info!(
                subscriber = self.seat.runner.name,
                "no partition is assigned yet: the group waits for its other members, or for the \
                 session time-out of one that failed"
            );
        }
    }

    fn poll_once(&mut self) -> Result<(), MemberError> {
        for change in self.member.poll(POLL)? {
            // A commit that is in flight during a rebalance is dropped without an error.
            self.recommit();
            match change {
                Change::Assigned(partitions) => self.take(&partitions)?,
                Change::Revoked { partitions, lost } => {
                    self.drain(&partitions, lost);
                    self.tell();
                    if let Err(error) = self.member.give_up(&partitions) {
                        tracing::warn!(
                            subscriber = self.seat.runner.name,
                            %error,
                            "revoked partitions cannot be released"
                        );
                    }
                }
                Change::TopicReplaced(topic) => return Err(self.seat.replaced(&topic)),
                Change::OutOfRange { partition, next } => {
                    if let Some(owned) = self.partitions.get(&partition) {
                        self.out_of_range.push((partition, next.or(owned.began)));
                        self.restart_out_of_range();
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for the running handlers of these partitions, commits, and removes the partitions.
    fn drain(&mut self, partitions: &[Partition], lost: bool) {
        let until = Instant::now() + self.seat.runner.options.drain;
        partitions
            .iter()
            .filter_map(|partition| self.partitions.get(partition))
            .for_each(|owned| owned.drain.cancel());
        for partition in partitions {
            self.term.beat.touch();
            let Some(owned) = self.partitions.get_mut(partition) else {
                continue;
            };
            // Another member already handles lost partitions. The inbox ensures that an event still
            // takes effect once.
            let patience = if lost {
                Duration::ZERO
            } else {
                until.saturating_duration_since(Instant::now())
            };
            let task = &mut owned.task;
            let ended = self
                .runtime
                .block_on(async { tokio::time::timeout(patience, &mut *task).await.is_ok() });
            if !ended {
                tracing::warn!(
                    subscriber = self.seat.runner.name,
                    ?partition,
                    lost,
                    "handlers have not ended in time: they are rolled back"
                );
                task.abort();
                if self
                    .runtime
                    .block_on(async { tokio::time::timeout(ABORT_PATIENCE, task).await.is_err() })
                {
                    tracing::error!(
                        subscriber = self.seat.runner.name,
                        ?partition,
                        "a handler blocks its thread: it cannot be aborted, and its partition is \
                         given up without it"
                    );
                }
            }
        }
        if !lost {
            self.commit_last(partitions);
        }
        partitions
            .iter()
            .for_each(|partition| drop(self.partitions.remove(partition)));
        self.out_of_range
            .retain(|(partition, _)| !partitions.contains(partition));
    }

    /// Restarts partitions whose next record was removed, and reports the missing records. A
    /// partition for which no broker responds stays in the list.
    fn restart_out_of_range(&mut self) {
        let subscriber = &self.seat.runner.name;
        let statistics = &self.seat.runner.statistics;
        self.out_of_range.retain(|(partition, next)| {
            let restarted = match self.member.restart(partition, *next) {
                Ok(restarted) => restarted,
                Err(error) => {
                    tracing::warn!(
                        subscriber,
                        ?partition,
                        %error,
                        "a partition whose next record was removed cannot be read again yet"
                    );
                    return true;
                }
            };
            let (topic, number, from) = (&*partition.topic, partition.number, restarted.from);
            match restarted.gap {
                Gap::None => tracing::debug!(
                    subscriber,
                    topic,
                    partition = number,
                    from,
                    "a partition is read again"
                ),
                Gap::Removed(records) => {
                    if let Some(owned) = self.partitions.get(partition) {
                        owned.progress.watermark().skip_to(from);
                    }
                    statistics.add_removed(topic, records.unsigned_abs());
                    tracing::warn!(
                        subscriber,
                        topic,
                        partition = number,
                        committed = next,
                        from,
                        records,
                        "records were removed from the topic before this group read them, by its \
                         retention or by hand: they are not handled; raise retention.ms or \
                         retention.bytes of the topic, and restore the events from their \
                         publisher's outbox"
                    );
                }
                Gap::CutOff(offsets) => tracing::warn!(
                    subscriber,
                    topic,
                    partition = number,
                    committed = next,
                    from,
                    offsets,
                    "a partition ends before the offset of this group: its topic was created \
                     again, or its log was cut off; it is read from its beginning"
                ),
            }
            false
        });
    }

    /// Updates the statistics of each partition.
    fn tell(&self) {
        let of = |(partition, owned): (&Partition, &Owned)| {
            let watermark = owned.progress.watermark();
            let (unfinished, position) = (watermark.unfinished() as u64, watermark.position());
            drop(watermark);
            let lag = self
                .member
                .end_of(partition)
                .and_then(|end| match position {
                    _ if end.is_reached => Some(unfinished),
                    Some(position) => {
                        Some(unfinished.max(u64::try_from(end.offset - position).unwrap_or(0)))
                    }
                    None => None,
                });
            PartitionStatistics::new(
                partition,
                lag,
                unfinished,
                owned.progress.parked.load(Ordering::Relaxed) as u64,
            )
        };
        self.seat
            .runner
            .statistics
            .set_partitions(self.partitions.iter().map(of).collect());
    }
}
