//! Look-up of topics: their existence, their number of partitions, and whether the cluster answers.
//!
//! An event whose topic was not used before waits for one answer. If the topic is unusable, its
//! events are parked ([`TopicFaults`]), and it is looked up again in the background.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    EventPublisher,
    backpressure::Resolved,
    creation_budget::{CreationBudget, MayCreate},
    topic_faults::TopicFaults,
};
use crate::{
    kafka::{Creation, Directory, TopicError, Topics},
    relay::{
        Delivery, RelayOptions, TopicOptions,
        error::Interruption,
        monitor::{
            metrics::{Component, Reason, RelayMetrics},
            readiness::Cause,
        },
    },
};

/// Number of requests to a cluster with the same clients before they are replaced. A request takes
/// up to ten seconds.
const REACH_TRIES: u32 = 3;

/// Interval between two requests to a cluster that does not answer.
const OUTAGE_RETRY: Duration = Duration::from_secs(2);

/// Time for which a list of all topics is valid, and minimum interval between two such lists. The
/// list may be long.
const SURVEY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Maximum number of topics that are looked up in the background at a time.
const LOOKS_AT_A_TIME: usize = 100;

/// Look-ups of topics, and the unusable topics.
pub(super) struct TopicLookup {
    asker: Asker,
    survey: Option<(Instant, HashMap<String, i32>)>,
    pub(super) faults: TopicFaults,
    standing: Option<Reason>,
    /// Answers of the look-ups in the background.
    looks: Option<mpsc::Receiver<Looked>>,
}

/// An answer about a topic.
pub(crate) struct Looked {
    topic: String,
    answer: Result<i32, TopicError>,
    /// All topics, if a list was requested.
    survey: Option<HashMap<String, i32>>,
}

/// Looks up topics, and creates them if the options allow it.
#[derive(Clone)]
struct Asker {
    directory: Arc<Directory>,
    create: TopicOptions,
    create_max_per_minute: u32,
    budget: Arc<Mutex<CreationBudget>>,
    may_be_compacted: bool,
}

impl Asker {
    /// Looks up a topic once. `waits` means that an event waits for the answer.
    async fn ask(&self, topic: &str, waits: bool) -> Result<i32, TopicError> {
        let mut answer = self.directory.partitions(topic).await;
        if matches!(answer, Err(TopicError::Unknown(_))) && self.create.create {
            answer = self.create(topic, waits).await;
        }
        self.accepted(topic, answer?).await
    }

    async fn create(&self, topic: &str, waits: bool) -> Result<i32, TopicError> {
        let may_create = self
            .budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(waits);
        let reason = match may_create {
            MayCreate::Yes => {
                let how = Creation {
                    partitions: self.create.partitions,
                    replication: self.create.replication,
                    config: &[],
                };
                return self.directory.create(topic, how).await;
            }
            MayCreate::Beside => "it is being created".to_owned(),
            MayCreate::No => format!(
                "{} topics were created within a minute, which is as many as \
                 topics.create_max_per_minute allows; it is created in its turn",
                self.create_max_per_minute
            ),
        };
        Err(TopicError::NotYet {
            topic: topic.to_owned(),
            reason,
        })
    }

    async fn accepted(&self, topic: &str, partitions: i32) -> Result<i32, TopicError> {
        if !self.may_be_compacted {
            self.directory.refuse_compacted(topic).await?;
        }
        Ok(partitions)
    }

    /// Returns the first answer that is not an outage, for an event that waits for it. Lists all
    /// topics first if `survey` is set.
    async fn until_answered(self, topic: String, survey: bool, observer: RelayMetrics) -> Resolved {
        // Stands as long as this future lives. A session that drops it raises its own reason.
        let mut standing: Option<Reason> = None;
        let survey = if survey {
            self.directory.all().await.ok()
        } else {
            None
        };
        loop {
            let listed = survey.as_ref().and_then(|all| all.get(&topic));
            let answer = match listed {
                Some(partitions) => self.accepted(&topic, *partitions).await,
                None => self.ask(&topic, true).await,
            };
            let Err(error @ TopicError::Unreachable(_)) = answer else {
                return Resolved::Topic(Looked {
                    topic,
                    answer,
                    survey,
                });
            };
            tracing::warn!("{error}; the relay waits, nothing is lost");
            match &standing {
                Some(reason) => reason.set(error.to_string()),
                None => standing = Some(observer.hold(Component::Kafka, error.to_string())),
            }
            sleep(OUTAGE_RETRY).await;
        }
    }
}

