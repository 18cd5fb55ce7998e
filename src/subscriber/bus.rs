//! The bus: a service's access to a Kafka cluster.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::{Subscriber, failure::dead_letter::DeadLetterSink};
use crate::{
    event::{DomainEvent, Envelope, EnvelopeError, EventId},
    kafka::{
        ClientError, EnvelopeFormat, EnvelopeWriter, Letter, LetterError, Outgoing, Publisher,
        Settings, Value, create_like,
    },
};

/// The time within which Kafka must confirm a record before the caller gets an error.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A service's access to a Kafka cluster. It subscribes to events and publishes events that belong
/// to no database change. Cheap to clone.
///
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// use tidings::{Bus, DomainEvent, kafka};
/// use tidings::subscriber::{Event, HandlerError, Tx};
/// use tokio_util::sync::CancellationToken;
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "order", id = "order_id")]
/// struct OrderPlaced { order_id: i64 }
///
/// async fn reserve(Event(order): Event<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
///     sqlx::query("insert into reservation (order_id) values ($1)")
///         .bind(order.order_id)
///         .execute(&mut *tx)
///         .await?;
///     Ok(())
/// }
///
/// # async fn start(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let bus = Bus::new(kafka::Settings { brokers: "localhost:9092".into(), ..Default::default() });
/// bus.subscriber("inventory").on(reserve).inbox(pool).run(CancellationToken::new()).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    settings: Settings,
    source: String,
    publisher: OnceLock<Result<Publisher, ClientError>>,
    /// Retry and dead letter topics that were created or found.
    letter_topics: Mutex<HashSet<String>>,
}

impl Inner {
    fn new(settings: Settings, source: String) -> Self {
        Self {
            settings,
            source,
            publisher: OnceLock::new(),
            letter_topics: Mutex::default(),
        }
    }
}

/// Error of publishing an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The event cannot be put into an envelope.
    #[error(transparent)]
    Event(#[from] EnvelopeError),
    /// The topic does not exist.
    #[error("topic `{topic}` does not exist: create it")]
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// The broker rejected the record and would reject it again.
    #[error("topic `{topic}` refuses the event: {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// The broker's error message.
        reason: String,
    },
    /// Kafka did not confirm the event in time. The event may have been stored nevertheless.
    #[error("topic `{topic}` did not confirm the event: {reason}")]
    Unconfirmed {
        /// The topic.
        topic: String,
        /// The client's error message.
        reason: String,
    },
    /// The Kafka client cannot be created from these settings.
    #[error("the Kafka settings are not usable: {0}")]
    Settings(String),
}

