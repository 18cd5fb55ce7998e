//! Publisher of single records that waits for each: events without a database change, dead letters
//! and retries.

use std::time::Duration;

use rdkafka::{
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _},
    util::Timeout,
};
use tokio::time::timeout;

use super::{
    ClientError, OVERDUE, Replaceable, Settings, Unanswered, drop_on_thread::Dropped,
    silent_context::Quiet,
};

/// Properties that the publisher sets and a user cannot override.
const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // A broker accepts any sequence number as the first one of a producer in a partition. Suppose
    // that two requests for a new topic are in flight and the first one fails transiently. When it
    // is sent again after the second one, the broker answers "duplicate": its record is
    // acknowledged, and lost (KAFKA-15591).
    ("max.in.flight.requests.per.connection", "1"),
    // Same partition of a key as in the Java client.
    ("partitioner", "murmur2_random"),
    ("allow.auto.create.topics", "false"),
];

/// Properties that the publisher sets unless the settings override them.
const PREFERRED: &[(&str, &str)] = &[
    ("linger.ms", "0"),
    ("compression.type", "lz4"),
    // Long enough for a newly created topic to become visible.
    ("topic.metadata.propagation.max.ms", "5000"),
    ("reconnect.backoff.max.ms", "2000"),
    ("retry.backoff.ms", "50"),
    ("log.connection.close", "false"),
];

/// A record to send. The values of its headers are bytes.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) topic: String,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// `None` for a header without a value.
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Reason why a record was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LetterError {
    #[error("topic `{0}` does not exist")]
    UnknownTopic(String),
    /// The broker would refuse the record again.
    #[error("topic `{topic}` refuses the record: {reason}")]
    Refused { topic: String, reason: String },
    /// The client has no permission to write to the topic.
    #[error("writing to topic `{topic}` is forbidden: {reason}")]
    Forbidden { topic: String, reason: String },
    #[error("sending to topic `{topic}`: {reason}")]
    Unavailable { topic: String, reason: String },
}

/// Sends records one by one. A client that has failed is replaced.
pub(crate) struct Publisher {
    client: Replaceable<Client>,
    settings: Settings,
    timeout: Duration,
}

type Client = Dropped<FutureProducer<Quiet>>;

impl Publisher {
    /// Creates a publisher that waits for up to `timeout` for each acknowledgement.
    ///
    /// # Errors
    ///
    /// Returns librdkafka's message if it refuses a property.
    pub(crate) fn open(settings: &Settings, timeout: Duration) -> Result<Self, ClientError> {
        let publisher = Self {
            client: Replaceable::default(),
            settings: settings.clone(),
            timeout,
        };
        publisher.client.get(|| publisher.connect())?;
        Ok(publisher)
    }

    fn connect(&self) -> Result<Client, KafkaError> {
        let mut config = self.settings.client_config_over(PREFERRED);
        for (name, value) in FIXED {
            config.set(*name, *value);
        }
        config.set(
            "message.max.bytes",
            self.settings.letter_bytes_max().to_string(),
        );
        config.set("message.timeout.ms", self.timeout.as_millis().to_string());
        config.set_log_level(RDKafkaLogLevel::Error);
        config.create_with_context(Quiet).map(Dropped::new)
    }

    /// Sends a record and waits until all in-sync replicas have it.
    ///
    /// # Errors
    ///
    /// Returns [`LetterError`]. After [`LetterError::Unavailable`], the record may have been
    /// written.
    pub(crate) async fn send(&self, letter: &Letter) -> Result<(), LetterError> {
        let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len());
        for (key, value) in &letter.headers {
            headers = headers.insert(Header {
                key,
                value: value.as_ref(),
            });
        }
        let mut record = FutureRecord::<[u8], [u8]>::to(&letter.topic).headers(headers);
        (record.key, record.payload) = (letter.key.as_deref(), letter.value.as_deref());
        let client = self
            .client
            .get(|| self.connect())
            .map_err(|error| LetterError::of(&letter.topic, &error))?;
        let limit = self.timeout + OVERDUE;
        match timeout(
            limit,
            client.get().send(record, Timeout::After(self.timeout)),
        )
        .await
        {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => {
                if self.has_failed(&client, &error) {
                    tracing::warn!(%error, "replacing the Kafka client that sends single records");
                    self.client.discard(&client);
                }
                Err(LetterError::of(&letter.topic, &error))
            }
            Err(_) => {
                self.client.discard(&client);
                let reason = Unanswered::Silent {
                    call: "produce",
                    limit,
                }
                .to_string();
                Err(LetterError::Unavailable {
                    topic: letter.topic.clone(),
                    reason,
                })
            }
        }
    }

    /// Returns `true` if the client must be replaced. A client that could not deliver in time may
    /// hang, which it does not report. A client that has encountered a missing topic remembers that
    /// for minutes, even if the topic is created in the meantime.
    fn has_failed(&self, client: &Client, error: &KafkaError) -> bool {
        use RDKafkaErrorCode::{MessageTimedOut, UnknownTopic, UnknownTopicOrPartition};
        matches!(
            error.rdkafka_error_code(),
            Some(MessageTimedOut | UnknownTopic | UnknownTopicOrPartition)
        ) || client.get().client().fatal_error().is_some()
    }
}

impl LetterError {
    fn of(topic: &str, error: &KafkaError) -> Self {
        use RDKafkaErrorCode::{
            InvalidMessage, InvalidRecord, MessageSizeTooLarge, TopicAuthorizationFailed,
            UnknownTopic, UnknownTopicOrPartition,
        };
        let (topic, reason) = (topic.to_owned(), error.to_string());
        match error.rdkafka_error_code() {
            Some(UnknownTopic | UnknownTopicOrPartition) => Self::UnknownTopic(topic),
            // `InvalidTimestamp` is not a refusal of the record. It is stamped when it is sent, so
            // a clock is wrong.
            Some(MessageSizeTooLarge | InvalidRecord | InvalidMessage) => {
                Self::Refused { topic, reason }
            }
            Some(TopicAuthorizationFailed) => Self::Forbidden { topic, reason },
            _ => Self::Unavailable { topic, reason },
        }
    }
}
