//! Queries of topics: their existence, partitions and settings.

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
    ASK_LIMIT, ASK_TIMEOUT, Acks, Creation, Failure, OVERDUE, Producer, Settings, Unanswered,
    bounded, context::Context, create::create_topic, drop_on_thread::Dropped,
};

/// The topic setting for the largest batch.
pub(super) const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// Maximum timeout of an admin request.
pub(super) const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The topic of a request that only checks whether a broker responds. It need not exist and is not
/// created.
pub(super) const ASKED_TOPIC: &str = "tidings-health";

/// Reason why a topic cannot be used now. Each pauses the caller; none loses an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TopicError {
    #[error("Kafka is not reachable: {0}")]
    Unreachable(String),
    #[error(
        "topic `{0}` does not exist: create it (kafka-topics.sh --create --topic {0} --partitions \
         N --replication-factor N), or let the relay do it ([topics] create = true)"
    )]
    Unknown(String),
    #[error(
        "topic `{topic}` may not be used: {reason}; a relay's principal needs Write on it (and \
         Read on the topic of its positions), a subscriber's principal needs Read \
         (docs/operating.md)"
    )]
    Denied { topic: String, reason: String },
    #[error(
        "topic `{0}` is compacted, and a relay that delivers at least once may replace a newer \
         event with an older one there: set delivery = \"exactly-once\", or the topic's \
         cleanup.policy = delete"
    )]
    Compacted(String),
    #[error("topic `{topic}` cannot be created: {reason}")]
    Create { topic: String, reason: String },
    #[error("topic `{topic}` does not exist yet: {reason}")]
    NotYet { topic: String, reason: String },
    #[error(
        "topic `{topic}` cannot be used: the broker returned {reason}; a topic whose name differs \
         only in `.` and `_` may exist, or the name may be internal to Kafka"
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

