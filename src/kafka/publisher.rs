//! Sends single records and waits for each: events without a database change, dead letters, retries.

use std::time::Duration;

use rdkafka::{
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _},
    util::Timeout,
};
use tokio::time::timeout;

use super::{OVERDUE, Replaceable, Settings, Unanswered, dropped::Dropped, quiet::Quiet};

/// What the publisher sets and a user may not.
const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // A broker takes any sequence number as a producer's first in a partition. Of two requests under way to a topic that was just made, the one that fails for the
    // moment would be answered "duplicate" when it is sent again behind the other: acknowledged, and lost (KAFKA-15591).
    ("max.in.flight.requests.per.connection", "1"),
    // A key's partition as the Java client computes it.
    ("partitioner", "murmur2_random"),
    ("allow.auto.create.topics", "false"),
];

/// What the publisher prefers; the settings' properties may say otherwise.
const PREFERRED: &[(&str, &str)] = &[
    ("linger.ms", "0"),
    ("compression.type", "lz4"),
    // A topic that was just created is found by then.
    ("topic.metadata.propagation.max.ms", "5000"),
    ("reconnect.backoff.max.ms", "2000"),
    ("retry.backoff.ms", "50"),
    ("log.connection.close", "false"),
];

/// One record on its way out, with headers of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) topic: String,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// With `None` for a header without a value.
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Why a record is not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LetterError {
    #[error("topic `{0}` does not exist")]
    UnknownTopic(String),
    /// The broker would refuse it again.
    #[error("topic `{topic}` refuses the record: {reason}")]
    Refused { topic: String, reason: String },
    #[error("sending to topic `{topic}`: {reason}")]
    Unavailable { topic: String, reason: String },
}

/// Sends records one by one. Its client is replaced once it has failed.
pub(crate) struct Publisher {
    client: Replaceable<Client>,
    settings: Settings,
    timeout: Duration,
}

type Client = Dropped<FutureProducer<Quiet>>;

impl Publisher {
    /// A publisher that gives a record this long to arrive.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(crate) fn open(settings: &Settings, timeout: Duration) -> Result<Self, String> {
        let publisher = Self {
            client: Replaceable::default(),
            settings: settings.clone(),
            timeout,
        };
        publisher
            .client
            .get(|| publisher.connect())
            .map_err(|error| error.to_string())?;
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

    /// Sends a record and waits until every in-sync replica has it.
    ///
    /// # Errors
    /// [`LetterError`]; it may have arrived nevertheless when it says unavailable.
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
                    tracing::warn!(%error, "replaces the Kafka client that sends single records");
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

    /// Whether the client is of no use any more. One that could not deliver in time may hang, which it does not report. One that
    /// met a missing topic remembers that for minutes, also if the topic is created in the meantime.
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
            InvalidMessage, InvalidRecord, MessageSizeTooLarge, UnknownTopic,
            UnknownTopicOrPartition,
        };
        let (topic, reason) = (topic.to_owned(), error.to_string());
        match error.rdkafka_error_code() {
            Some(UnknownTopic | UnknownTopicOrPartition) => Self::UnknownTopic(topic),
            // `InvalidTimestamp` is a fault of a clock: the record is stamped with the time of its sending.
            Some(MessageSizeTooLarge | InvalidRecord | InvalidMessage) => {
                Self::Refused { topic, reason }
            }
            _ => Self::Unavailable { topic, reason },
        }
    }
}
