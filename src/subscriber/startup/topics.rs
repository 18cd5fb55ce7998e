//! Topics at the start of a subscriber: existing ones, those that it creates, and missing ones.

use tokio_util::sync::CancellationToken;

use crate::{
    kafka::{TopicError, create_like, partitions_of, retention, topic_names},
    subscriber::{
        Escalation,
        attempt::escalation::retry_topic,
        run::{Plan, pause},
    },
};

impl Plan {
    /// Returns the names of all topics as soon as a broker responds. Returns `None` if the
    /// subscriber is shut down first.
    pub(crate) async fn wait_for_topic_names(
        &self,
        stop: &CancellationToken,
    ) -> Option<Vec<String>> {
        let brokers = &self.bus.settings().brokers;
        self.statistics
            .starting(format!("it requests the topics of the brokers {brokers}"));
        loop {
            match topic_names(self.bus.settings()).await {
                Ok(names) => return Some(names),
                Err(error) => {
                    tracing::warn!(
                        subscriber = self.name,
                        brokers,
                        %error,
                        "no broker responds; the subscriber waits: start the brokers, or correct \
                         their addresses or the principal"
                    );
                    self.statistics
                        .starting(format!("the brokers {brokers} do not respond: {error}"));
                }
            }
            if !pause(stop).await {
                return None;
            }
        }
    }

    /// Logs the configuration of the subscriber in one line.
    pub(crate) fn report_start(&self) {
        let mut topics: Vec<&str> = self.topics.keys().map(String::as_str).collect();
        topics.sort_unstable();
        tracing::info!(
            subscriber = self.name,
            topics = topics.join(", "),
            handlers = self.core.router.summary(),
            brokers = self.bus.settings().brokers,
            database = self.core.inbox.as_ref().map(|inbox| inbox.place()),
            schema = self.core.inbox.as_ref().map(|inbox| inbox.schema.as_str()),
            instance_id = self.instance,
            "the subscriber starts"
        );
    }

    /// Logs topics that do not exist yet, topics that the subscriber may not read, and topics that
    /// keep records for longer than the inbox does. Returns the existing topics.
    pub(crate) async fn look_for_topics(&self, names: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        for topic in self.topics.keys() {
            if !names.contains(topic) {
                self.report_missing(topic).await;
                continue;
            }
            found.push(topic.clone());
            let Some(inbox) = &self.core.inbox else {
                continue;
            };
            if let Some(retention) = retention(self.bus.settings(), topic)
                .await
                .filter(|retention| *retention >= inbox.keep)
            {
                let keep = inbox.keep;
                tracing::warn!(
                    subscriber = self.name,
                    topic,
                    ?retention,
                    ?keep,
                    "the inbox deletes its rows before the topic deletes its records: a replay of \
                     the topic takes effect again; raise `Inbox::keep`"
                );
            }
        }
        found
    }

    async fn report_missing(&self, topic: &str) {
        match partitions_of(self.bus.settings(), topic).await {
            Err(TopicError::Denied { reason, .. }) => tracing::warn!(
                subscriber = self.name,
                topic,
                reason,
                "the subscriber may not read the topic: grant Read and Describe on it to its \
                 principal"
            ),
            _ => tracing::warn!(
                subscriber = self.name,
                topic,
                "the topic does not exist; it is read once it does: its relay or an operator \
                 creates it"
            ),
        }
    }

    /// Creates the retry topics and subscribes to them. Returns `false` if the subscriber is shut
    /// down before they exist.
    pub(crate) async fn make_retry_topics(&mut self, stop: &CancellationToken) -> bool {
        let Escalation::RetryTopics(delays) = self.options.escalation(self.core.inbox.is_some())
        else {
            return true;
        };
        let origins: Vec<_> = self
            .topics
            .iter()
            .map(|(topic, source)| (topic.clone(), *source))
            .collect();
        for (origin, source) in origins {
            for delay in &delays {
                let topic = retry_topic(&origin, &self.name, *delay);
                while let Err(error) = create_like(self.bus.settings(), &topic, &origin).await {
                    tracing::warn!(
                        subscriber = self.name,
                        %error,
                        "a retry topic cannot be created yet"
                    );
                    self.statistics
                        .starting(format!("a retry topic cannot be created: {error}"));
                    if !pause(stop).await {
                        return false;
                    }
                }
                self.topics.insert(topic, source);
            }
        }
        true
    }
}