/// Queries topics on blocking threads.
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

    /// Returns the cluster's id, which proves that the cluster is reachable.
    ///
    /// # Errors
    ///
    /// Returns [`TopicError::Unreachable`] if no broker responds.
    pub(crate) async fn cluster_id(&self) -> Result<String, TopicError> {
        let client = self.client.clone();
        let asked = bounded("fetch_cluster_id", ASK_LIMIT, move || {
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

    /// Checks whether the cluster responds again, and updates the producer's [`Acks`] if it does. A
    /// producer with nothing to send would not notice that. If the producer cannot reach a cluster
    /// that responds to another client, the producer has failed.
    ///
    /// Without a `topic`, only another client checks the cluster. The producer can only be checked
    /// with a topic that exists, because a broker may create a missing one.
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
            "the Kafka client cannot reach the cluster, but another client can".into(),
        ));
    }

    /// Returns `true` if the producer's client gets a response.
    async fn reaches(&self, topic: &str) -> bool {
        let (client, topic) = (self.client.clone(), topic.to_owned());
        let asked = bounded("fetch_metadata", ASK_LIMIT, move || {
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

    /// Returns the topic's number of partitions, at least one.
    ///
    /// Uses a separate client, because a producer's request would make a broker with
    /// `auto.create.topics.enable` (the default) create the topic.
    ///
    /// # Errors
    ///
    /// Returns [`TopicError`] if the topic is missing or may not be used, or the cluster is
    /// unreachable.
    pub(crate) async fn partitions(&self, topic: &str) -> Result<i32, TopicError> {
        partitions_of(&self.settings, topic).await
    }

    /// Creates a topic. Succeeds if it already exists.
    ///
    /// # Errors
    ///
    /// Returns [`TopicError`] with the broker's reason if it refuses, or if the cluster does not
    /// respond.
    pub(crate) async fn create(&self, topic: &str, how: Creation<'_>) -> Result<(), TopicError> {
        create_topic(&self.settings, topic, how).await
    }
}

/// Returns the topic's number of partitions, at least one. Does not create the topic.
///
/// # Errors
///
/// Returns [`TopicError`] if the topic is missing or may not be used, or the cluster is
/// unreachable.
pub(crate) async fn partitions_of(settings: &Settings, topic: &str) -> Result<i32, TopicError> {
    let (mut config, name) = (settings.client_config(), topic.to_owned());
    config.set("allow.auto.create.topics", "false");
    let asked = bounded("fetch_metadata", ASK_LIMIT, move || {
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

/// Interprets the cluster's response about a topic, which is its number of partitions and an error.
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
            reason: "the broker returned TOPIC_AUTHORIZATION_FAILED".into(),
        }),
        Some((_, Some(INVALID))) => Err(TopicError::Invalid {
            topic,
            reason: "INVALID_TOPIC_EXCEPTION".into(),
        }),
        _ => Err(TopicError::Unknown(topic)),
    }
}

/// Returns `true` if the cluster responds to a new client.
pub(crate) async fn answers(settings: &Settings) -> bool {
    !matches!(
        partitions_of(settings, ASKED_TOPIC).await,
        Err(TopicError::Unreachable(_))
    )
}

/// Returns the names of all topics that this client may see.
///
/// # Errors
///
/// Returns [`TopicError::Unreachable`] if no broker responds.
pub(crate) async fn topic_names(settings: &Settings) -> Result<Vec<String>, TopicError> {
    let mut config = settings.client_config();
    config.set("allow.auto.create.topics", "false");
    let asked = bounded("fetch_metadata", ASK_LIMIT, move || {
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

/// Returns the retention time of a topic. Returns `None` if it keeps records forever or the setting
/// cannot be read.
pub(crate) async fn retention(settings: &Settings, topic: &str) -> Option<Duration> {
    let milliseconds = setting(settings, topic, "retention.ms")
        .await?
        .parse::<i64>()
        .ok()?;
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// Returns the size of the largest compressed batch that a topic accepts, or `None` if the setting
/// cannot be read.
pub(crate) async fn message_bytes_max(settings: &Settings, topic: &str) -> Option<usize> {
    setting(settings, topic, MAX_MESSAGE_BYTES)
        .await?
        .parse()
        .ok()
}

/// Waits for the result of an admin request, for longer than the longest timeout of such a request.
///
/// # Errors
///
/// Returns [`Unanswered::Silent`] if the client does not return, although its own timeout has
/// passed.
pub(super) async fn within_limit<T>(
    call: &'static str,
    answer: impl Future<Output = T>,
) -> Result<T, Unanswered> {
    let limit = ADMIN_TIMEOUT + OVERDUE;
    timeout(limit, answer)
        .await
        .map_err(|_| Unanswered::Silent { call, limit })
}

/// Returns the effective value of a topic setting, or `None` if it cannot be read.
async fn setting(settings: &Settings, topic: &str, name: &str) -> Option<String> {
    describe(settings, topic).await?.get(name)?.value.clone()
}

/// Returns the value of a setting that is set on the topic itself. Returns `None` if the broker's
/// default applies or the setting cannot be read.
pub(super) async fn own_setting(settings: &Settings, topic: &str, name: &str) -> Option<String> {
    let described = describe(settings, topic).await?;
    let entry = described.get(name)?;
    entry
        .value
        .clone()
        .filter(|_| entry.source == ConfigSource::DynamicTopic)
}

async fn describe(settings: &Settings, topic: &str) -> Option<ConfigResource> {
    let admin: Dropped<Admin> = Dropped::new(settings.client_config().create().ok()?);
    settings_of(admin.get(), &ResourceSpecifier::Topic(topic))
        .await
        .ok()?
}

/// Client of administrative requests.
pub(super) type Admin = AdminClient<DefaultClientContext>;

/// Returns the settings of a topic or a broker. Returns `None` if they cannot be read, which
/// requires DescribeConfigs.
///
/// # Errors
///
/// Returns [`Unanswered`] if the client must be replaced.
pub(super) async fn settings_of(
    admin: &Admin,
    of: &ResourceSpecifier<'_>,
) -> Result<Option<ConfigResource>, Unanswered> {
    let options = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT));
    let asked = admin.describe_configs([of], &options);
    let answer = within_limit("describe_configs", asked).await?;
    Ok(answer.ok().and_then(|all| all.into_iter().next()?.ok()))
}
