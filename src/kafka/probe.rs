//! What a cluster says of itself when asked once: brokers, topics and the settings that decide whether events survive.

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

use super::dropped::Dropped;
use super::{OVERDUE, Settings, bounded};

/// How many of the client's complaints are kept. The last ones tell why a connection fails.
const COMPLAINTS_MAX: usize = 16;

/// How long an explanation is waited for.
const COMPLAINT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a cluster says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) id: Option<String>,
    pub(crate) brokers: usize,
    /// Each topic that was asked for.
    pub(crate) topics: BTreeMap<String, Topic>,
    /// A broker's defaults, which a topic created without its own takes. Empty if they may not be read.
    pub(crate) defaults: BTreeMap<String, String>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    /// It exists.
    There {
        partitions: usize,
        /// Of the partition with the fewest replicas.
        replicas: usize,
        /// Its settings. Empty if they may not be read.
        settings: BTreeMap<String, String>,
    },
    /// It does not exist.
    Missing,
    /// It may not be looked at, or not be used now; the broker's words.
    Refused(String),
}

impl Cluster {
    /// Asks the cluster, three questions of up to `timeout` each.
    ///
    /// # Errors
    ///
    /// Why nobody answers, in the client's words: refused, not resolved, wrong password, wrong certificate. Or that the client hangs.
    pub(crate) async fn ask(
        settings: &Settings,
        topics: &[String],
        timeout: Duration,
    ) -> Result<Self, String> {
        let (settings, topics) = (settings.clone(), topics.to_vec());
        let asked = bounded("fetch_metadata", timeout * 3 + OVERDUE, move || {
            Self::ask_blocking(&settings, &topics, timeout)
        });
        asked
            .await
            .unwrap_or_else(|unanswered| Err(unanswered.to_string()))
    }

    fn ask_blocking(
        settings: &Settings,
        topics: &[String],
        timeout: Duration,
    ) -> Result<Self, String> {
        let mut config = settings.client_config();
        config.set_log_level(RDKafkaLogLevel::Error);
        let client: ThreadedProducer<Complaints> = config
            .create_with_context(Complaints::default())
            .map_err(|error| error.to_string())?;
        let client = Dropped::new(client);
        let client = client.get();
        // Without a topic's name: the answer for a name could create the topic.
        let metadata = client
            .client()
            .fetch_metadata(None, timeout)
            .map_err(|error| client.context().why(&error))?;
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

    /// Settings need a right of their own (DescribeConfigs), so that not being told is not an error.
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

/// What the client complains about while it connects: the error of a request only says that nobody answered.
#[derive(Debug, Default)]
struct Complaints(Mutex<Vec<String>>);

impl Complaints {
    /// The reason behind `error`: the last complaint. A complaint may arrive after the error it explains.
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
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl ClientContext for Complaints {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _text: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // Repeated many times a second, and says nothing of the reason.
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
