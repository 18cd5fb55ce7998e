//! Reachability of the Kafka cluster.

use super::EventPublisher;
use crate::relay::{
    error::Interruption,
    monitor::{metrics::Component, readiness::Cause},
};
use crate::task::OwnedTask;

/// Number of requests to a cluster with the same clients before they are replaced. A request takes
/// up to ten seconds.
const REACH_TRIES: u32 = 3;

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

    /// Exports whether the cluster answers, and looks for an unreachable one in the background.
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
        if self.looking.as_ref().is_none_or(OwnedTask::is_finished) {
            let (topics, topic) = (
                self.topics.clone(),
                self.routes.all().first().map(|route| route.topic.clone()),
            );
            self.looking = Some(OwnedTask::spawn(async move {
                topics.look_for_cluster(topic).await
            }));
        }
    }
}