impl TopicLookup {
    pub(super) fn new(options: &RelayOptions) -> Self {
        let limits = options.topic_limits;
        let asker = Asker {
            directory: Arc::new(Directory::new(&options.kafka)),
            create: options.topics.clone(),
            create_max_per_minute: limits.create_max_per_minute,
            budget: Arc::new(Mutex::new(CreationBudget::new(
                limits.create_max_per_minute,
            ))),
            may_be_compacted: options.delivery == Delivery::ExactlyOnce,
        };
        Self {
            asker,
            survey: None,
            faults: TopicFaults::new(limits.give_up_after),
            standing: None,
            looks: None,
        }
    }

    /// Looks up a topic for an event that waits for the answer.
    pub(super) fn look_up(
        &self,
        topic: String,
        observer: RelayMetrics,
    ) -> impl Future<Output = Resolved> + Send + use<> {
        let age = self.survey.as_ref().map(|(at, _)| at.elapsed());
        let fresh = self
            .survey
            .as_ref()
            .filter(|(at, _)| at.elapsed() < SURVEY.0);
        let listed = fresh.and_then(|(_, all)| all.get(&topic).copied());
        let asker = self.asker.clone();
        async move {
            match listed {
                Some(partitions) if asker.may_be_compacted => Resolved::Topic(Looked {
                    topic,
                    answer: Ok(partitions),
                    survey: None,
                }),
                _ => {
                    asker
                        .until_answered(topic, age.is_none_or(|age| age > SURVEY.1), observer)
                        .await
                }
            }
        }
    }

    /// Returns the answers that have arrived, and starts look-ups of the topics that are due.
    fn look_again(&mut self) -> Vec<Looked> {
        let mut answers = Vec::new();
        if let Some(looks) = &mut self.looks {
            loop {
                match looks.try_recv() {
                    Ok(looked) => answers.push(looked),
                    Err(mpsc::error::TryRecvError::Empty) => return answers,
                    Err(mpsc::error::TryRecvError::Disconnected) => break,
                }
            }
            self.looks = None;
        }
        let due = self.faults.due(LOOKS_AT_A_TIME);
        if !due.is_empty() {
            let (send, looks) = mpsc::channel(LOOKS_AT_A_TIME);
            let asker = self.asker.clone();
            tokio::spawn(async move {
                for topic in due {
                    let answer = asker.ask(&topic, false).await;
                    if send
                        .send(Looked {
                            topic,
                            answer,
                            survey: None,
                        })
                        .await
                        .is_err()
                    {
                        break;
                    }
                }
            });
            self.looks = Some(looks);
        }
        answers
    }

    /// Exports the unusable topics, and logs those that are given up.
    fn show(&mut self, observer: &RelayMetrics) {
        for (topic, reason) in self.faults.give_up() {
            tracing::error!(
                topic,
                "gives the topic up for now: {reason}; its events are parked (tidings parked \
                 list), and follow in order as soon as it can be used"
            );
        }
        match (self.faults.standing(), &self.standing) {
            (Some(text), Some(reason)) => reason.set(text),
            (Some(text), None) => self.standing = Some(observer.hold(Component::Kafka, text)),
            (None, _) => self.standing = None,
        }
    }
}

impl EventPublisher {
    /// Waits until the cluster answers. Returns its id.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the cluster has not answered several requests. New clients may
    /// reach it: a client that retries for a long time may hang.
    pub(crate) async fn reach_cluster(&self) -> Result<String, Interruption> {
        let mut asked = 0;
        loop {
            asked += 1;
            match self.topics.cluster_id().await {
                Ok(id) => {
                    self.observer.note(Component::Kafka, "connected");
                    self.observer.clear(Component::Kafka, Cause::Cluster);
                    return Ok(id);
                }
                Err(error) if asked < REACH_TRIES => {
                    tracing::warn!("{error}; the relay waits for it");
                    self.observer
                        .raise(Component::Kafka, Cause::Cluster, error.to_string());
                    self.observer.pulse().moved();
                }
                Err(error) => return Err(Interruption::Kafka(error.to_string())),
            }
        }
    }

    /// Sets the partition counts that earlier runs of this relay used to place keys.
    pub(crate) fn pin(&mut self, pinned: HashMap<String, i32>) {
        self.pinned = pinned;
    }

