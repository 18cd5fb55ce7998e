//! Supervision of the polling thread: one member after the other, until the subscriber stops or
//! fails with an error that another member would get too.
//!
//! librdkafka waits by the wall clock. If that clock is set back, a call that should take 100 ms
//! may take hours, and the member leaves its group without an error. Each step of the thread is
//! bounded and touches a heartbeat, so a thread without a heartbeat hangs in such a call. It is
//! then left behind with its member and replaced by a new one, whose client starts with the current
//! clock.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    group::{Owner, Seat},
    missing_topics,
};
use crate::{
    kafka::{ASK_TIMEOUT, Beat, Member, MemberError, OVERDUE},
    subscriber::{
        run::{RunError, pause},
        telemetry::log_limit::LogLimit,
    },
};

/// Interval between checks of the thread's heartbeat.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time for which the brokers may keep an instance id after its process was killed (KIP-848). Their
/// session time-out is 45 s by default and 60 s at most (`group.consumer.max.session.timeout.ms`).
/// An id that is kept for longer belongs to a running process.
const RELEASE_LIMIT: Duration = Duration::from_secs(120);

/// Time within which aborted tasks should end.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// The term of one member, shared by its thread, its tasks and its supervisor.
pub(crate) struct Term {
    pub(crate) beat: Beat,
    /// Cancelled when the member is replaced, so that its tasks end.
    over: CancellationToken,
    /// Cancelled when the tasks have not ended in time.
    cut: CancellationToken,
    tasks: watch::Sender<usize>,
}

impl Term {
    fn new() -> Self {
        Self {
            beat: Beat::default(),
            over: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: watch::Sender::new(0),
        }
    }

    /// Returns `true` if another member takes over the partitions.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Returns a token that ends the task of a partition. It is cancelled with the term.
    pub(crate) fn drain(&self) -> CancellationToken {
        self.over.child_token()
    }

    /// Runs a task within the term.
    pub(crate) async fn bound(self: Arc<Self>, task: impl Future<Output = ()>) {
        struct Counted(Arc<Term>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.tasks.send_modify(|tasks| *tasks -= 1);
            }
        }
        self.tasks.send_modify(|tasks| *tasks += 1);
        let counted = Counted(self);
        tokio::select! {
            () = counted.0.cut.cancelled() => {}
            () = task => {}
        }
    }

    /// Ends the tasks without their thread. Tasks that do not end in time are aborted, which rolls
    /// back their transactions.
    async fn end(&self, drain: Duration) {
        self.over.cancel();
        let mut tasks = self.tasks.subscribe();
        if timeout(drain, tasks.wait_for(|tasks| *tasks == 0))
            .await
            .is_err()
        {
            self.cut.cancel();
            let _ = timeout(ABORT_PATIENCE, tasks.wait_for(|tasks| *tasks == 0)).await;
        }
    }
}

/// Outcome of a member's term.
#[derive(Debug)]
enum Ended {
    Stopped,
    Hung,
    Unreleased,
    TopicReplaced(String),
}

/// Handles events with one member after the other until the subscriber stops.
///
/// # Errors
///
/// Returns [`RunError::Kafka`] if a new member would fail too.
pub(crate) async fn serve(seat: Arc<Seat>, stop: &CancellationToken) -> Result<(), RunError> {
    let mut refusals = Refusals::default();
    loop {
        let began = Instant::now();
        match serve_once(&seat, stop).await? {
            Ended::Stopped => return Ok(()),
            _ if stop.is_cancelled() => return Ok(()),
            Ended::Hung => seat
                .runner
                .statistics
                .starting("its Kafka client hung and is replaced".into()),
            Ended::TopicReplaced(topic) => seat.runner.statistics.starting(format!(
                "topic `{topic}` was deleted and created again, and its member is replaced"
            )),
            Ended::Unreleased => {
                refusals.add(&seat, began)?;
                if !pause(stop).await {
                    return Ok(());
                }
            }
        }
    }
}

/// Consecutive rejections of an instance id that the brokers keep for another member.
#[derive(Debug, Default)]
struct Refusals {
    since: Option<Instant>,
    reports: LogLimit,
}

