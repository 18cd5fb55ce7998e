//! Creation of topics: for events if the relay may create them, for positions, and for the retries
//! and dead letters of subscribers.

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    error::RDKafkaErrorCode,
};

use super::{
    ASK_TIMEOUT, Settings,
    drop_on_thread::Dropped,
    topics::{MAX_MESSAGE_BYTES, TopicError, own_setting, partitions_of, within_limit},
};

/// Options of a new topic. If a number is `None`, the broker's default applies (KIP-464).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Creation<'c> {
    pub(crate) partitions: Option<i32>,
    pub(crate) replication: Option<i32>,
    pub(crate) config: &'c [(&'c str, &'c str)],
}

/// Creates `topic`. Succeeds if it already exists.
///
/// # Errors
///
/// Returns [`TopicError`] with the broker's reason if it refuses, or if the cluster does not
/// respond.
pub(crate) async fn create_topic(
    settings: &Settings,
    topic: &str,
    how: Creation<'_>,
) -> Result<(), TopicError> {
    let failed = |reason: String| TopicError::Create {
        topic: topic.to_owned(),
        reason,
    };
    let admin: AdminClient<DefaultClientContext> = settings
        .client_config()
        .create()
        .map_err(|error| failed(error.to_string()))?;
    let admin = Dropped::new(admin);
    let mut new = NewTopic::new(
        topic,
        how.partitions.unwrap_or(-1),
        TopicReplication::Fixed(how.replication.unwrap_or(-1)),
    );
    for (key, value) in how.config {
        new = new.set(key, value);
    }
    let options = AdminOptions::new()
        .operation_timeout(Some(ASK_TIMEOUT))
        .request_timeout(Some(ASK_TIMEOUT * 2));
    let answer = within_limit("create_topics", admin.get().create_topics([&new], &options)).await?;
    match answer
        .map_err(|error| TopicError::Unreachable(format!("creating topic `{topic}`: {error}")))?
        .pop()
    {
        Some(Ok(_)) | None | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) if passes(code) => Err(TopicError::Unreachable(format!(
            "creating topic `{topic}`: {code}"
        ))),
        Some(Err((_, RDKafkaErrorCode::InvalidTopic))) => Err(TopicError::Invalid {
            topic: topic.to_owned(),
            reason: "INVALID_TOPIC_EXCEPTION when it is created".into(),
        }),
        Some(Err((_, code))) => Err(failed(code.to_string())),
    }
}

/// Returns `true` if the error results from the state of the cluster rather than from the topic.
fn passes(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        BrokerNotAvailable, BrokerTransportFailure, NotController, OperationTimedOut,
        RequestTimedOut,
    };
    matches!(
        code,
        BrokerNotAvailable
            | BrokerTransportFailure
            | NotController
            | OperationTimedOut
            | RequestTimedOut
    )
}

/// Creates `topic` if it is missing, with the number of partitions and the `max.message.bytes` of
/// `like`, or with the broker's defaults if `like` is missing too.
///
/// Checks first whether the topic exists, so that a client without the right to create topics can
/// use one that an operator has created.
///
/// # Errors
///
/// Returns [`TopicError`] if one of the two may not be used, the broker refuses, or the cluster is
/// unreachable.
pub(crate) async fn create_like(
    settings: &Settings,
    topic: &str,
    like: &str,
) -> Result<(), TopicError> {
    match partitions_of(settings, topic).await {
        Err(TopicError::Unknown(_)) => {}
        there => return there.map(|_| ()),
    }
    let partitions = match partitions_of(settings, like).await {
        Ok(partitions) => Some(partitions),
        Err(TopicError::Unknown(_)) => None,
        Err(error) => return Err(error),
    };
    // Each record that fits into `like` must fit, whatever the broker's default is.
    let largest = match partitions {
        Some(_) => own_setting(settings, like, MAX_MESSAGE_BYTES).await,
        None => None,
    };
    let config: Vec<(&str, &str)> = largest
        .iter()
        .map(|bytes| (MAX_MESSAGE_BYTES, bytes.as_str()))
        .collect();
    create_topic(
        settings,
        topic,
        Creation {
            partitions,
            config: &config,
            ..Creation::default()
        },
    )
    .await
}