    /// Sends no event to these topics, each for at most this time.
    pub(crate) fn hold_back(&mut self, topics: Vec<(String, Duration)>) {
        let now = Instant::now();
        // A topic that was held back before stays so, because this producer may place its keys by
        // an outdated partition count.
        self.held
            .extend(topics.into_iter().map(|(topic, time)| (topic, now + time)));
    }

    /// Returns `true` if a topic is held back for longer than its time.
    pub(crate) fn a_hold_is_over(&self) -> bool {
        self.held.values().any(|until| *until <= Instant::now())
    }

    /// Returns the client that looks up topics.
    pub(crate) fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Returns the unusable topics.
    pub(crate) fn topic_faults(&mut self) -> &mut TopicFaults {
        &mut self.lookup.faults
    }

    /// Takes the unusable topics of earlier producers, including those that events wait for.
    pub(crate) fn take_up_faults(&mut self, faults: TopicFaults) {
        self.lookup.faults = faults;
        self.lookup.show(&self.observer);
    }

    /// Returns the unusable topics for the next producers.
    pub(crate) fn take_faults(&mut self) -> TopicFaults {
        let give_up_after = self.options.topic_limits.give_up_after;
        std::mem::replace(&mut self.lookup.faults, TopicFaults::new(give_up_after))
    }

    /// Processes the answers about unusable topics, and looks topics up again in the background.
    pub(super) fn look_after_topics(&mut self) {
        if self.lookup.faults.is_idle() {
            self.lookup.standing = None;
            return;
        }
        for looked in self.lookup.look_again() {
            self.looked(looked);
        }
        self.lookup.show(&self.observer);
    }

    /// Exports that the limit of parked events is reached, until the result is dropped.
    pub(crate) fn parked_is_full(&self, limit: u64) -> Reason {
        let name = &self.options.name;
        let text = format!(
            "{limit} events are parked, which is as many as undeliverable.parked_events allows; \
             the relay reads no further. `tidings parked list --name {name}` lists the reasons: \
             correct the cause and run `tidings parked retry`, or raise the limit"
        );
        tracing::error!("{text}");
        self.observer.hold(Component::Stream, text)
    }

    /// Processes an answer about a topic.
    pub(super) fn looked(&mut self, looked: Looked) {
        let Looked {
            topic,
            answer,
            survey,
        } = looked;
        if let Some(all) = survey {
            self.lookup.survey = Some((Instant::now(), all));
        }
        match answer {
            Ok(partitions) => {
                self.learn_topic(&topic, partitions);
                self.lookup.faults.usable(&topic);
            }
            // A look-up in the background is repeated.
            Err(TopicError::Unreachable(_)) => {}
            Err(error) => {
                if self.lookup.faults.reason(&topic).is_none() {
                    tracing::warn!(
                        "{error}; its events wait until it can be used, and others continue"
                    );
                }
                match error {
                    TopicError::NotYet { .. } => {
                        self.lookup.faults.postponed(&topic, error.to_string())
                    }
                    _ => self.lookup.faults.found(&topic, error.to_string()),
                }
                self.lookup.show(&self.observer);
            }
        }
    }

    fn learn_topic(&mut self, topic: &str, partitions: i32) {
        tracing::info!(topic, partitions, "publishes to a topic");
        let pinned = self.pinned.get(topic).copied().unwrap_or(partitions);
        if pinned != partitions {
            tracing::warn!(
                topic,
                partitions,
                pinned,
                "the topic's number of partitions differs from the number over which this relay \
                 spreads keys: see `tidings topics list`"
            );
        }
        // Keys stay in their partitions when a topic has grown. In a topic that was created again
        // with fewer partitions, they can only move.
        self.routes.learn(topic.to_owned(), pinned.min(partitions));
    }

    pub(super) fn observe_cluster(&mut self) {
        let Some(reason) = self.sink.acks().unreachable_since_last_ack() else {
            self.observer.note(Component::Kafka, "connected");
            self.observer.clear(Component::Kafka, Cause::Cluster);
            return;
        };
        self.observer.raise(
            Component::Kafka,
            Cause::Cluster,
            format!("{reason}; events wait in the outbox"),
        );
        if self.looking.as_ref().is_none_or(JoinHandle::is_finished) {
            let (topics, topic) = (
                self.topics.clone(),
                self.routes.all().first().map(|route| route.topic.clone()),
            );
            self.looking = Some(tokio::spawn(
                async move { topics.look_for_cluster(topic).await },
            ));
        }
    }
}
