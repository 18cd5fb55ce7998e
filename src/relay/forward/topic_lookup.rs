//! Topic look-up: whether a topic can be used, with how many partitions, and whether the cluster answers at all.

use std::{collections::HashMap, time::Duration};

use tokio::{task::JoinHandle, time::Instant};

use super::{Forwarder, backpressure::Cleared};
use crate::{
    kafka::{Creation, TopicError, Topics},
    relay::{
        TopicOptions,
        error::Interruption,
        observe::{Observer, Part, Reason},
        readiness::Cause,
    },
};

/// How often a cluster is asked by the same clients before they are replaced. A question takes up to ten seconds.
const REACH_TRIES: u32 = 3;

/// Between two tries at a topic that cannot be used.
const TOPIC_RETRY: Duration = Duration::from_secs(2);

impl Forwarder {
    /// Waits until the cluster answers; its id.
    ///
    /// # Errors
    /// When it has not answered several times. New clients may reach it: one that tries for long may hang.
    pub(in crate::relay) async fn reach_cluster(&self) -> Result<String, Interruption> {
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
                    self.observer.raise(Part::Kafka, Cause::Cluster, error.to_string());
                    self.observer.pulse().moved();
                }
                Err(error) => return Err(Interruption::Kafka(error.to_string())),
            }
        }
    }

    /// The partition counts by which earlier runs of this relay placed keys.
    pub(in crate::relay) fn pin(&mut self, pinned: HashMap<String, i32>) {
        self.pinned = pinned;
    }

    /// Sends nothing to these topics any more, each for this long.
    pub(in crate::relay) fn hold_back(&mut self, topics: Vec<(String, Duration)>) {
        let now = Instant::now();
        // What was held before stays so: where its keys belong is not known to this producer.
        self.held.extend(topics.into_iter().map(|(topic, time)| (topic, now + time)));
    }

    /// Whether a hold has lasted longer than it may.
    pub(in crate::relay) fn a_hold_is_over(&self) -> bool {
        self.held.values().any(|until| *until <= Instant::now())
    }

    /// Answers about topics.
    pub(in crate::relay) fn topics(&self) -> &Topics {
        &self.topics
    }

    pub(super) fn observe_cluster(&mut self) {
        let Some(reason) = self.sink.acks().unreachable_since_last_ack() else {
            self.observer.note(Part::Kafka, "connected");
            self.observer.clear(Part::Kafka, Cause::Cluster);
            return;
        };
        self.observer.raise(Part::Kafka, Cause::Cluster, format!("{reason}; events wait in the outbox"));
        if self.looking.as_ref().is_none_or(JoinHandle::is_finished) {
            let (topics, topic) = (self.topics.clone(), self.routes.all().first().map(|route| route.topic.clone()));
            self.looking = Some(tokio::spawn(async move { topics.look_for_cluster(topic).await }));
        }
    }
}

/// Looks a topic up until it can be used, creating it if that is asked for.
pub(super) async fn look_up(topics: Topics, create: TopicOptions, may_be_compacted: bool, observer: Observer, topic: String) -> Cleared {
    // Stands as long as this future lives: the session that drops it has a reason of its own.
    let mut standing: Option<Reason> = None;
    loop {
        let mut answer = topics.partitions(&topic).await;
        if matches!(answer, Err(TopicError::Unknown(_))) && create.create {
            let how = Creation { partitions: create.partitions, replication: create.replication, config: &[] };
            answer = match topics.create(&topic, how).await {
                Ok(()) => topics.partitions(&topic).await,
                Err(error) => Err(error),
            };
        }
        if answer.is_ok()
            && !may_be_compacted
            && let Err(compacted) = topics.refuse_compacted(&topic).await
        {
            answer = Err(compacted);
        }
        match answer {
            Ok(partitions) => {
                tracing::info!(topic, partitions, "publishes to a topic");
                return Cleared::Topic { topic, partitions };
            }
            Err(error) => {
                tracing::warn!("{error}; the relay waits, nothing is lost");
                match &standing {
                    Some(reason) => reason.set(error.to_string()),
                    None => standing = Some(observer.hold(Part::Kafka, error.to_string())),
                }
                tokio::time::sleep(TOPIC_RETRY).await;
            }
        }
    }
}