impl Bus {
    /// Creates a bus for these brokers. It connects on first use.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner::new(settings, "/tidings".into())))
    }

    /// Sets the source (`ce_source`) of the events that [`publish`](Self::publish) sends. Defaults
    /// to `/tidings`.
    #[must_use]
    pub fn source(self, source: impl Into<String>) -> Self {
        Self(Arc::new(Inner::new(self.0.settings.clone(), source.into())))
    }

    /// Creates a subscriber. Its name is the consumer group and the consumer in the inbox.
    pub fn subscriber<S: Send + Sync + 'static>(&self, name: impl Into<String>) -> Subscriber<S> {
        Subscriber::new(self.clone(), name.into())
    }

    /// Publishes an event directly to Kafka and waits until every in-sync replica has stored it.
    /// Its topic is the name of the aggregate. Use this only for events that belong to no database
    /// change.
    ///
    /// **Publish an event that belongs to a database change with [`Outbox`](crate::Outbox)**: a
    /// process can crash between the commit and this call.
    ///
    /// # Errors
    ///
    /// Returns [`BusError`] if the event is invalid, the settings are unusable, or Kafka does not
    /// confirm the event.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the event may or may not arrive.
    pub async fn publish<E: DomainEvent>(&self, event: &E) -> Result<EventId, BusError> {
        self.publish_envelope(&Envelope::of(event)?).await
    }

    /// Publishes an envelope that the caller built, for example with headers, its own topic or a
    /// cause.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// See [`publish`](Self::publish).
    pub async fn publish_envelope(&self, envelope: &Envelope) -> Result<EventId, BusError> {
        envelope.check().map_err(EnvelopeError::Invalid)?;
        let letter = self.letter(envelope);
        self.publisher()?.send(&letter).await?;
        Ok(envelope.id)
    }

    /// Returns the record of an event.
    pub(crate) fn letter(&self, envelope: &Envelope) -> Letter {
        let headers =
            serde_json::to_string(&envelope.headers).expect("a map of strings has a JSON form");
        let bytes = envelope.payload.as_bytes();
        let outgoing = Outgoing {
            id: envelope.id.as_uuid(),
            aggregate_type: &envelope.aggregate_type,
            aggregate_id: envelope.aggregate_id.as_str(),
            event_type: &envelope.event_type,
            version: i32::try_from(envelope.version)
                .expect("a checked envelope's version fits an int"),
            value: match bytes {
                Some(json) if envelope.payload.as_json().is_some() => Value::Json(json),
                Some(bytes) => Value::Bytes(bytes),
                None => Value::Tombstone,
            },
            headers: &headers,
            occurred_at: envelope.occurred_at.timestamp_micros(),
            topic: envelope.topic.as_deref(),
        };
        let headers = EnvelopeWriter::new(EnvelopeFormat::CloudEvents, self.0.source.clone())
            .owned_headers(&outgoing);
        Letter {
            topic: envelope
                .topic
                .clone()
                .unwrap_or_else(|| envelope.aggregate_type.clone().into_owned()),
            key: Some(envelope.aggregate_id.as_str().as_bytes().to_vec()),
            value: bytes.map(<[u8]>::to_vec),
            headers,
        }
    }

    /// Sends a record. If its topic does not exist, the topic is created with the partition count
    /// of `like`.
    pub(crate) async fn send_letter(&self, letter: &Letter, like: &str) -> Result<(), BusError> {
        Ok(DeadLetterSink::send(self, letter, like).await?)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Creates the topic of a letter if it does not exist. An error is only logged, because sending
    /// the letter shows whether the topic is usable.
    async fn make_letter_topic(&self, topic: &str, like: &str) {
        if let Err(error) = create_like(&self.0.settings, topic, like).await {
            tracing::debug!(
                topic,
                %error,
                "a retry or dead letter topic cannot be looked up or created"
            );
        }
    }

    fn letter_topics(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0
            .letter_topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn publisher(&self) -> Result<&Publisher, BusError> {
        self.0
            .publisher
            .get_or_init(|| Publisher::open(&self.0.settings, SEND_TIMEOUT))
            .as_ref()
            .map_err(|error| BusError::Settings(error.to_string()))
    }
}

// === impl Bus ===

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus")
            .field("settings", &self.0.settings)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl From<LetterError> for BusError {
    fn from(error: LetterError) -> Self {
        match error {
            LetterError::UnknownTopic(topic) => Self::UnknownTopic { topic },
            LetterError::Refused { topic, reason } => Self::Refused { topic, reason },
            LetterError::Forbidden { topic, reason }
            | LetterError::Unavailable { topic, reason } => Self::Unconfirmed { topic, reason },
        }
    }
}

impl DeadLetterSink for Bus {
    fn send<'l>(
        &'l self,
        letter: &'l Letter,
        like: &'l str,
    ) -> Pin<Box<dyn Future<Output = Result<(), LetterError>> + Send + 'l>> {
        Box::pin(async move {
            let unavailable = |reason: String| LetterError::Unavailable {
                topic: letter.topic.clone(),
                reason,
            };
            let publisher = self
                .publisher()
                .map_err(|error| unavailable(error.to_string()))?;
            // The topic is created before the first letter is sent, because the client reports a
            // missing topic only after seconds.
            let is_known = self.letter_topics().contains(&letter.topic);
            if !is_known {
                self.make_letter_topic(&letter.topic, like).await;
            }
            let mut sent = publisher.send(letter).await;
            if is_known && matches!(sent, Err(LetterError::UnknownTopic(_))) {
                tracing::warn!(
                    topic = letter.topic,
                    "a retry or dead letter topic was deleted; it is created again"
                );
                self.make_letter_topic(&letter.topic, like).await;
                sent = publisher.send(letter).await;
            }
            match &sent {
                Ok(()) => {
                    self.letter_topics().insert(letter.topic.clone());
                }
                Err(LetterError::Refused { .. } | LetterError::Forbidden { .. }) => {}
                // The next attempt checks again whether the topic exists.
                Err(_) => {
                    self.letter_topics().remove(&letter.topic);
                }
            }
            sent
        })
    }
}
