//! A subscriber while it runs.
//!
//! One thread polls the group and owns its partitions: each has a task that handles it and a watermark that both can see. The thread commits what the watermarks say, once a
//! second; and when the group takes a partition away, it waits for the partition's task to end first, commits, and only then lets go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::attempt::Runner;
use super::awaiting::Awaiting;
use super::beginning::Beginning;
use super::builder::Beside;
use super::clock::Clock;
use super::dead_letters::{Letterbox, origin_of};
use super::detour::Detour;
use super::escalate::retry_topic;
use super::failure_log::FailureLog;
use super::finished::Finished;
use super::gate::Gate;
use super::left_behind::report_abandoned;
use super::log_limit::LogLimit;
use super::options::Options;
use super::partition::{PartitionTask, Progress};
use super::redrive::redrive_topic;
use super::registry::Registry;
use super::router::{Core, HandlerService};
use super::source::Source;
use super::unit::Site;
use super::unknown_types::UnknownTypes;
use super::watermark::Watermark;
use super::{Bus, DeadLetters, Escalation, PartitionStatistics, Statistics, SubscriberState};
use crate::kafka::{Change, Committed, Feed, Known, Member, Membership, Partition, TopicError, create_like, partitions_of, retention};
use crate::postgres::errors::with_causes;
use crate::postgres::session_fault;

/// The delay with which the thread notices that it shall end or commit.
const POLL: Duration = Duration::from_millis(100);

/// How long a task may take to end that was told to at once. One that blocks its thread does not hear it, and the group is not kept waiting for it.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// How often the inbox forgets what is old: small deletes often, so that their room is used again.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// How long between two tries at something the cluster must do before the subscriber can start.
pub(super) const START_PAUSE: Duration = Duration::from_secs(1);

/// Why a subscriber does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// What it was built from cannot work.
    #[error("the subscriber cannot run: {}", .0.join("; "))]
    Settings(Vec<String>),
    /// Kafka does not accept it, and will not later: fenced by another member of its instance id, or not allowed.
    #[error("kafka does not accept the subscriber: {0}")]
    Kafka(String),
}

/// Says that the subscriber has stopped, whatever ended it.
struct Stopped(Statistics);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.set_state(SubscriberState::Stopped);
    }
}

/// A subscriber whose parts are checked and bound.
pub(crate) struct Plan {
    pub(super) bus: Bus,
    pub(super) name: String,
    /// Each topic, and what it is read for.
    pub(super) topics: HashMap<String, Source>,
    pub(super) core: Arc<Core>,
    pub(super) service: HandlerService,
    pub(super) options: Options,
    pub(super) dead_letters: DeadLetters,
    pub(super) code_version: Option<String>,
    pub(super) instance: Option<String>,
    pub(super) broker_side: bool,
    pub(super) from_end: bool,
    pub(super) statistics: Statistics,
    /// What runs beside it.
    pub(super) beside: Vec<Beside>,
    pub(super) clock: Clock,
    /// Who takes letters, if not Kafka.
    pub(super) letterbox: Option<Box<dyn Letterbox>>,
}

