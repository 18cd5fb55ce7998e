//! Topic look-up: whether a topic can be used, with how many partitions, and whether the cluster answers at all.
//!
//! An event of a topic that was not met yet waits for one answer. If the topic cannot be used, its events are set aside
//! ([`TopicFaults`]), and it is looked at again beside the relay's work.

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
            metrics::{Observer, Part, Reason},
            readiness::Cause,
        },
    },
};

/// How often a cluster is asked by the same clients before they are replaced. A question takes up to ten seconds.
const REACH_TRIES: u32 = 3;

/// Between two questions to a cluster that does not answer.
const OUTAGE_RETRY: Duration = Duration::from_secs(2);

/// How long a list of all topics is relied on, and how long no other is asked for: it may be long.
const SURVEY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Topics looked at beside the relay's work, at a time.
const LOOKS_AT_A_TIME: usize = 100;

/// What is known of topics beyond those that events go to.
pub(super) struct TopicLookup {
    asker: Asker,
    survey: Option<(Instant, HashMap<String, i32>)>,
    pub(super) faults: TopicFaults,
    standing: Option<Reason>,
    /// Answers about the topics that are looked at now.
    looks: Option<mpsc::Receiver<Looked>>,
}

/// An answer about a topic.
pub(crate) struct Looked {
    topic: String,
    answer: Result<i32, TopicError>,
    /// All topics, if they were asked for.
    survey: Option<HashMap<String, i32>>,
}

/// Asks about topics, and creates them if it may.
#[derive(Clone)]
struct Asker {
    directory: Arc<Directory>,
    create: TopicOptions,
    create_max_per_minute: u32,
    budget: Arc<Mutex<CreationBudget>>,
    may_be_compacted: bool,
}

impl Asker {
    /// One answer about a topic. `waits`: an event waits for it.
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
                "{} topics were created within a minute, which is as many as topics.create_max_per_minute allows; it is created in its turn",
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

    /// The first answer that is no outage, for an event that waits for it. Asks for all topics first if it shall.
    async fn until_answered(self, topic: String, survey: bool, observer: Observer) -> Resolved {
        // Stands as long as this future lives: the session that drops it has a reason of its own.
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
                None => standing = Some(observer.hold(Part::Kafka, error.to_string())),
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

    /// Looks a topic up for an event that waits for the answer.
    pub(super) fn look_up(
        &self,
        topic: String,
        observer: Observer,
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

    /// Takes answers that have come, and asks about the topics that are due.
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

    /// Shows the topics that cannot be used, and reports those that are given up.
    fn show(&mut self, observer: &Observer) {
        for (topic, reason) in self.faults.give_up() {
            tracing::error!(
                topic,
                "gives the topic up for now: {reason}; its events are parked (tidings parked list), and follow in order as soon as it can be used"
            );
        }
        match (self.faults.standing(), &self.standing) {
            (Some(text), Some(reason)) => reason.set(text),
            (Some(text), None) => self.standing = Some(observer.hold(Part::Kafka, text)),
            (None, _) => self.standing = None,
        }
    }
}

impl EventPublisher {
    /// Waits until the cluster answers; its id.
    ///
    /// # Errors
    /// When it has not answered several times. New clients may reach it: one that tries for long may hang.
    pub(crate) async fn reach_cluster(&self) -> Result<String, Interruption> {
        let mut asked = 0;
        loop {
            asked += 1;
            match self.topics.cluster_id().await {
                Ok(id) => {
                    self.observer.note(Part::Kafka, "connected");
                    self.observer.clear(Part::Kafka, Cause::Cluster);
                    return Ok(id);
                }
                Err(error) if asked < REACH_TRIES => {
                    tracing::warn!("{error}; the relay waits for it");
                    self.observer
                        .raise(Part::Kafka, Cause::Cluster, error.to_string());
                    self.observer.pulse().moved();
                }
                Err(error) => return Err(Interruption::Kafka(error.to_string())),
            }
        }
    }

    /// The partition counts by which earlier runs of this relay placed keys.
    pub(crate) fn pin(&mut self, pinned: HashMap<String, i32>) {
        self.pinned = pinned;
    }

    /// Sends nothing to these topics any more, each for this long.
    pub(crate) fn hold_back(&mut self, topics: Vec<(String, Duration)>) {
        let now = Instant::now();
        // What was held before stays so: where its keys belong is not known to this producer.
        self.held
            .extend(topics.into_iter().map(|(topic, time)| (topic, now + time)));
    }

    /// Whether a hold has lasted longer than it may.
    pub(crate) fn a_hold_is_over(&self) -> bool {
        self.held.values().any(|until| *until <= Instant::now())
    }

    /// Answers about topics.
    pub(crate) fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The topics that cannot be used.
    pub(crate) fn topic_faults(&mut self) -> &mut TopicFaults {
        &mut self.lookup.faults
    }

    /// Takes up what earlier producers have learned of topics that cannot be used, and for which events wait.
    pub(crate) fn take_up_faults(&mut self, faults: TopicFaults) {
        self.lookup.faults = faults;
        self.lookup.show(&self.observer);
    }

    /// What the next producers must know of topics.
    pub(crate) fn take_faults(&mut self) -> TopicFaults {
        let give_up_after = self.options.topic_limits.give_up_after;
        std::mem::replace(&mut self.lookup.faults, TopicFaults::new(give_up_after))
    }

    /// Looks at topics that cannot be used, beside other work.
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

    /// Shows that as much is parked as may be, until the result is dropped.
    pub(crate) fn parked_is_full(&self, limit: u64) -> Reason {
        let name = &self.options.name;
        let text = format!(
            "{limit} events are parked, which is as many as undeliverable.parked_events allows; the relay reads no further. `tidings parked list --name {name}` lists the reasons: \
             correct the cause and run `tidings parked retry`, or raise the limit"
        );
        tracing::error!("{text}");
        self.observer.hold(Part::Stream, text)
    }

    /// Takes note of an answer about a topic.
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
            // Whoever asked beside other work asks again.
            Err(TopicError::Unreachable(_)) => {}
            Err(error) => {
                if self.lookup.faults.reason(&topic).is_none() {
                    tracing::warn!(
                        "{error}; its events are set aside and follow as soon as it can be used, others go on"
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
                "the topic has another number of partitions than this relay spreads keys over: see `tidings topics list`"
            );
        }
        // Keys stay where they are when a topic has grown; one that was made anew with fewer has nowhere else to put them.
        self.routes.learn(topic.to_owned(), pinned.min(partitions));
    }

    pub(super) fn observe_cluster(&mut self) {
        let Some(reason) = self.sink.acks().unreachable_since_last_ack() else {
            self.observer.note(Part::Kafka, "connected");
            self.observer.clear(Part::Kafka, Cause::Cluster);
            return;
        };
        self.observer.raise(
            Part::Kafka,
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
