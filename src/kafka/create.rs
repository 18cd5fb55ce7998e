//! Creates the topics that subscribers write: retries and dead letters.

use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
};

use super::{Settings, dropped::Dropped};

/// How long a question to the cluster may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates `topic` with as many partitions as `like` has; one that exists already is fine.
///
/// # Errors
/// What the cluster says.
pub(crate) async fn create_like(settings: &Settings, topic: &str, like: &str) -> Result<(), String> {
    let partitions = partition_count(settings, like).await?;
    let admin: AdminClient<DefaultClientContext> = settings.client_config().create().map_err(|error| error.to_string())?;
    let admin = Dropped::new(admin);
    // -1: the broker's default.
    let new = NewTopic::new(topic, partitions.unwrap_or(-1), TopicReplication::Fixed(-1));
    let answer = admin.get().create_topics([&new], &AdminOptions::new().operation_timeout(Some(ASK_TIMEOUT))).await;
    match answer.map_err(|error| error.to_string())?.pop() {
        Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => Err(format!("topic `{topic}` cannot be created: {code}")),
        _ => Ok(()),
    }
}

/// How many partitions a topic has; `None` if there is no such topic.
///
/// # Errors
/// When the cluster does not answer.
pub(crate) async fn partition_count(settings: &Settings, topic: &str) -> Result<Option<i32>, String> {
    let (mut config, topic) = (settings.client_config(), topic.to_owned());
    // A question shall not make the topic.
    config.set("allow.auto.create.topics", "false");
    let asked = tokio::task::spawn_blocking(move || {
        let asking: Dropped<BaseConsumer> = Dropped::new(config.create().map_err(|error| error.to_string())?);
        let metadata = asking.get().fetch_metadata(Some(&topic), ASK_TIMEOUT).map_err(|error| error.to_string());
        let count = metadata?.topics().first().map_or(0, |topic| topic.partitions().len());
        Ok(i32::try_from(count).ok().filter(|count| *count > 0))
    });
    asked.await.map_err(|error| error.to_string())?
}

/// How long a topic keeps its records; `None` if for ever, or if that may not be read.
pub(crate) async fn retention(settings: &Settings, topic: &str) -> Option<Duration> {
    let milliseconds = setting(settings, topic, "retention.ms").await?.parse::<i64>().ok()?;
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// One setting of a topic; `None` if it may not be read.
pub(super) async fn setting(settings: &Settings, topic: &str, name: &str) -> Option<String> {
    let admin: Dropped<AdminClient<DefaultClientContext>> = Dropped::new(settings.client_config().create().ok()?);
    let answer =
        admin.get().describe_configs([&ResourceSpecifier::Topic(topic)], &AdminOptions::new().request_timeout(Some(ASK_TIMEOUT))).await;
    answer.ok()?.into_iter().next()?.ok()?.get(name)?.value.clone()
}
