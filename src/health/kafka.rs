//! Whether Kafka answers.

use std::time::Duration;

use super::{Check, Checking, Status};
use crate::kafka::{Ping, Settings};

/// How long a question may take: a little less than a check, so that the reason is told and not that the time was over.
const ANSWER_WITHIN: Duration = Duration::from_millis(800);

/// Whether the cluster answers, asked by a client of its own that stays connected.
///
/// A service that publishes by its outbox is ready without Kafka: its events wait in the database. For it this is no check to have.
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

/// The client that asks cannot be made: a property is wrong.
#[derive(Debug, thiserror::Error)]
#[error("no Kafka client can be made: {0}")]
pub struct KafkaCheckError(String);

impl KafkaCheck {
    /// Makes the client.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses a property, in its words.
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
