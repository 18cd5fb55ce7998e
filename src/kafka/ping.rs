//! Whether the cluster answers, asked again and again by one client.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::Settings;
use super::dropped::Dropped;

/// Asked about because a question about all topics is answered by megabytes where there are many. It need not exist, and is not created.
const TOPIC: &str = "tidings-health";

/// How many of the client's complaints are read at once.
const COMPLAINTS_MAX: usize = 64;

/// A client that asks whether the cluster answers.
#[derive(Clone)]
pub(crate) struct Ping(Arc<Dropped<BaseConsumer<LastComplaint>>>);

/// What the client complained of last: the reason, where a failed question only knows that nobody answered.
#[derive(Default)]
struct LastComplaint(Mutex<Option<String>>);

impl Ping {
    /// Makes the client, which begins to connect.
    ///
    /// # Errors
    /// When a property is refused, in librdkafka's words.
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        // A consumer: a producer's question has a broker with `auto.create.topics.enable` (the default) make the topic.
        let mut config = settings.client_config();
        config.set("allow.auto.create.topics", "false").set_log_level(RDKafkaLogLevel::Emerg);
        config.remove("group.id");
        let client = config.create_with_context(LastComplaint::default()).map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(Dropped::new(client))))
    }

    /// How many brokers answer for the cluster; blocks for up to `timeout`.
    ///
    /// # Errors
    /// Why nobody answers.
    pub(crate) fn ask(&self, timeout: Duration) -> Result<usize, String> {
        let client = self.0.get();
        let answer = client.fetch_metadata(Some(TOPIC), timeout);
        // The complaints wait in a queue that nobody else reads.
        for _ in 0..COMPLAINTS_MAX {
            if client.poll(Duration::ZERO).is_none() {
                break;
            }
        }
        let complaint = client.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match answer {
            Ok(metadata) => Ok(metadata.brokers().len()),
            Err(error) => Err(match complaint {
                // Without how often it has said so.
                Some(text) => text.split(" (after ").next().unwrap_or(&text).to_owned(),
                None => error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string()),
            }),
        }
    }
}

// === impl ClientContext ===

impl ClientContext for LastComplaint {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _text: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // It says nothing of the reason.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for LastComplaint {}
