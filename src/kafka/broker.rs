//! Settings of a broker, for clients that adapt to them.

use rdkafka::{
    admin::ResourceSpecifier,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{
    ASK_LIMIT, ASK_TIMEOUT, Settings, bounded,
    drop_on_thread::Dropped,
    topics::{ASKED_TOPIC, Admin, settings_of},
};

/// Returns one setting of any broker. Returns `None` if it cannot be read (this requires
/// DescribeConfigs on the cluster) or no broker responds.
pub(crate) async fn broker_setting(settings: &Settings, name: &str) -> Option<String> {
    let config = settings.client_config();
    let asking = config.clone();
    let broker = bounded("fetch_metadata", ASK_LIMIT, move || {
        let client: Dropped<BaseConsumer> = Dropped::new(asking.create().ok()?);
        let metadata = client
            .get()
            .fetch_metadata(Some(ASKED_TOPIC), ASK_TIMEOUT)
            .ok()?;
        metadata.brokers().first().map(|broker| broker.id())
    });
    let broker = broker.await.ok()??;
    let admin: Dropped<Admin> = Dropped::new(config.create().ok()?);
    let described = settings_of(admin.get(), &ResourceSpecifier::Broker(broker)).await;
    described.ok()??.get(name)?.value.clone()
}