impl Plan {
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<(), RunError> {
        let faults: Vec<String> =
            self.bus.settings().faults().into_iter().map(|fault| format!("{}: {}", fault.property, fault.reason)).collect();
        if !faults.is_empty() {
            return Err(RunError::Settings(faults));
        }
        let _stopped = Stopped(self.statistics.clone());
        let stop = shutdown.child_token();
        let _stop_when_dropped = stop.clone().drop_guard();
        if self.topics.is_empty() {
            self.run_beside(&stop).await;
            return Ok(());
        }
        self.look_for_topics().await;
        // Not of its own ones: what is sent there is meant for it, whenever it finds them.
        let from_end: Vec<String> = self.topics.keys().filter(|_| self.from_end).cloned().collect();
        let redriven: Vec<_> = self.topics.iter().map(|(topic, source)| (redrive_topic(topic, &self.name), *source)).collect();
        if !self.make_retry_topics(&stop).await {
            return Ok(());
        }
        // They need not exist: they are made when something is replayed, and found then.
        self.topics.extend(redriven);
        let Some(abandoned) = self.read_earlier_retry_topics(&stop).await else { return Ok(()) };
        self.report_parked_elsewhere().await;
        let Some(registry) = self.register(&stop).await? else { return Ok(()) };
        let registered = registry.clone().map(|registry| tokio::spawn(registry.keep(stop.clone())));
        let membership = Membership { group: self.name.clone(), instance: self.instance.clone(), broker_side: self.broker_side };
        let names: Vec<&str> = self.topics.keys().map(String::as_str).collect();
        let member = Member::join(self.bus.settings(), &membership, &names).map_err(RunError::Kafka)?;
        let retention = self.core.inbox.clone().map(|inbox| tokio::spawn(forget_old(inbox, stop.clone())));
        let detour = self.core.inbox.as_ref().map(|inbox| Arc::new(Detour::new(inbox)));
        let beside = self.start_beside(&stop);
        let (topics, drain) = (std::mem::take(&mut self.topics), self.options.drain);
        let runner = Arc::new(self.into_runner());
        let owner = Owner {
            member,
            runner,
            detour,
            registry,
            topics,
            abandoned,
            beginning: Beginning::default(),
            runtime: Handle::current(),
            partitions: HashMap::new(),
            awaiting: Awaiting::default(),
        };
        owner.runner.statistics.set_state(SubscriberState::Running);
        let (ended, end) = oneshot::channel();
        let thread = std::thread::Builder::new().name("tidings-subscriber".into()).spawn({
            let stop = stop.clone();
            move || {
                let _ = ended.send(owner.run(&from_end, &stop));
            }
        });
        thread.map_err(|error| RunError::Kafka(format!("no thread: {error}")))?;
        let result = end.await.unwrap_or_else(|_| Err("its thread panicked".into()));
        if let Some(retention) = retention {
            retention.abort();
        }
        stop.cancel();
        end_beside(beside, drain).await;
        end_beside(registered.into_iter().collect(), drain).await;
        result.map_err(RunError::Kafka)
    }

    /// Nothing is read: a saga that waits for no event needs its timer alone, and no Kafka.
    async fn run_beside(&mut self, stop: &CancellationToken) {
        let beside = self.start_beside(stop);
        self.statistics.set_state(SubscriberState::Running);
        stop.cancelled().await;
        end_beside(beside, self.options.drain).await;
    }

    fn start_beside(&mut self, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let Some(inbox) = &self.core.inbox else { return Vec::new() };
        let start = |task: Beside| tokio::spawn(task(inbox.pool.clone(), inbox.schema.clone(), stop.clone()));
        std::mem::take(&mut self.beside).into_iter().map(start).collect()
    }

    /// Says which topics are not there (they are waited for), and which keep records for longer than the inbox remembers.
    async fn look_for_topics(&self) {
        for topic in self.topics.keys() {
            if let Err(TopicError::Unknown(_)) = partitions_of(self.bus.settings(), topic).await {
                tracing::warn!(subscriber = self.name, topic, "the topic does not exist; it is read once it does");
                continue;
            }
            let Some(inbox) = &self.core.inbox else { continue };
            if let Some(retention) = retention(self.bus.settings(), topic).await.filter(|retention| *retention >= inbox.keep) {
                let keep = inbox.keep;
                tracing::warn!(
                    subscriber = self.name,
                    topic,
                    ?retention,
                    ?keep,
                    "the inbox forgets before the topic does: a replay of the topic takes effect again; raise `Inbox::keep`"
                );
            }
        }
    }

