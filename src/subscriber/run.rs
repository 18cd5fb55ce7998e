//! The run of a subscriber from its start to its end.
//!
//! The start checks the database (`startup/database_check.rs`) and the topics
//! (`startup/topics.rs`), and registers the instance. Then one thread polls the group and owns its
//! partitions (`consume/group.rs`), under supervision (`consume/supervision.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    Bus, DeadLetters, Statistics, SubscriberState,
    attempt::{Runner, failure_log::FailureLog, pause::Pause},
    clock::Clock,
    companion::{self, Companions},
    consume::{group::Seat, supervision::serve, topic_role::Source},
    control::Control,
    deployment::{instances::Registry, unknown_types::UnknownTypes},
    failure::{dead_letter::DeadLetterSink, parked::ParkedEvents, redrive::redrive_topic},
    handler::router::{Core, HandlerService},
    options::Options,
    telemetry::log_limit::LogLimit,
};
use crate::{
    kafka::Membership,
    postgres::{errors::with_causes, session_fault},
    task::OwnedTask,
};

/// Interval between deletions of old rows in the inbox. Small, frequent deletes let Postgres reuse
/// the space.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// Pause between two attempts at a step that must succeed before the subscriber can start.
pub(crate) const START_PAUSE: Duration = Duration::from_secs(1);

/// Waits for [`START_PAUSE`]. Returns `false` if the subscriber is shut down in the meantime.
pub(crate) async fn pause(stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(START_PAUSE))
        .await
        .is_some()
}

/// Error that prevents a subscriber from running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The subscriber cannot work as configured: its settings are invalid, or its database lacks
    /// tables or rights.
    #[error("the subscriber cannot run: {}", .0.join("; "))]
    Settings(Vec<String>),
    /// Kafka permanently rejects the subscriber, for example because another process uses its
    /// instance id or because a permission is missing.
    #[error("kafka does not accept the subscriber: {0}")]
    Kafka(String),
}

/// Sets the state to stopped when the run ends for any reason.
struct Stopped(Statistics);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.set_state(SubscriberState::Stopped);
    }
}

/// A subscriber with validated settings and bound handlers.
pub(crate) struct Plan {
    pub(crate) bus: Bus,
    pub(crate) name: String,
    /// Each topic, with its role.
    pub(crate) topics: HashMap<String, Source>,
    /// Topics that were configured for aggregates.
    pub(crate) named_topics: HashMap<&'static str, Vec<String>>,
    /// True if there is an inbox, in a database or on the in-memory bus.
    pub(crate) has_inbox: bool,
    pub(crate) core: Arc<Core>,
    pub(crate) service: HandlerService,
    pub(crate) options: Options,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) code_version: Option<String>,
    pub(crate) instance: Option<String>,
    pub(crate) broker_side: bool,
    pub(crate) from_end: bool,
    pub(crate) statistics: Statistics,
    pub(crate) pause: Arc<Pause>,
    /// Sagas.
    pub(crate) companions: Companions,
    pub(crate) clock: Clock,
    /// Receiver of letters on the in-memory bus. `None` means Kafka.
    pub(crate) dead_letter_sink: Option<Box<dyn DeadLetterSink>>,
}

/// Topics that the start has found.
struct FoundTopics {
    /// Subscribed topics that exist already.
    found: Vec<String>,
    /// Topics of the group whose origin is not subscribed.
    abandoned: Vec<String>,
    /// Topics at whose end a new group starts.
    from_end: Vec<String>,
}

