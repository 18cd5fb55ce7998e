//! Health check of a Kafka cluster.

use std::time::Duration;

use super::{Check, Checking, Status};
use crate::kafka::{ClientError, Ping, Settings};

/// Time limit of a ping: slightly below that of a check, so that the check reports the reason
/// rather than its own timeout.
const ANSWER_WITHIN: Duration = Duration::from_millis(800);

/// Health check of a Kafka cluster, with its own client that stays connected.
///
/// A service that publishes through its outbox is ready without Kafka, since its events wait in the
/// database. Such a service should not use this check.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use tidings::health::{Health, KafkaCheck};
/// use tidings::kafka::Settings;
///
/// let settings = Settings { brokers: "localhost:9092".into(), ..Default::default() };
/// let health = Health::new().check("kafka", KafkaCheck::new(&settings)?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct KafkaCheck {
    ping: Ping,
    brokers: String,
}

/// Error of creating the client: a property is invalid.
#[derive(Debug, thiserror::Error)]
#[error("the Kafka client cannot be created: {0}")]
pub struct KafkaCheckError(ClientError);

impl KafkaCheck {
    /// Creates the check and its client.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaCheckError`] with librdkafka's message if librdkafka rejects a property.
    pub fn new(settings: &Settings) -> Result<Self, KafkaCheckError> {
        Ok(Self {
            ping: Ping::new(settings).map_err(KafkaCheckError)?,
            brokers: settings.brokers.clone(),
        })
    }

    async fn ask(&self) -> Status {
        match self.ping.ask(ANSWER_WITHIN).await {
            Ok(brokers) => Status::Ok(format!("connected, brokers: {brokers}")),
            Err(reason) => Status::Failing(format!("no answer from {}: {reason}", self.brokers)),
        }
    }
}

// === impl Check ===

impl Check for KafkaCheck {
    fn check(&self) -> Checking<'_> {
        Box::pin(self.ask())
    }
}

impl std::fmt::Debug for KafkaCheck {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("KafkaCheck")
            .field("brokers", &self.brokers)
            .finish_non_exhaustive()
    }
}
