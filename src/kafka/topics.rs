//! Which topics exist, with how many partitions and which settings.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, ConfigSource, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    producer::{BaseProducer, Producer as _},
    types::RDKafkaRespErr,
};
use tokio::time::timeout;

use super::{
    Acks, Creation, Failure, OVERDUE, Producer, Settings, Unanswered, bounded, context::Context,
    create::create_topic, dropped::Dropped,
};

/// How long a question to the cluster may take. Longer than a leader election, so that one does not look like an outage.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// The setting for the largest batch that a topic takes.
pub(super) const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// How long an admin client's request may take at most.
pub(super) const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The topic to ask about when the answer alone matters. It need not exist, and is not created.
pub(super) const ASKED_TOPIC: &str = "tidings-health";

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
    #[error("topic `{topic}` does not exist yet: {reason}")]
    NotYet { topic: String, reason: String },
    #[error(
        "topic `{topic}` cannot be used: the broker answers {reason}; a topic whose name differs in `.` and `_` alone may exist, or the name may be one of Kafka's own"
    )]
    Invalid { topic: String, reason: String },
    #[cfg(feature = "cli")]
    #[error("topic `{topic}` cannot be {doing}: {reason}")]
    Change {
        topic: String,
        doing: &'static str,
        reason: String,
    },
}

impl From<Unanswered> for TopicError {
    fn from(unanswered: Unanswered) -> Self {
        Self::Unreachable(unanswered.to_string())
    }
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
        Self {
            client: producer.client(),
            acks: producer.acks().clone(),
            settings: settings.clone(),
        }
    }

    /// Asks the cluster for its id; the proof that it can be reached.
    ///
    /// # Errors
    /// When it cannot.
    pub(crate) async fn cluster_id(&self) -> Result<String, TopicError> {
        let client = self.client.clone();
        let asked = bounded("fetch_cluster_id", ASK_TIMEOUT + OVERDUE, move || {
            client.client().fetch_cluster_id(ASK_TIMEOUT)
        })
        .await?;
        asked.ok_or_else(|| {
            TopicError::Unreachable(format!(
                "no answer from {} within ten seconds",
                self.settings.brokers
            ))
        })
    }

    /// Asks whether the cluster answers again, and has the producer's acknowledgements know if it does. A producer with nothing to
    /// send would not notice. One that does not reach a cluster which answers others has failed. It can be asked about a topic that exists
    /// only: a broker may create another.
    pub(crate) async fn look_for_cluster(&self, topic: Option<String>) {
        let Some(topic) = topic else {
            if answers(&self.settings).await {
                self.acks.reachable();
            }
            return;
        };
        if self.reaches(&topic).await
            || !answers(&self.settings).await
            || self.reaches(&topic).await
        {
            return;
        }
        self.acks.fail(Failure::Broken(
            "the Kafka client does not reach the cluster, which answers another client".into(),
        ));
    }

    /// Whether the producer's client gets an answer.
    async fn reaches(&self, topic: &str) -> bool {
        let (client, topic) = (self.client.clone(), topic.to_owned());
        let asked = bounded("fetch_metadata", ASK_TIMEOUT + OVERDUE, move || {
            client
                .client()
                .fetch_metadata(Some(&topic), ASK_TIMEOUT)
                .is_ok()
        });
        match asked.await {
            Ok(true) => {
                self.acks.reachable();
                true
            }
            Ok(false) => false,
            Err(unanswered) => {
                self.acks.fail(Failure::Broken(unanswered.to_string()));
                false
            }
        }
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
    let asked = bounded("fetch_metadata", ASK_TIMEOUT + OVERDUE, move || {
        let asking: Dropped<BaseConsumer> = Dropped::new(config.create()?);
        let metadata = asking.get().fetch_metadata(Some(&name), ASK_TIMEOUT);
        metadata.map(|metadata| {
            metadata
                .topics()
                .first()
                .map(|topic| (topic.partitions().len(), topic.error()))
        })
    });
    let answer = asked.await?;
    judged(
        topic,
        answer.map_err(|error| TopicError::Unreachable(error.to_string()))?,
    )
}

