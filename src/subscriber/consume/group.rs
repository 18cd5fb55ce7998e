//! The polling thread: a member of the group and its partitions.
//!
//! Each partition has a task that handles its records, and a watermark that the task and the thread
//! share. The thread commits the watermarks once a second. When the group revokes a partition, the
//! thread waits for the partition's task to end, commits, and releases the partition.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    assignment_wait::Awaiting,
    partition::{PartitionTask, Progress},
    supervision::Term,
    topic_role::Source,
    work_item::PartitionContext,
};
use crate::{
    kafka::{
        Change, Committed, Feed, Gap, Known, Member, MemberError, Membership, Partition, Settings,
    },
    subscriber::{
        PartitionStatistics,
        attempt::Runner,
        deployment::instances::Registry,
        failure::{dead_letter::origin_of, parked::ParkedEvents},
        offsets::{metadata::OffsetMetadata, start_offsets::StartOffsets, watermark::Watermark},
        run::START_PAUSE,
        startup::leftovers::report_abandoned,
    },
};

/// Maximum delay until the thread notices that it must stop or commit.
const POLL: Duration = Duration::from_millis(100);

/// Interval between commits of all offsets, including unchanged ones, because a commit may be lost
/// without an error.
const RECOMMIT_INTERVAL: Duration = Duration::from_secs(30);

/// Time within which an aborted task should end. A task that blocks its thread does not notice the
/// abort, and the group must not wait for it.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// Time for which the last commit of a partition is retried. The next owner of the partition starts
/// from it.
const LAST_COMMIT_PATIENCE: Duration = Duration::from_secs(5);

/// Everything that the successive members of a subscriber share.
pub(crate) struct Seat {
    pub(crate) settings: Settings,
    pub(crate) membership: Membership,
    pub(crate) runner: Arc<Runner>,
    pub(crate) parked_events: Option<Arc<ParkedEvents>>,
    pub(crate) registry: Option<Arc<Registry>>,
    /// Each topic, with its role.
    pub(crate) topics: HashMap<String, Source>,
    /// Subscribed topics that exist already.
    pub(crate) found: Vec<String>,
    /// Topics of the group whose origin is not subscribed.
    pub(crate) abandoned: Vec<String>,
    /// Topics at whose end a new group starts.
    pub(crate) from_end: Vec<String>,
}

/// The polling thread's state: the member and its partitions.
pub(crate) struct Owner {
    member: Member,
    seat: Arc<Seat>,
    term: Arc<Term>,
    beginning: StartOffsets,
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
    /// The offset that the member started from, if it is known.
    began: Option<i64>,
}

