//! The bus: a Kafka cluster, seen by a service.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::{Subscriber, failure::dead_letter::Letterbox};
use crate::{
    event::{DomainEvent, Envelope, EnvelopeError, EventId},
    kafka::{
        EnvelopeFormat, EnvelopeWriter, Letter, LetterError, Outgoing, Publisher, Settings, Value,
        create_like,
    },
};

/// How long a record may take to arrive before the caller hears of it.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A Kafka cluster, seen by a service: subscribes to events, and publishes those that need no database. Cheap to clone.
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
///     sqlx::query("insert into reservation (order_id) values ($1)").bind(order.order_id).execute(&mut *tx).await?;
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
    publisher: OnceLock<Result<Publisher, String>>,
    /// Topics that were made, or found, for letters.
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

/// Why an event is not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The event cannot be put into an envelope.
    #[error(transparent)]
    Event(#[from] EnvelopeError),
    /// The topic is not there.
    #[error("topic `{topic}` does not exist: create it")]
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// The broker refuses the record, and would again.
    #[error("topic `{topic}` refuses the event: {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// In the broker's words.
        reason: String,
    },
    /// Kafka did not confirm the event in time. It may have arrived nevertheless.
    #[error("topic `{topic}` did not confirm the event: {reason}")]
    Unconfirmed {
        /// The topic.
        topic: String,
        /// In the client's words.
        reason: String,
    },
    /// The settings make no client.
    #[error("the Kafka settings are not usable: {0}")]
    Settings(String),
}

impl Bus {
    /// A bus on these brokers. Nothing is connected before it is used.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner::new(settings, "/tidings".into())))
    }

    /// Names the publisher of what [`publish`](Self::publish) sends, as `ce_source`; `/tidings` otherwise.
    #[must_use]
    pub fn source(self, source: impl Into<String>) -> Self {
        Self(Arc::new(Inner::new(self.0.settings.clone(), source.into())))
    }

    /// Starts a subscriber of this name: the consumer group, and the inbox's consumer.
    pub fn subscriber<S: Send + Sync + 'static>(&self, name: impl Into<String>) -> Subscriber<S> {
        Subscriber::new(self.clone(), name.into())
    }

    /// Publishes an event straight to Kafka, for events without a database change, and waits until every in-sync replica has it. Its topic is the aggregate's name.
    ///
    /// **An event that belongs to a change in a database goes through [`Outbox`](crate::Outbox)**: between a commit and this call a process can die.
    ///
    /// # Errors
    ///
    /// [`BusError`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the event may or may not arrive.
    pub async fn publish<E: DomainEvent>(&self, event: &E) -> Result<EventId, BusError> {
        self.publish_envelope(&Envelope::of(event)?).await
    }

    /// Publishes an envelope made by hand: with headers, a topic of its own, a cause.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_envelope(&self, envelope: &Envelope) -> Result<EventId, BusError> {
        envelope.check().map_err(EnvelopeError::Invalid)?;
        let letter = self.letter(envelope);
        self.publisher()?.send(&letter).await?;
        Ok(envelope.id)
    }

    /// The record of an event.
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

    /// Sends a record made by hand; a missing topic is made like `like`.
    pub(crate) async fn send_letter(&self, letter: &Letter, like: &str) -> Result<(), BusError> {
        Ok(Letterbox::send(self, letter, like).await?)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Creates the topic of a letter if it is missing. The broker's answer to the letter decides whether that was enough.
    async fn make_letter_topic(&self, topic: &str, like: &str) {
        if let Err(error) = create_like(&self.0.settings, topic, like).await {
            tracing::debug!(topic, %error, "a topic of retries or dead letters cannot be looked up or created");
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
            .map_err(|text| BusError::Settings(text.clone()))
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
            LetterError::Unavailable { topic, reason } => Self::Unconfirmed { topic, reason },
        }
    }
}

impl Letterbox for Bus {
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
            // Created before the first letter, because the client reports a missing topic only after seconds.
            let is_known = self.letter_topics().contains(&letter.topic);
            if !is_known {
                self.make_letter_topic(&letter.topic, like).await;
            }
            let mut sent = publisher.send(letter).await;
            if is_known && matches!(sent, Err(LetterError::UnknownTopic(_))) {
                tracing::warn!(
                    topic = letter.topic,
                    "a topic of retries or dead letters was deleted: it is created again"
                );
                self.make_letter_topic(&letter.topic, like).await;
                sent = publisher.send(letter).await;
            }
            match &sent {
                Ok(()) => {
                    self.letter_topics().insert(letter.topic.clone());
                }
                Err(LetterError::Refused { .. }) => {}
                // The next attempt looks whether it exists.
                Err(_) => {
                    self.letter_topics().remove(&letter.topic);
                }
            }
            sent
        })
    }
}