impl Refusals {
    /// Adds a rejection of a member that began at `began`.
    ///
    /// # Errors
    ///
    /// Returns [`RunError::Kafka`] if the id has been kept for too long.
    fn add(&mut self, seat: &Seat, began: Instant) -> Result<(), RunError> {
        let id = seat.membership.instance.as_deref().unwrap_or_default();
        let now = Instant::now();
        if now - began > RELEASE_LIMIT {
            // The process was a member in the meantime.
            *self = Self::default();
        }
        let waited = now - *self.since.get_or_insert(began);
        if waited > RELEASE_LIMIT {
            return Err(RunError::Kafka(format!(
                "the brokers have kept the instance id `{id}` for another member for {} s: give \
                 each process an instance id of its own, or start this one again once the other \
                 has ended",
                waited.as_secs()
            )));
        }
        let reason =
            format!("the brokers keep the instance id `{id}` for a member that has not left");
        if self.reports.admit(now.into_std()).is_some() {
            tracing::warn!(
                subscriber = seat.runner.name,
                waited = waited.as_secs(),
                limit = RELEASE_LIMIT.as_secs(),
                "{reason}: its process was killed, or runs elsewhere; the subscriber waits for it"
            );
        }
        seat.runner.statistics.starting(reason);
        Ok(())
    }
}

/// Handles events with one member.
async fn serve_once(seat: &Arc<Seat>, stop: &CancellationToken) -> Result<Ended, RunError> {
    let (term, options) = (Arc::new(Term::new()), &seat.runner.options);
    let topics: Vec<&str> = seat.topics.keys().map(String::as_str).collect();
    let member = Member::join(
        &seat.settings,
        &seat.membership,
        &topics,
        seat.topic_ids.clone(),
        term.beat.clone(),
    )
    .map_err(|error| RunError::Kafka(error.to_string()))?;
    let lookout = member.lookout();
    let (ended, mut end) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("tidings-subscriber".into())
        .spawn({
            let (owner, stop) = (
                Owner::new(member, seat.clone(), term.clone(), Handle::current()),
                stop.clone(),
            );
            move || {
                let _ = ended.send(owner.run(&stop));
            }
        });
    thread.map_err(|error| RunError::Kafka(format!("the thread cannot start: {error}")))?;
    let mut looking = std::pin::pin!(missing_topics::look_for_topics(lookout, seat));
    let limit = options.drain.max(ASK_TIMEOUT) + OVERDUE;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut count, mut moved) = (term.beat.count(), Instant::now());
    loop {
        tokio::select! {
            biased;
            end = &mut end => return of_thread(end, seat),
            _ = looks.tick() => {}
            never = &mut looking => match never {},
        }
        if term.beat.count() != count {
            (count, moved) = (term.beat.count(), Instant::now());
        } else if moved.elapsed() >= limit {
            tracing::error!(
                subscriber = seat.runner.name,
                seconds = moved.elapsed().as_secs(),
                "the Kafka client of the subscriber has not returned (its waits depend on the \
                 wall clock: was the clock set back?): its partitions are given up and a new \
                 member joins"
            );
            term.end(options.drain).await;
            return Ok(Ended::Hung);
        }
    }
}

/// Converts the result of the polling thread.
fn of_thread(
    end: Result<Result<(), MemberError>, oneshot::error::RecvError>,
    seat: &Seat,
) -> Result<Ended, RunError> {
    match end {
        Ok(Ok(())) => Ok(Ended::Stopped),
        Ok(Err(MemberError::Unreleased)) => Ok(Ended::Unreleased),
        Ok(Err(MemberError::TopicReplaced(topic))) => {
            tracing::warn!(
                subscriber = seat.runner.name,
                topic,
                "the topic was deleted and created again: a new member joins and reads it from \
                 its beginning"
            );
            Ok(Ended::TopicReplaced(topic))
        }
        Ok(Err(error @ MemberError::Fenced)) => Err(RunError::Kafka(format!(
            "{error}, `{}`: give each process an instance id of its own",
            seat.membership.instance.as_deref().unwrap_or_default()
        ))),
        Ok(Err(error)) => Err(RunError::Kafka(error.to_string())),
        Err(_) => Err(RunError::Kafka("its thread panicked".into())),
    }
}
