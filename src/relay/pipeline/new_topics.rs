//! Topics that were not used before: their look-up and their registration, several at once.

use std::collections::BTreeSet;

use super::{Pipeline, Stop, publisher::Backpressure};
use crate::{kafka::Outgoing, relay::error::Interruption};

impl Pipeline {
    /// Returns the topic of the event if it was not used before and can be looked up.
    pub(crate) fn new_topic(&mut self, event: &Outgoing<'_>) -> Option<String> {
        self.publisher.new_topic(event)
    }

    /// Meets the topics of the next events together if they were not used before. Alone, each costs
    /// a request to Kafka, a transaction in Postgres and a change of the Kafka transaction.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(crate) async fn meet_topics(&mut self, topics: BTreeSet<String>) -> Result<(), Stop> {
        if let Some(first) = topics.first() {
            self.wait_for(Backpressure::NewTopic(first.clone())).await?;
        }
        self.publisher.meet(&topics);
        Ok(self.register_topics().await?)
    }

    /// Stores the numbers of partitions of topics before their first records, so that no command
    /// can change the numbers unnoticed.
    pub(super) async fn register_topics(&mut self) -> Result<(), Interruption> {
        let unregistered = self.publisher.unregistered();
        if !unregistered.is_empty() {
            let store = self.checkpoint.relay_store();
            for registered in store.register_topics(unregistered).await? {
                self.publisher.registered(registered);
            }
        }
        Ok(())
    }
}