impl Owner {
    pub(crate) fn new(member: Member, seat: Arc<Seat>, term: Arc<Term>, runtime: Handle) -> Self {
        Self {
            member,
            seat,
            term,
            beginning: StartOffsets::default(),
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
                break Err(format!(
                    "the task of partition {} of topic {} panicked",
                    partition.number, partition.topic
                )
                .into());
            }
            self.report_wait();
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

    /// Determines the start offsets before the first partition is taken. Without them, the member
    /// would start at the beginning of the topics.
    fn look_where_to_begin(&mut self, stop: &CancellationToken) {
        while !self.seat.from_end.is_empty() && !stop.is_cancelled() && !self.term.is_over() {
            match StartOffsets::at_the_ends(&self.member, &self.seat.from_end) {
                Ok(beginning) => {
                    self.beginning = beginning;
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        subscriber = self.seat.runner.name,
                        error,
                        "the start offsets of the group cannot be read yet"
                    );
                    std::thread::sleep(START_PAUSE);
                }
            }
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
                            error,
                            "revoked partitions cannot be released"
                        );
                    }
                }
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

    /// Starts a task for each assigned partition.
    fn take(&mut self, partitions: &[Partition]) -> Result<(), String> {
        let known = self.member.committed(partitions).unwrap_or_else(|error| {
            // librdkafka fetches the offsets again itself. Without the metadata, events that are
            // finished beyond the first unfinished one are handled again.
            tracing::warn!(
                subscriber = self.seat.runner.name,
                error,
                "the committed offsets cannot be read; finished events may be handled again"
            );
            Known::default()
        });
        let mut known = known;
        self.beginning.has_begun(&known.committed);
        let ends = self
            .beginning
            .ends(&self.seat.runner.name, &self.member, &known.never);
        // Committed before anything is read, so that a later member, for example after a crash,
        // starts at the same offset and not at a later end.
        let begins = self.member.commit(&ends, true);
        known.committed.extend(ends.iter().cloned());
        for feed in self.member.take(partitions, &known)? {
            let committed = known
                .committed
                .iter()
                .find(|committed| committed.partition == feed.partition);
            self.start(feed, committed);
        }
        match begins {
            Ok(()) => self.beginning.has_begun(&ends),
            Err(error) => {
                tracing::warn!(
                    subscriber = self.seat.runner.name,
                    %error,
                    "the start offsets of the group are not committed yet"
                );
                for end in &ends {
                    if let Some(owned) = self.partitions.get_mut(&end.partition) {
                        owned.committed = None;
                    }
                }
            }
        }
        self.seat.runner.statistics.joined();
        // A rebalance that does not affect this member assigns no partitions.
        if !partitions.is_empty() {
            let list: Vec<String> = partitions
                .iter()
                .map(|partition| format!("{}/{}", partition.topic, partition.number))
                .collect();
            tracing::info!(
                subscriber = self.seat.runner.name,
                partitions = list.join(" "),
                "partitions assigned"
            );
        }
        Ok(())
    }

    fn start(&mut self, feed: Feed, committed: Option<&Committed>) {
        let partition = feed.partition.clone();
        let restored = committed.map_or_else(OffsetMetadata::default, |committed| {
            OffsetMetadata::decode(&committed.metadata, committed.offset).unwrap_or_else(
                |foreign| {
                    tracing::warn!(
                        subscriber = self.seat.runner.name,
                        ?partition,
                        metadata = committed.metadata,
                        "{foreign}: it is ignored"
                    );
                    OffsetMetadata::default()
                },
            )
        });
        let progress = Arc::new(Progress::new(Watermark::new(
            committed.map(|committed| committed.offset),
            restored,
        )));
        let drain = self.term.drain();
        let source = self
            .seat
            .topics
            .get(&*partition.topic)
            .copied()
            .unwrap_or_default();
        let context = PartitionContext {
            runner: self.seat.runner.clone(),
            parked_events: self.seat.parked_events.clone(),
            registry: self.seat.registry.clone(),
            partition: partition.clone(),
            source,
            comes_back: origin_of(&partition.topic, &self.seat.runner.name) != &*partition.topic,
            drain: drain.clone(),
        };
        let task = PartitionTask::new(feed, context, progress.clone());
        let task = self.runtime.spawn(self.term.clone().bound(task.run()));
        let committed = committed.map(|committed| (committed.offset, committed.metadata.clone()));
        let began = committed.as_ref().map(|(offset, _)| *offset);
        self.partitions.insert(
            partition,
            Owned {
                progress,
                drain,
                task,
                committed,
                began,
            },
        );
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
                        error,
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

    /// Makes the next commit include all partitions, even unchanged ones.
    fn recommit(&mut self) {
        self.committed_all = Instant::now();
        self.partitions
            .values_mut()
            .for_each(|owned| owned.committed = None);
    }

    /// Commits the positions that have changed. Does not wait for the result.
    fn commit(&mut self) {
        if self.member.has_failed_commit() || self.committed_all.elapsed() > RECOMMIT_INTERVAL {
            self.recommit();
        }
        let mut commits = self.positions(None);
        commits.retain(|(_, is_changed)| *is_changed);
        let commits: Vec<Committed> = commits.into_iter().map(|(commit, _)| commit).collect();
        for commit in &commits {
            if let Some(owned) = self.partitions.get_mut(&commit.partition) {
                owned.committed = Some((commit.offset, commit.metadata.clone()));
            }
        }
        if let Err(error) = self.member.commit(&commits, false) {
            tracing::warn!(subscriber = self.seat.runner.name, %error, "offsets are not committed");
            for commit in commits {
                if let Some(owned) = self.partitions.get_mut(&commit.partition) {
                    owned.committed = None;
                }
            }
        }
    }

    /// Commits the positions of revoked partitions, even unchanged ones, because an earlier commit
    /// may have failed without an error. A temporary error is retried.
    fn commit_last(&self, partitions: &[Partition]) {
        let commits: Vec<Committed> = self
            .positions(Some(partitions))
            .into_iter()
            .map(|(commit, _)| commit)
            .collect();
        if let Err(error) = self.member.commit_within(&commits, LAST_COMMIT_PATIENCE) {
            tracing::warn!(
                subscriber = self.seat.runner.name,
                %error,
                partitions = commits.len(),
                "the last offsets are not committed: the next member handles some events again"
            );
        }
    }

    /// Returns the positions of these partitions, or of all, and whether each differs from the last
    /// commit.
    fn positions(&self, only: Option<&[Partition]>) -> Vec<(Committed, bool)> {
        let mut positions = Vec::new();
        for (partition, owned) in &self.partitions {
            if only.is_some_and(|only| !only.contains(partition)) {
                continue;
            }
            let watermark = owned.progress.watermark();
            let Some(offset) = watermark.position() else {
                continue;
            };
            let metadata = watermark.finished_beyond().encode(offset);
            drop(watermark);
            let is_changed = owned
                .committed
                .as_ref()
                .is_none_or(|(at, with)| *at != offset || *with != metadata);
            positions.push((
                Committed {
                    partition: partition.clone(),
                    offset,
                    metadata,
                },
                is_changed,
            ));
        }
        positions
    }
}