/// What the cluster's answer about a topic means: the number of its partitions, and an error.
pub(super) fn judged(
    topic: &str,
    answer: Option<(usize, Option<RDKafkaRespErr>)>,
) -> Result<i32, TopicError> {
    use RDKafkaRespErr::{
        RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE as NO_LEADER,
        RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED as DENIED,
        RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION as INVALID,
    };
    let topic = topic.to_owned();
    match answer {
        Some((count @ 1.., None | Some(NO_LEADER))) => {
            i32::try_from(count).map_err(|_| TopicError::Unknown(topic))
        }
        Some((0, Some(NO_LEADER))) => Err(TopicError::Unreachable(format!(
            "no partition of topic `{topic}` has a leader yet"
        ))),
        Some((_, Some(DENIED))) => Err(TopicError::Denied {
            topic,
            reason: "the broker answers TOPIC_AUTHORIZATION_FAILED".into(),
        }),
        Some((_, Some(INVALID))) => Err(TopicError::Invalid {
            topic,
            reason: "INVALID_TOPIC_EXCEPTION".into(),
        }),
        _ => Err(TopicError::Unknown(topic)),
    }
}

/// Whether the cluster answers a new client.
pub(crate) async fn answers(settings: &Settings) -> bool {
    !matches!(
        partitions_of(settings, ASKED_TOPIC).await,
        Err(TopicError::Unreachable(_))
    )
}

/// The names of all topics that this client may see.
///
/// # Errors
/// When the cluster cannot be reached.
pub(crate) async fn topic_names(settings: &Settings) -> Result<Vec<String>, TopicError> {
    let mut config = settings.client_config();
    config.set("allow.auto.create.topics", "false");
    let asked = bounded("fetch_metadata", ASK_TIMEOUT + OVERDUE, move || {
        let asking: Dropped<BaseConsumer> = Dropped::new(config.create()?);
        let metadata = asking.get().fetch_metadata(None, ASK_TIMEOUT)?;
        Ok::<_, KafkaError>(
            metadata
                .topics()
                .iter()
                .map(|topic| topic.name().to_owned())
                .collect(),
        )
    });
    asked
        .await?
        .map_err(|error| TopicError::Unreachable(error.to_string()))
}

/// How long a topic keeps its records; `None` if for ever, or if that may not be read.
pub(crate) async fn retention(settings: &Settings, topic: &str) -> Option<Duration> {
    let milliseconds = setting(settings, topic, "retention.ms")
        .await?
        .parse::<i64>()
        .ok()?;
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// The largest batch that a topic takes, compressed; `None` if that may not be read.
pub(crate) async fn message_bytes_max(settings: &Settings, topic: &str) -> Option<usize> {
    setting(settings, topic, MAX_MESSAGE_BYTES)
        .await?
        .parse()
        .ok()
}

/// The answer to a request of an admin client, if it comes within the longest time that one of them is given.
///
/// # Errors
/// When the client is silent: it does not keep its own time-out.
pub(super) async fn within_limit<T>(
    call: &'static str,
    answer: impl Future<Output = T>,
) -> Result<T, Unanswered> {
    let limit = ADMIN_TIMEOUT + OVERDUE;
    timeout(limit, answer)
        .await
        .map_err(|_| Unanswered::Silent { call, limit })
}

/// One setting of a topic, its own or the broker's. `None` if it may not be read.
async fn setting(settings: &Settings, topic: &str, name: &str) -> Option<String> {
    describe(settings, topic).await?.get(name)?.value.clone()
}

/// One setting that the topic has of its own. `None` if the broker's default applies, or if it may not be read.
pub(super) async fn own_setting(settings: &Settings, topic: &str, name: &str) -> Option<String> {
    let described = describe(settings, topic).await?;
    let entry = described.get(name)?;
    entry
        .value
        .clone()
        .filter(|_| entry.source == ConfigSource::DynamicTopic)
}

async fn describe(settings: &Settings, topic: &str) -> Option<ConfigResource> {
    let admin: Dropped<AdminClient<DefaultClientContext>> =
        Dropped::new(settings.client_config().create().ok()?);
    let options = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT));
    let answer = within_limit(
        "describe_configs",
        admin
            .get()
            .describe_configs([&ResourceSpecifier::Topic(topic)], &options),
    )
    .await
    .ok()?;
    answer.ok()?.into_iter().next()?.ok()
}