    /// Everything that attempts need.
    pub(super) fn into_runner(self) -> Runner {
        let has_inbox = self.core.inbox.is_some();
        let concurrency = self.options.concurrency(has_inbox);
        if let Some(inbox) = &self.core.inbox
            && (inbox.pool.options().get_max_connections() as usize) < concurrency / 4
        {
            let connections = inbox.pool.options().get_max_connections();
            tracing::warn!(
                subscriber = self.name,
                connections,
                concurrency,
                "most handlers wait for a connection: the pool has less than a quarter as many as there are handlers at once"
            );
        }
        let permits = Arc::new(Semaphore::new(concurrency));
        self.statistics.know_handlers(&permits, concurrency);
        Runner {
            permits,
            escalation: self.options.escalation(has_inbox),
            gate: Gate::open(),
            tally: Mutex::default(),
            tallying: AtomicBool::new(false),
            probe: tokio::sync::Mutex::new(()),
            probing: AtomicUsize::new(0),
            tripped: AtomicBool::new(false),
            unreadable: LogLimit::default(),
            clock: self.clock,
            failures: FailureLog::default(),
            unknown_types: UnknownTypes::default(),
            name: self.name,
            core: self.core,
            service: self.service,
            options: self.options,
            dead_letters: self.dead_letters,
            letterbox: self.letterbox.unwrap_or_else(|| Box::new(self.bus)),
            statistics: self.statistics,
        }
    }

    /// Makes the topics that retries wait in, and reads them too; false if the subscriber is shut down before they are there.
    async fn make_retry_topics(&mut self, stop: &CancellationToken) -> bool {
        let Escalation::RetryTopics(delays) = self.options.escalation(self.core.inbox.is_some()) else { return true };
        let origins: Vec<_> = self.topics.iter().map(|(topic, source)| (topic.clone(), *source)).collect();
        for (origin, source) in origins {
            for delay in &delays {
                let topic = retry_topic(&origin, &self.name, *delay);
                while let Err(error) = create_like(self.bus.settings(), &topic, &origin).await {
                    tracing::warn!(subscriber = self.name, %error, "a retry topic cannot be made yet");
                    tokio::select! {
                        () = stop.cancelled() => return false,
                        () = tokio::time::sleep(START_PAUSE) => {}
                    }
                }
                self.topics.insert(topic, source);
            }
        }
        true
    }
}

/// Waits for each within the drain timeout; what has not ended by then is rolled back.
async fn end_beside(beside: Vec<JoinHandle<()>>, drain: Duration) {
    for mut task in beside {
        if tokio::time::timeout(drain, &mut task).await.is_err() {
            task.abort();
        }
    }
}

/// The thread's own: the member and its partitions.
struct Owner {
    member: Member,
    runner: Arc<Runner>,
    detour: Option<Arc<Detour>>,
    registry: Option<Arc<Registry>>,
    topics: HashMap<String, Source>,
    /// Topics of the group whose origin is not subscribed.
    abandoned: Vec<String>,
    beginning: Beginning,
    runtime: Handle,
    partitions: HashMap<Partition, Owned>,
    awaiting: Awaiting,
}

/// A partition while it is ours.
struct Owned {
    progress: Arc<Progress>,
    drain: CancellationToken,
    task: JoinHandle<()>,
    committed: Option<(i64, String)>,
}

impl Owner {
    /// Polls until it is told to stop or Kafka says no; drains and leaves in either case.
    /// If the group has not yet begun, it does at the ends of the topics in `from_end`.
    fn run(mut self, from_end: &[String], stop: &CancellationToken) -> Result<(), String> {
        self.look_where_to_begin(from_end, stop);
        report_abandoned(&self.member, &self.runner.name, &self.abandoned);
        let mut next_commit = Instant::now() + self.runner.options.commit_interval;
        let result = loop {
            if stop.is_cancelled() {
                break Ok(());
            }
            if let Err(error) = self.poll_once() {
                break Err(error);
            }
            // A partition that nobody handles would look like one without events.
            if let Some((partition, _)) = self.partitions.iter().find(|(_, owned)| owned.task.is_finished()) {
                break Err(format!("the task of partition {} of topic {} panicked", partition.number, partition.topic));
            }
            self.report_wait();
            if Instant::now() >= next_commit {
                self.commit(None, false);
                self.tell();
                next_commit = Instant::now() + self.runner.options.commit_interval;
            }
        };
        let all: Vec<Partition> = self.partitions.keys().cloned().collect();
        self.drain(&all, false);
        self.tell();
        self.member.leave();
        result
    }

