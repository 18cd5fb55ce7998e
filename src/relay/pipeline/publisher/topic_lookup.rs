//! Look-up of topics: their existence and their number of partitions.
//!
//! An event whose topic was not used before waits for one answer. If the topic is unusable, its
//! events are parked ([`TopicFaults`]), and it is looked up again in the background.

mod asker;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use self::asker::Asker;
pub(crate) use self::asker::Looked;
use super::{
    EventPublisher,
    backpressure::{Backpressure, Resolved},
    topic_faults::TopicFaults,
};
use crate::{
    kafka::{Outgoing, TopicError, Topics},
    relay::{
        RelayOptions,
        leadership::relay_store::Registered,
        monitor::metrics::{Component, Reason, RelayMetrics},
        routing::template::NotLookedUp,
    },
};

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
    /// Partitions of the topics to which this relay publishes for the first time, until they are
    /// stored.
    pub(super) unregistered: HashMap<String, i32>,
    /// The last events had new topics, so the next ones may have more.
    meets_topics: bool,
}

impl TopicLookup {
    pub(super) fn new(options: &RelayOptions) -> Self {
        Self {
            asker: Asker::new(options),
            survey: None,
            faults: TopicFaults::new(options.topic_limits.give_up_after),
            standing: None,
            looks: None,
            unregistered: HashMap::new(),
            meets_topics: true,
        }
    }

    /// Looks up a topic for an event that waits for the answer.
    pub(super) fn look_up(
        &self,
        topic: String,
        observer: RelayMetrics,
    ) -> impl Future<Output = Resolved> + Send + use<> {
        let age = self.survey.as_ref().map(|(at, _)| at.elapsed());
        let listed = self.listed(&topic);
        let asker = self.asker.clone();
        async move {
            match listed {
                Some(partitions) => Resolved::Topic(Looked {
                    topic,
                    answer: Ok(partitions),
                    survey: None,
                }),
                None => {
                    asker
                        .until_answered(topic, age.is_none_or(|age| age > SURVEY.1), observer)
                        .await
                }
            }
        }
    }

    /// Returns the number of partitions of a topic if the last list answers the look-up.
    fn listed(&self, topic: &str) -> Option<i32> {
        let survey = self.survey.as_ref();
        let (_, all) = survey.filter(|(at, _)| at.elapsed() < SURVEY.0)?;
        // The list does not contain the clean-up policies.
        let is_answer = self.asker.may_be_compacted;
        all.get(topic).copied().filter(|_| is_answer)
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
            #[expect(
                clippy::disallowed_methods,
                reason = "ends with the lookups, or once the channel is closed"
            )]
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

    /// Records that the number of partitions of a topic is stored, and whether a command holds the
    /// topic back.
    pub(crate) fn registered(&mut self, registered: Registered) {
        let Registered {
            topic,
            partitions: stored,
            held,
        } = registered;
        let Some(partitions) = self.lookup.unregistered.remove(&topic) else {
            return;
        };
        self.pinned.insert(topic.clone(), stored);
        self.hold_back(held.map(|time| (topic.clone(), time)).into_iter().collect());
        self.learn_topic(&topic, partitions);
    }

    /// Returns `true` if the next events may have topics that were not used before.
    pub(crate) fn meets_topics(&self) -> bool {
        self.lookup.meets_topics
    }

    /// Returns the topic for whose look-up the event would wait.
    pub(crate) fn new_topic(&mut self, event: &Outgoing<'_>) -> Option<String> {
        let NotLookedUp(topic) = self.routes.find(event).err()?;
        match self.unrouted(topic, true) {
            Err(Backpressure::NewTopic(topic)) => Some(topic),
            _ => None,
        }
    }

    /// Adds those of the next topics that the last list of topics contains.
    pub(crate) fn meet(&mut self, topics: &BTreeSet<String>) {
        self.lookup.meets_topics = !topics.is_empty();
        for topic in topics {
            if self.routes.named(topic).is_none()
                && let Some(partitions) = self.lookup.listed(topic)
            {
                self.learn_topic(topic, partitions);
            }
        }
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
        self.lookup.meets_topics = true;
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

    /// Adds a topic to the routes if its number of partitions is stored. Otherwise the topic waits
    /// for [`registered`](Self::registered).
    fn learn_topic(&mut self, topic: &str, partitions: i32) {
        let Some(pinned) = self.pinned.get(topic).copied() else {
            self.lookup
                .unregistered
                .insert(topic.to_owned(), partitions);
            return;
        };
        tracing::info!(topic, partitions, "publishes to a topic");
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
}
