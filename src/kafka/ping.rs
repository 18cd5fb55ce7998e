//! Repeated check whether the cluster responds, through one client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::drop_on_thread::Dropped;
use super::{ClientError, ClusterError, Replaceable, Settings, bounded};

/// The topic of the request, because a request for all topics may return megabytes. It need not
/// exist and is not created.
const TOPIC: &str = "tidings-health";

/// Maximum number of client errors that are read at once.
const COMPLAINTS_MAX: usize = 64;

/// Time beyond the timeout of a request after which the client is replaced.
const HANG_LIMIT: Duration = Duration::from_secs(5);

/// Checks whether the cluster responds, through one client.
#[derive(Clone)]
pub(crate) struct Ping(Arc<Inner>);

struct Inner {
    settings: Settings,
    client: Replaceable<Client>,
}

struct Client {
    consumer: Dropped<BaseConsumer<LastComplaint>>,
    /// Start of a request that has not returned yet.
    asked: Mutex<Option<Instant>>,
}

/// The last error that the client reported. It holds the cause if a failed request reports only
/// that no broker responded.
#[derive(Default)]
struct LastComplaint(Mutex<Option<String>>);

impl Ping {
    /// Creates the client, which starts to connect.
    ///
    /// # Errors
    ///
    /// Returns librdkafka's message if it refuses a property.
    pub(crate) fn new(settings: &Settings) -> Result<Self, ClientError> {
        let client = Replaceable::default();
        client.get(|| Client::new(settings))?;
        Ok(Self(Arc::new(Inner {
            settings: settings.clone(),
            client,
        })))
    }

    /// Returns the number of brokers of the cluster. Takes up to `timeout`.
    ///
    /// # Errors
    ///
    /// Returns the reason why no broker responds.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons a thread. If its client hangs, a later request replaces it.
    pub(crate) async fn ask(&self, timeout: Duration) -> Result<usize, ClusterError> {
        let mut client = self.0.client.get(|| Client::new(&self.0.settings))?;
        if client
            .asked()
            .is_some_and(|asked| asked.elapsed() > timeout + HANG_LIMIT)
        {
            tracing::warn!(
                "the Kafka client of a health check has not returned (was the clock set back?): it \
                 is replaced"
            );
            self.0.client.discard(&client);
            client = self.0.client.get(|| Client::new(&self.0.settings))?;
        }
        let asked = bounded("fetch_metadata", timeout + HANG_LIMIT, move || {
            client.ask(timeout)
        })
        .await;
        asked?
    }
}

impl Client {
    fn new(settings: &Settings) -> Result<Self, ClientError> {
        // Uses a consumer: a producer's request would make a broker with
        // `auto.create.topics.enable` (the default) create the topic.
        let mut config = settings.client_config();
        config
            .set("allow.auto.create.topics", "false")
            .set_log_level(RDKafkaLogLevel::Emerg);
        config.remove("group.id");
        let consumer = config.create_with_context(LastComplaint::default())?;
        Ok(Self {
            consumer: Dropped::new(consumer),
            asked: Mutex::default(),
        })
    }

    fn asked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks for up to `timeout`, or indefinitely if the client hangs.
    fn ask(&self, timeout: Duration) -> Result<usize, ClusterError> {
        self.asked().get_or_insert_with(Instant::now);
        let client = self.consumer.get();
        let answer = client.fetch_metadata(Some(TOPIC), timeout);
        *self.asked() = None;
        // The client's errors wait in a queue that no other call reads.
        for _ in 0..COMPLAINTS_MAX {
            if client.poll(Duration::ZERO).is_none() {
                break;
            }
        }
        let complaint = client
            .context()
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match answer {
            Ok(metadata) => Ok(metadata.brokers().len()),
            Err(error) => Err(ClusterError::Unreachable(match complaint {
                // Removes the number of repetitions.
                Some(text) => text.split(" (after ").next().unwrap_or(&text).to_owned(),
                None => error
                    .rdkafka_error_code()
                    .map_or_else(|| error.to_string(), |code| code.to_string()),
            })),
        }
    }
}

// === impl ClientContext ===

impl ClientContext for LastComplaint {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _text: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // `AllBrokersDown` does not contain the cause.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for LastComplaint {}