    fn report_wait(&mut self) {
        if self.awaiting.is_to_report(!self.partitions.is_empty(), Instant::now()) {
            tracing::info!(
                subscriber = self.runner.name,
                "no partition is assigned yet: the group waits for its other members, or for the session time-out of one that failed"
            );
        }
    }

    /// Before the first partition is taken: who does not know where to begin would begin at the beginning.
    fn look_where_to_begin(&mut self, from_end: &[String], stop: &CancellationToken) {
        while !from_end.is_empty() && !stop.is_cancelled() {
            match Beginning::at_the_ends(&self.member, from_end) {
                Ok(beginning) => {
                    self.beginning = beginning;
                    break;
                }
                Err(error) => {
                    tracing::warn!(subscriber = self.runner.name, error, "where the group begins is not known yet");
                    std::thread::sleep(START_PAUSE);
                }
            }
        }
    }

    fn poll_once(&mut self) -> Result<(), String> {
        for change in self.member.poll(POLL)? {
            match change {
                Change::Assigned(partitions) => self.take(&partitions)?,
                Change::Revoked { partitions, lost } => {
                    self.drain(&partitions, lost);
                    self.tell();
                    if let Err(error) = self.member.give_up(&partitions) {
                        tracing::warn!(subscriber = self.runner.name, error, "partitions cannot be given up");
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts a task for each partition that was assigned.
    fn take(&mut self, partitions: &[Partition]) -> Result<(), String> {
        let known = self.member.committed(partitions).unwrap_or_else(|error| {
            // librdkafka asks again by itself; what was finished beyond the gap is not known then, and handled again.
            tracing::warn!(subscriber = self.runner.name, error, "what is committed is not known; finished events may come again");
            Known::default()
        });
        let Known { mut committed, never } = known;
        self.beginning.has_begun(&committed);
        let ends = self.beginning.ends(&self.runner.name, &self.member, &never);
        // Before anything is read: a member that comes later, also one that comes after a crash, begins at the same place and not at a later end.
        let begins = self.member.commit(&ends, true);
        committed.extend(ends.iter().cloned());
        for feed in self.member.take(partitions, &committed)? {
            let committed = committed.iter().find(|committed| committed.partition == feed.partition);
            self.start(feed, committed);
        }
        match begins {
            Ok(()) => self.beginning.has_begun(&ends),
            Err(error) => {
                tracing::warn!(subscriber = self.runner.name, error, "where the group begins is not committed yet");
                for end in &ends {
                    if let Some(owned) = self.partitions.get_mut(&end.partition) {
                        owned.committed = None;
                    }
                }
            }
        }
        // A rebalance that changes nothing for this member assigns nothing.
        if !partitions.is_empty() {
            let list: Vec<String> = partitions.iter().map(|partition| format!("{}/{}", partition.topic, partition.number)).collect();
            tracing::info!(subscriber = self.runner.name, partitions = list.join(" "), "partitions taken");
        }
        Ok(())
    }

    fn start(&mut self, feed: Feed, committed: Option<&Committed>) {
        let partition = feed.partition.clone();
        let restored = committed.map_or_else(Finished::default, |committed| {
            Finished::decode(&committed.metadata, committed.offset).unwrap_or_else(|foreign| {
                tracing::warn!(subscriber = self.runner.name, ?partition, metadata = committed.metadata, "{foreign}: it is ignored");
                Finished::default()
            })
        });
        let progress = Arc::new(Progress::new(Watermark::new(committed.map(|committed| committed.offset), restored)));
        let drain = CancellationToken::new();
        let source = self.topics.get(&*partition.topic).copied().unwrap_or_default();
        let site = Site {
            runner: self.runner.clone(),
            detour: self.detour.clone(),
            registry: self.registry.clone(),
            partition: partition.clone(),
            source,
            comes_back: origin_of(&partition.topic, &self.runner.name) != &*partition.topic,
            drain: drain.clone(),
        };
        let task = PartitionTask::new(feed, site, progress.clone());
        let task = self.runtime.spawn(task.run());
        let committed = committed.map(|committed| (committed.offset, committed.metadata.clone()));
        self.partitions.insert(partition, Owned { progress, drain, task, committed });
    }

    /// Waits for what runs in these partitions, commits, and forgets them.
    fn drain(&mut self, partitions: &[Partition], lost: bool) {
        let until = Instant::now() + self.runner.options.drain;
        partitions.iter().filter_map(|partition| self.partitions.get(partition)).for_each(|owned| owned.drain.cancel());
        for partition in partitions {
            let Some(owned) = self.partitions.get_mut(partition) else { continue };
            // Lost: another member handles them already, and the inbox keeps both from having an effect.
            let patience = if lost { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
            let task = &mut owned.task;
            let ended = self.runtime.block_on(async { tokio::time::timeout(patience, &mut *task).await.is_ok() });
            if !ended {
                tracing::warn!(subscriber = self.runner.name, ?partition, lost, "handlers have not ended in time: they are rolled back");
                task.abort();
                if self.runtime.block_on(async { tokio::time::timeout(ABORT_PATIENCE, task).await.is_err() }) {
                    tracing::error!(
                        subscriber = self.runner.name,
                        ?partition,
                        "a handler blocks its thread: it cannot be ended, and its partition goes without it"
                    );
                }
            }
        }
        if !lost {
            self.commit(Some(partitions), true);
        }
        partitions.iter().for_each(|partition| drop(self.partitions.remove(partition)));
    }

    /// Tells how far each partition is.
    fn tell(&self) {
        let of = |(partition, owned): (&Partition, &Owned)| {
            let watermark = owned.progress.watermark();
            let (unfinished, position) = (watermark.unfinished() as u64, watermark.position());
            drop(watermark);
            let lag = self.member.end_of(partition).and_then(|end| match position {
                _ if end.is_reached => Some(unfinished),
                Some(position) => Some(unfinished.max(u64::try_from(end.offset - position).unwrap_or(0))),
                None => None,
            });
            PartitionStatistics::new(partition, lag, unfinished, owned.progress.detoured.load(Ordering::Relaxed) as u64)
        };
        self.runner.statistics.set_partitions(self.partitions.iter().map(of).collect());
    }

    /// Commits what has changed, in these partitions or in all.
    fn commit(&mut self, only: Option<&[Partition]>, wait: bool) {
        let mut commits = Vec::new();
        for (partition, owned) in &mut self.partitions {
            if only.is_some_and(|only| !only.contains(partition)) {
                continue;
            }
            let watermark = owned.progress.watermark();
            let Some(offset) = watermark.position() else { continue };
            let now = (offset, watermark.finished_beyond().encode(offset));
            drop(watermark);
            // When it is waited for, it says again what an earlier one may have failed to say.
            if wait || owned.committed.as_ref() != Some(&now) {
                commits.push(Committed { partition: partition.clone(), offset, metadata: now.1.clone() });
                owned.committed = Some(now);
            }
        }
        if let Err(error) = self.member.commit(&commits, wait) {
            tracing::warn!(subscriber = self.runner.name, error, "offsets are not committed");
            for commit in commits {
                if let Some(owned) = self.partitions.get_mut(&commit.partition) {
                    owned.committed = None;
                }
            }
        }
    }
}

/// Has the inbox forget what is old, until it is told to stop.
async fn forget_old(inbox: Arc<super::inbox::OpenInbox>, stop: CancellationToken) {
    loop {
        match inbox.forget_old().await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(consumer = inbox.consumer, rows, "the inbox forgot what is old"),
            Err(error) => {
                session_fault::close_after(&error, &inbox.pool);
                tracing::warn!(consumer = inbox.consumer, error = with_causes(&error), "the inbox does not forget what is old");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETENTION_INTERVAL) => {}
        }
    }
}
