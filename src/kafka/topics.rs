//! Which topics exist, with how many partitions and which settings.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    producer::{BaseProducer, Producer as _},
    types::RDKafkaRespErr,
};

use super::{Acks, Creation, Producer, Settings, create::create_topic, dropped::Dropped, producer::Context};

/// How long a question to the cluster may take. Longer than a leader election, so that one does not look like an outage.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a topic cannot be used now. All of them pause whoever wants to use it; none of them loses an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TopicError {
    #[error("Kafka is not reachable: {0}")]
    Unreachable(String),
    #[error(
        "topic `{0}` does not exist: create it (kafka-topics.sh --create --topic {0} --partitions N --replication-factor N), or let the relay do it ([topics] create = true)"
    )]
    Unknown(String),
    #[error(
        "topic `{topic}` may not be used: {reason}; grant the relay's principal Write on it, on the topic of its positions Read too; a subscriber's, Read (docs/operating.md)"
    )]
    Denied { topic: String, reason: String },
    #[error(
        "topic `{0}` is compacted, and a relay that delivers at least once may let an old event take the place of a newer one: set delivery = \"exactly-once\", or the topic's cleanup.policy = delete"
    )]
    Compacted(String),
    #[error("topic `{topic}` cannot be created: {reason}")]
    Create { topic: String, reason: String },
    #[cfg(feature = "cli")]
    #[error("topic `{topic}` cannot be {doing}: {reason}")]
    Change { topic: String, doing: &'static str, reason: String },
}

/// Answers about topics, asked on blocking threads.
#[derive(Clone)]
pub(crate) struct Topics {
    client: Arc<BaseProducer<Context>>,
    acks: Arc<Acks>,
    settings: Settings,
}

impl Topics {
    pub(crate) fn new(producer: &Producer, settings: &Settings) -> Self {
        Self { client: producer.client(), acks: producer.acks().clone(), settings: settings.clone() }
    }

    /// Asks the cluster for its id; the proof that it can be reached.
    ///
    /// # Errors
    /// When it cannot.
    pub(crate) async fn cluster_id(&self) -> Result<String, TopicError> {
        let client = self.client.clone();
        let asked = tokio::task::spawn_blocking(move || client.client().fetch_cluster_id(ASK_TIMEOUT)).await;
        asked.ok().flatten().ok_or_else(|| TopicError::Unreachable(format!("no answer from {} within ten seconds", self.settings.brokers)))
    }

    /// Asks whether the cluster answers again, and has the producer's acknowledgements know if it does. A producer with nothing to
    /// send would not notice.
    pub(crate) async fn look_for_cluster(&self, topic: String) {
        let (client, acks) = (self.client.clone(), self.acks.clone());
        let asked = tokio::task::spawn_blocking(move || {
            if client.client().fetch_metadata(Some(&topic), ASK_TIMEOUT).is_ok() {
                acks.reachable();
            }
        });
        let _ = asked.await;
    }

    /// The topic's number of partitions, at least one.
    ///
    /// Asked by a client of its own: a producer's question has a broker with `auto.create.topics.enable` (the default) make the topic.
    ///
    /// # Errors
    /// When the topic is missing, may not be used, or the cluster cannot be reached.
    pub(crate) async fn partitions(&self, topic: &str) -> Result<i32, TopicError> {
        partitions_of(&self.settings, topic).await
    }

    /// Refuses a topic that keeps the last record of a key alone. One whose settings may not be read passes.
    ///
    /// # Errors
    /// [`TopicError::Compacted`].
    pub(crate) async fn refuse_compacted(&self, topic: &str) -> Result<(), TopicError> {
        match setting(&self.settings, topic, "cleanup.policy").await {
            Some(policy) if policy.contains("compact") => Err(TopicError::Compacted(topic.to_owned())),
            _ => Ok(()),
        }
    }

    /// Creates a topic; one that exists already is fine.
    ///
    /// # Errors
    /// When the broker refuses, with its reason.
    pub(crate) async fn create(&self, topic: &str, how: Creation<'_>) -> Result<(), TopicError> {
        create_topic(&self.settings, topic, how).await
    }
}

/// The topic's number of partitions, at least one; does not make it.
///
/// # Errors
/// When the topic is missing, may not be used, or the cluster cannot be reached.
pub(crate) async fn partitions_of(settings: &Settings, topic: &str) -> Result<i32, TopicError> {
    let (mut config, name) = (settings.client_config(), topic.to_owned());
    config.set("allow.auto.create.topics", "false");
    let asked = tokio::task::spawn_blocking(move || {
        let asking: Dropped<BaseConsumer> = Dropped::new(config.create()?);
        let metadata = asking.get().fetch_metadata(Some(&name), ASK_TIMEOUT);
        metadata.map(|metadata| metadata.topics().first().map(|topic| (topic.partitions().len(), topic.error())))
    });
    let answer = asked.await.map_err(|error| TopicError::Unreachable(error.to_string()))?;
    match answer.map_err(|error| TopicError::Unreachable(error.to_string()))? {
        Some((count @ 1.., None)) => i32::try_from(count).map_err(|_| TopicError::Unknown(topic.to_owned())),
        Some((_, Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED))) => {
            Err(TopicError::Denied { topic: topic.to_owned(), reason: "the broker answers TOPIC_AUTHORIZATION_FAILED".into() })
        }
        _ => Err(TopicError::Unknown(topic.to_owned())),
    }
}

/// How long a topic keeps its records; `None` if for ever, or if that may not be read.
pub(crate) async fn retention(settings: &Settings, topic: &str) -> Option<Duration> {
    let milliseconds = setting(settings, topic, "retention.ms").await?.parse::<i64>().ok()?;
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// One setting of a topic; `None` if it may not be read.
async fn setting(settings: &Settings, topic: &str, name: &str) -> Option<String> {
    let admin: Dropped<AdminClient<DefaultClientContext>> = Dropped::new(settings.client_config().create().ok()?);
    let answer =
        admin.get().describe_configs([&ResourceSpecifier::Topic(topic)], &AdminOptions::new().request_timeout(Some(ASK_TIMEOUT))).await;
    answer.ok()?.into_iter().next()?.ok()?.get(name)?.value.clone()
}