impl Plan {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), RunError> {
        let faults: Vec<String> = self
            .bus
            .settings()
            .faults()
            .into_iter()
            .map(|fault| format!("{}: {}", fault.property, fault.reason))
            .collect();
        if !faults.is_empty() {
            return Err(RunError::Settings(faults));
        }
        let _stopped = Stopped(self.statistics.clone());
        let stop = shutdown.child_token();
        let _stop_when_dropped = stop.clone().drop_guard();
        self.report_start();
        if !self.wait_for_database(&stop).await? || !self.companions.admit(&stop).await? {
            return Ok(());
        }
        let inbox = self.core.inbox.as_ref();
        let control = inbox.map(|inbox| Arc::new(Control::new(inbox, &self.pause)));
        if let Some(control) = &control
            && !control.is_known(&stop).await
        {
            return Ok(());
        }
        let _watches = control
            .clone()
            .map(|control| OwnedTask::spawn(control.watch(stop.clone())));
        if self.topics.is_empty() {
            self.run_companions(&stop).await;
            return Ok(());
        }
        let Some(topics) = self.find_topics(&stop).await else {
            return Ok(());
        };
        self.report_parked_elsewhere().await;
        let Some(registry) = self.register(&stop).await? else {
            return Ok(());
        };
        self.serve(topics, registry, control, &stop).await
    }

    /// Finds the topics to read and creates the retry topics. Returns `None` if the subscriber is
    /// shut down in the meantime.
    async fn find_topics(&mut self, stop: &CancellationToken) -> Option<FoundTopics> {
        let names = self.wait_for_topic_names(stop).await?;
        let found = self.look_for_topics(&names).await;
        // `from_end` does not apply to the group's own topics: their records are meant for this
        // group, no matter when it finds the topics.
        let from_end: Vec<String> = self
            .topics
            .keys()
            .filter(|_| self.from_end)
            .cloned()
            .collect();
        let redriven: Vec<_> = self
            .topics
            .iter()
            .map(|(topic, source)| (redrive_topic(topic, &self.name), *source))
            .collect();
        if !self.make_retry_topics(stop).await {
            return None;
        }
        // Redrive topics may not exist yet. They are created by the first replay and found then.
        self.topics.extend(redriven);
        let abandoned = self.read_earlier_retry_topics(&names);
        Some(FoundTopics {
            found,
            abandoned,
            from_end,
        })
    }

    /// Handles events as members of the group until `stop` is cancelled, next to the companions,
    /// the registration and the retention of the inbox.
    async fn serve(
        mut self,
        found: FoundTopics,
        registry: Option<Arc<Registry>>,
        control: Option<Arc<Control>>,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        let registered = registry
            .clone()
            .map(|registry| OwnedTask::spawn(registry.keep(self.pause.clone(), stop.clone())));
        let membership = Membership {
            group: self.name.clone(),
            instance: self.instance.clone(),
            broker_side: self.broker_side,
        };
        let retention = self
            .core
            .inbox
            .clone()
            .map(|inbox| OwnedTask::spawn(forget_old(inbox, stop.clone())));
        let parked_events = self
            .core
            .inbox
            .as_ref()
            .map(|inbox| Arc::new(ParkedEvents::new(inbox)));
        let companions = self.companions.start(stop);
        let settings = self.bus.settings().clone();
        let (topics, drain) = (std::mem::take(&mut self.topics), self.options.drain);
        let runner = Arc::new(self.into_runner());
        runner.statistics.starting("it joins its group".into());
        let seat = Seat {
            settings,
            membership,
            runner,
            parked_events,
            control,
            registry,
            topics,
            found: found.found,
            abandoned: found.abandoned,
            from_end: found.from_end,
            beginning: Mutex::default(),
            topic_ids: Arc::default(),
        };
        let result = serve(Arc::new(seat), stop).await;
        drop(retention);
        stop.cancel();
        companion::end(companions, drain).await;
        companion::end(registered.into_iter().collect(), drain).await;
        result
    }

    /// Runs the sagas alone. No topic is read: a saga that waits for no event needs only its timer
    /// and no Kafka.
    async fn run_companions(&mut self, stop: &CancellationToken) {
        let running = self.companions.start(stop);
        self.statistics.set_state(SubscriberState::Running);
        stop.cancelled().await;
        companion::end(running, self.options.drain).await;
    }

    /// Returns the runner with everything that attempts need.
    pub(crate) fn into_runner(self) -> Runner {
        let has_inbox = self.has_inbox;
        let concurrency = self.options.concurrency(has_inbox);
        if let Some(inbox) = &self.core.inbox
            && (inbox.pool.options().get_max_connections() as usize) < concurrency / 4
        {
            let connections = inbox.pool.options().get_max_connections();
            tracing::warn!(
                subscriber = self.name,
                connections,
                concurrency,
                "most handlers wait for a connection: the pool has less than a quarter as many \
                 connections as there are handlers at once"
            );
        }
        let permits = Arc::new(Semaphore::new(concurrency));
        self.statistics.know_handlers(&permits, concurrency);
        Runner {
            permits,
            escalation: self.options.escalation(has_inbox),
            pause: self.pause,
            unreadable: LogLimit::default(),
            clock: self.clock,
            failures: FailureLog::default(),
            unknown_types: UnknownTypes::default(),
            waiting: LogLimit::default(),
            companions: self.companions,
            name: self.name,
            core: self.core,
            service: self.service,
            options: self.options,
            dead_letters: self.dead_letters,
            dead_letter_sink: self.dead_letter_sink.unwrap_or_else(|| Box::new(self.bus)),
            statistics: self.statistics,
        }
    }
}

/// Deletes old rows of the inbox at an interval until the subscriber stops.
async fn forget_old(inbox: Arc<super::inbox::OpenInbox>, stop: CancellationToken) {
    loop {
        match inbox.forget_old().await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(
                consumer = inbox.consumer,
                rows,
                "old rows were deleted from the inbox"
            ),
            Err(error) => {
                session_fault::close_after(&error, &inbox.pool);
                tracing::warn!(
                    consumer = inbox.consumer,
                    error = with_causes(&error),
                    "old rows cannot be deleted from the inbox"
                );
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETENTION_INTERVAL) => {}
        }
    }
}
