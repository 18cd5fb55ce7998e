//! One-time query of a cluster: brokers, topics, and the settings that determine whether events
//! survive a failure.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier,
};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaRespErr;

use super::drop_on_thread::Dropped;
use super::{ClusterError, OVERDUE, Settings, bounded};

/// Maximum number of client errors that are kept. The last ones explain why a connection fails.
const COMPLAINTS_MAX: usize = 16;

/// Maximum time to wait for an error that explains a failure.
const COMPLAINT_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) id: Option<String>,
    pub(crate) brokers: usize,
    /// The requested topics.
    pub(crate) topics: BTreeMap<String, Topic>,
    /// A broker's defaults for topics without their own settings. Empty if they cannot be read.
    pub(crate) defaults: BTreeMap<String, String>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    /// The topic exists.
    There {
        partitions: usize,
        /// The number of replicas of the partition that has the fewest.
        replicas: usize,
        /// The settings of the topic. Empty if they cannot be read.
        settings: BTreeMap<String, String>,
    },
    /// The topic does not exist.
    Missing,
    /// The topic may not be described or cannot be used now, with the broker's error.
    Refused(String),
}

impl Cluster {
    /// Queries the cluster with three requests of up to `timeout` each.
    ///
    /// # Errors
    ///
    /// Returns the client's reason if no broker responds (connection refused, host not resolved,
    /// wrong password, wrong certificate), or an error if the client hangs.
    pub(crate) async fn ask(
        settings: &Settings,
        topics: &[String],
        timeout: Duration,
    ) -> Result<Self, ClusterError> {
        let (settings, topics) = (settings.clone(), topics.to_vec());
        let asked = bounded("fetch_metadata", timeout * 3 + OVERDUE, move || {
            Self::ask_blocking(&settings, &topics, timeout)
        });
        asked.await?
    }

    fn ask_blocking(
        settings: &Settings,
        topics: &[String],
        timeout: Duration,
    ) -> Result<Self, ClusterError> {
        let mut config = settings.client_config();
        config.set_log_level(RDKafkaLogLevel::Error);
        let client: ThreadedProducer<Complaints> =
            config.create_with_context(Complaints::default())?;
        let client = Dropped::new(client);
        let client = client.get();
        // Requests all topics, because a request for one name could create that topic.
        let metadata = client
            .client()
            .fetch_metadata(None, timeout)
            .map_err(|error| ClusterError::Unreachable(client.context().why(&error)))?;
        let brokers = metadata.brokers().len();
        let mut cluster = Self {
            id: client.client().fetch_cluster_id(timeout),
            brokers,
            ..Self::default()
        };
        for name in topics {
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            cluster
                .topics
                .insert(name.clone(), topic.map_or(Topic::Missing, of_metadata));
        }
        if let Some(broker) = metadata.brokers().first() {
            cluster.read_settings(settings, broker.id(), timeout);
        }
        Ok(cluster)
    }

    /// Reads the settings, which requires a separate right (DescribeConfigs). A failure is
    /// therefore not an error.
    fn read_settings(&mut self, settings: &Settings, broker: i32, timeout: Duration) {
        let mut config = settings.client_config();
        config.set_log_level(RDKafkaLogLevel::Emerg);
        let Ok(admin) =
            config.create_with_context::<_, AdminClient<Complaints>>(Complaints::default())
        else {
            return;
        };
        let admin = Dropped::new(admin);
        let there: Vec<String> = self
            .topics
            .iter()
            .filter(|(_, topic)| matches!(topic, Topic::There { .. }))
            .map(|(name, _)| name.clone())
            .collect();
        let mut resources = vec![ResourceSpecifier::Broker(broker)];
        resources.extend(there.iter().map(|name| ResourceSpecifier::Topic(name)));
        let options = AdminOptions::new().request_timeout(Some(timeout));
        let asked = admin.get().describe_configs(&resources, &options);
        let Ok(answers) = tokio::runtime::Handle::current().block_on(asked) else {
            return;
        };
        for resource in answers.into_iter().flatten() {
            let settings = of_resource(&resource);
            match resource.specifier {
                OwnedResourceSpecifier::Broker(_) => self.defaults = settings,
                OwnedResourceSpecifier::Topic(name) => {
                    if let Some(Topic::There {
                        settings: empty, ..
                    }) = self.topics.get_mut(&name)
                    {
                        *empty = settings;
                    }
                }
                OwnedResourceSpecifier::Group(_) => {}
            }
        }
    }
}

fn of_metadata(topic: &rdkafka::metadata::MetadataTopic) -> Topic {
    match topic.error() {
        None => Topic::There {
            partitions: topic.partitions().len(),
            replicas: topic
                .partitions()
                .iter()
                .map(|partition| partition.replicas().len())
                .min()
                .unwrap_or_default(),
            settings: BTreeMap::new(),
        },
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Topic::Missing,
        Some(error) => Topic::Refused(KafkaError::MetadataFetch(error.into()).to_string()),
    }
}

fn of_resource(resource: &ConfigResource) -> BTreeMap<String, String> {
    resource
        .entries
        .iter()
        .filter(|entry| !entry.is_sensitive)
        .filter_map(|entry| Some((entry.name.clone(), entry.value.clone()?)))
        .collect()
}

/// Errors that the client reports while it connects. The error of a request states only that no
/// broker responded.
#[derive(Debug, Default)]
struct Complaints(Mutex<Vec<String>>);

impl Complaints {
    /// Returns the cause of `error`, which is the last error that the client reported. That report
    /// may arrive after `error`.
    fn why(&self, error: &KafkaError) -> String {
        let deadline = Instant::now() + COMPLAINT_TIMEOUT;
        loop {
            let complaints = self
                .0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clone();
            if let Some(text) = complaints.last() {
                return text.split(" (after ").next().unwrap_or(text).to_owned();
            }
            if Instant::now() > deadline {
                return error
                    .rdkafka_error_code()
                    .map_or_else(|| error.to_string(), |code| code.to_string());
            }
            #[expect(clippy::disallowed_methods, reason = "called on a thread of its own")]
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl ClientContext for Complaints {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _text: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // Repeated many times a second, and does not contain the cause.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        let mut complaints = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if complaints.len() == COMPLAINTS_MAX {
            complaints.remove(0);
        }
        complaints.push(reason.to_owned());
    }
}

impl ProducerContext for Complaints {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}
