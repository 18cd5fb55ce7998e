//! Settings of a broker, for clients that adapt to them.

use rdkafka::{
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{
    OVERDUE, Settings, bounded,
    drop_on_thread::Dropped,
    topics::{ASK_TIMEOUT, ASKED_TOPIC, within_limit},
};

/// Returns one setting of any broker. Returns `None` if it cannot be read (this requires
/// DescribeConfigs on the cluster) or no broker responds.
pub(crate) async fn broker_setting(settings: &Settings, name: &str) -> Option<String> {
    let config = settings.client_config();
    let asking = config.clone();
    let broker = bounded("fetch_metadata", ASK_TIMEOUT + OVERDUE, move || {
        let client: Dropped<BaseConsumer> = Dropped::new(asking.create().ok()?);
        let metadata = client
            .get()
            .fetch_metadata(Some(ASKED_TOPIC), ASK_TIMEOUT)
            .ok()?;
        metadata.brokers().first().map(|broker| broker.id())
    });
    let broker = broker.await.ok()??;
    let admin: Dropped<AdminClient<DefaultClientContext>> = Dropped::new(config.create().ok()?);
    let options = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT));
    let answer = within_limit(
        "describe_configs",
        admin
            .get()
            .describe_configs([&ResourceSpecifier::Broker(broker)], &options),
    )
    .await
    .ok()?;
    answer
        .ok()?
        .into_iter()
        .next()?
        .ok()?
        .get(name)?
        .value
        .clone()
}
