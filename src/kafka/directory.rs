//! Metadata of many topics. All requests share one client and one admin client, because creating a
//! client for each costs more than the request.

use std::{collections::HashMap, time::Duration};

use rdkafka::{
    admin::ResourceSpecifier,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
};

use super::{
    ASK_LIMIT, ASK_TIMEOUT, Creation, Replaceable, Settings, bounded,
    create::create_topic,
    drop_on_thread::Dropped,
    topics::{Admin, TopicError, judged, settings_of},
};

/// Interval between two checks whether a created topic is visible, and the maximum number of
/// checks.
const APPEARS: (Duration, u32) = (Duration::from_millis(100), 50);

/// Queries and creates topics.
pub(crate) struct Directory {
    settings: Settings,
    asking: Replaceable<Dropped<BaseConsumer>>,
    admin: Replaceable<Dropped<Admin>>,
}

impl Directory {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            asking: Replaceable::default(),
            admin: Replaceable::default(),
        }
    }

    /// Returns the topic's number of partitions, at least one. The request does not create the
    /// topic.
    ///
    /// # Errors
    ///
    /// Returns [`TopicError`] if the topic is missing or may not be used, or the cluster is
    /// unreachable.
    pub(crate) async fn partitions(&self, topic: &str) -> Result<i32, TopicError> {
        let name = topic.to_owned();
        let answer = self.ask(move |client| {
            let metadata = client.fetch_metadata(Some(&name), ASK_TIMEOUT)?;
            Ok(metadata
                .topics()
                .first()
                .map(|topic| (topic.partitions().len(), topic.error())))
        });
        judged(topic, answer.await?)
    }

    /// Returns all topics that the client may see and use, with their numbers of partitions. One
    /// request, whatever the number of topics.
    ///
    /// # Errors
    ///
    /// Returns [`TopicError`] if the cluster is unreachable.
    pub(crate) async fn all(&self) -> Result<HashMap<String, i32>, TopicError> {
        let answer = self.ask(|client| {
            let metadata = client.fetch_metadata(None, ASK_TIMEOUT)?;
            let usable = metadata
                .topics()
                .iter()
                .filter(|topic| topic.error().is_none() && !topic.partitions().is_empty());
            let counted = usable.filter_map(|topic| {
                Some((
                    topic.name().to_owned(),
                    i32::try_from(topic.partitions().len()).ok()?,
                ))
            });
            Ok(counted.collect())
        });
        answer.await
    }

    /// Refuses a compacted topic, which keeps only the last record of each key. Accepts a topic
    /// whose settings cannot be read.
    ///
    /// # Errors
    ///
    /// Returns [`TopicError::Compacted`] if the topic is compacted.
    pub(crate) async fn refuse_compacted(&self, topic: &str) -> Result<(), TopicError> {
        match self.setting(topic, "cleanup.policy").await {
            Some(policy) if policy.contains("compact") => {
                Err(TopicError::Compacted(topic.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Creates a topic, waits until it is visible, and returns its number of partitions.
    ///
    /// # Errors
    ///
    /// Returns [`TopicError`] with the broker's reason if it refuses, or if the topic does not
    /// appear.
    pub(crate) async fn create(&self, topic: &str, how: Creation<'_>) -> Result<i32, TopicError> {
        create_topic(&self.settings, topic, how).await?;
        let (pause, looks) = APPEARS;
        for _ in 0..looks {
            match self.partitions(topic).await {
                Err(TopicError::Unknown(_)) => tokio::time::sleep(pause).await,
                answer => return answer,
            }
        }
        Err(TopicError::Unreachable(format!(
            "topic `{topic}` was created but does not appear"
        )))
    }

    async fn setting(&self, topic: &str, name: &str) -> Option<String> {
        let admin = self
            .admin
            .get(|| self.settings.client_config().create().map(Dropped::new))
            .ok()?;
        let asked = settings_of(admin.get(), &ResourceSpecifier::Topic(topic)).await;
        let Ok(described) = asked else {
            self.admin.discard(&admin);
            return None;
        };
        described?.get(name)?.value.clone()
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, TopicError> {
        let unreachable = |error: KafkaError| TopicError::Unreachable(error.to_string());
        let open = || {
            let mut config = self.settings.client_config();
            config.set("allow.auto.create.topics", "false");
            config.create().map(Dropped::new)
        };
        let client = self.asking.get(open).map_err(unreachable)?;
        let asks = client.clone();
        let asked = bounded("fetch_metadata", ASK_LIMIT, move || {
            let answer = question(asks.get());
            // Removes connection errors from the client's queue, which nothing else polls.
            drop(asks.get().poll(Duration::ZERO));
            answer
        });
        let answer = asked.await.inspect_err(|_| self.asking.discard(&client))?;
        answer.map_err(unreachable)
    }
}
