//! Which topics exist, with how many partitions; creates those that may be created.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
    producer::{BaseProducer, Producer as _},
    types::RDKafkaRespErr,
};

use super::{Acks, Producer, Settings, create, producer::Context};

/// How long a question to the cluster may take. Longer than a leader election, so that one does not look like an outage.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a topic cannot be used now. All of them pause the relay; none of them loses an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TopicError {
    #[error("Kafka is not reachable: {0}")]
    Unreachable(String),
    #[error(
        "topic `{0}` does not exist: create it (kafka-topics.sh --create --topic {0} --partitions N --replication-factor N), or let the relay do it ([topics] create = true)"
    )]
    Unknown(String),
    #[error("topic `{topic}` may not be used: {reason}; grant Describe and Write on it to the relay's principal")]
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
        match create::setting(&self.settings, topic, "cleanup.policy").await {
            Some(policy) if policy.contains("compact") => Err(TopicError::Compacted(topic.to_owned())),
            _ => Ok(()),
        }
    }

    /// Creates a topic; one that exists already is fine. `None` leaves the number to the broker (KIP-464).
    ///
    /// # Errors
    /// When the broker refuses, with its reason.
    pub(crate) async fn create(
        &self,
        topic: &str,
        partitions: Option<i32>,
        replication: Option<i32>,
        config: &[(&str, &str)],
    ) -> Result<(), TopicError> {
        let failed = |reason: String| TopicError::Create { topic: topic.to_owned(), reason };
        let admin: AdminClient<DefaultClientContext> = self.settings.client_config().create().map_err(|error| failed(error.to_string()))?;
        let mut new = NewTopic::new(topic, partitions.unwrap_or(-1), TopicReplication::Fixed(replication.unwrap_or(-1)));
        for (key, value) in config {
            new = new.set(key, value);
        }
        let answer = admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(ASK_TIMEOUT))).await;
        // Dropping a client blocks.
        std::thread::spawn(move || drop(admin));
        match answer.map_err(|error| failed(error.to_string()))?.pop() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => Err(failed(code.to_string())),
            _ => Ok(()),
        }
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
        let asking: BaseConsumer = config.create()?;
        let metadata = asking.fetch_metadata(Some(&name), ASK_TIMEOUT);
        // Dropping a client blocks.
        std::thread::spawn(move || drop(asking));
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
