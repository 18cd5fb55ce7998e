//! Changes to existing topics, made only by an operator's commands.

use std::time::{Duration, Instant};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    error::RDKafkaErrorCode,
};

use super::{
    Settings,
    drop_on_thread::Dropped,
    topics::{ADMIN_TIMEOUT, TopicError, within_limit},
};

/// Timeout of one change of a topic.
const TIMEOUT: Duration = Duration::from_secs(20);

fn client(settings: &Settings) -> Result<Dropped<AdminClient<DefaultClientContext>>, TopicError> {
    settings
        .client_config()
        .create()
        .map(Dropped::new)
        .map_err(|error| TopicError::Unreachable(error.to_string()))
}

/// Deletes a topic. Returns `false` if it did not exist.
///
/// # Errors
///
/// Returns [`TopicError`] if the broker refuses or the cluster does not respond.
pub(crate) async fn delete_topic(settings: &Settings, topic: &str) -> Result<bool, TopicError> {
    let admin = client(settings)?;
    let options = AdminOptions::new()
        .operation_timeout(Some(TIMEOUT))
        .request_timeout(Some(ADMIN_TIMEOUT));
    let answer = within_limit(
        "delete_topics",
        admin.get().delete_topics(&[topic], &options),
    )
    .await?;
    match answer
        .map_err(|error| TopicError::Unreachable(error.to_string()))?
        .pop()
    {
        Some(Err((_, RDKafkaErrorCode::UnknownTopicOrPartition))) => Ok(false),
        Some(Err((_, code))) => Err(TopicError::Change {
            topic: topic.to_owned(),
            doing: "deleted",
            reason: code.to_string(),
        }),
        _ => Ok(true),
    }
}

/// Raises the number of partitions of a topic to `partitions` and waits until the cluster reports
/// it.
///
/// # Errors
///
/// Returns [`TopicError`] if the broker refuses or the cluster does not respond.
pub(crate) async fn grow_topic(
    settings: &Settings,
    topic: &str,
    partitions: i32,
) -> Result<(), TopicError> {
    let refused = |reason: String| TopicError::Change {
        topic: topic.to_owned(),
        doing: "grown",
        reason,
    };
    let admin = client(settings)?;
    let options = AdminOptions::new()
        .operation_timeout(Some(TIMEOUT))
        .request_timeout(Some(ADMIN_TIMEOUT));
    let count = usize::try_from(partitions)
        .map_err(|_| refused(format!("{partitions} is not a valid number of partitions")))?;
    let answer = within_limit(
        "create_partitions",
        admin
            .get()
            .create_partitions([&NewPartitions::new(topic, count)], &options),
    )
    .await?;
    if let Some(Err((_, code))) = answer
        .map_err(|error| TopicError::Unreachable(error.to_string()))?
        .pop()
    {
        return Err(refused(code.to_string()));
    }
    let until = Instant::now() + TIMEOUT;
    while super::topics::partitions_of(settings, topic).await? < partitions {
        if Instant::now() > until {
            return Err(refused("the new partitions do not appear".into()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
