//! Idempotent producer with its own poll thread.
//!
//! `send` never blocks. Acknowledgements arrive on the poll thread in batches and are recorded in
//! [`Acks`], where the code that confirms positions reads them. rdkafka's `FutureProducer`
//! allocates a channel per record; this producer needs one bit.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rdkafka::{
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

use super::{Acks, Settings, context::Context};
use crate::failpoint;

/// Duration of one poll, which is the delay with which the thread notices that it must stop. A
/// shorter poll costs CPU time: rdkafka spins through the last millisecond of each. At ten polls
/// per second this was the entire cost of an idle relay, which has three producers.
const POLL: Duration = Duration::from_secs(5);

/// Properties that the producer sets and a user cannot override, because the guarantees depend on
/// them.
const FIXED: &[(&str, &str)] = &[
    // One copy of each record per partition, in order, whatever is retried (KIP-98).
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // A batch that cannot be delivered stops the producer, so that later records of its keys do not
    // overtake it.
    ("enable.gapless.guarantee", "true"),
    // Retries without limit (0). The default of five minutes drops a record and delivers the next
    // ones.
    ("message.timeout.ms", "0"),
    // Partitions are computed in `partitioner`. This setting documents the rule.
    ("partitioner", "murmur2_random"),
];

/// Properties that the producer sets unless `[kafka.properties]` overrides them.
const PREFERRED: &[(&str, &str)] = &[
    // Not even a tenth of a millisecond: librdkafka's timers have a resolution of one millisecond,
    // and a steady stream pays all of it. When the relay is behind, batches fill anyway while five
    // requests are in flight.
    ("linger.ms", "0"),
    ("batch.size", "1000000"),
    ("batch.num.messages", "10000"),
    ("compression.type", "lz4"),
    // The relay's own window is well below this.
    ("queue.buffering.max.messages", "200000"),
    ("queue.buffering.max.kbytes", "262144"),
    // Reconnects soon after a broker has returned.
    ("reconnect.backoff.max.ms", "2000"),
    ("retry.backoff.ms", "50"),
    ("topic.metadata.refresh.interval.ms", "60000"),
    ("statistics.interval.ms", "0"),
    ("log.connection.close", "false"),
];

/// A record, borrowed.
pub(crate) struct Record<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) key: &'a [u8],
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: Headers,
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: i64,
    /// Identifies the record if the broker refuses it. Not sent.
    pub(crate) label: i64,
}

/// Headers under construction, in librdkafka's memory.
pub(crate) struct Headers(OwnedHeaders);

impl Headers {
    pub(crate) fn with_capacity(headers: usize) -> Self {
        Self(OwnedHeaders::new_with_capacity(headers))
    }

    pub(crate) fn put(self, key: &str, value: &[u8]) -> Self {
        Self(self.0.insert(Header {
            key,
            value: Some(value),
        }))
    }

    pub(crate) fn put_null(self, key: &str) -> Self {
        Self(self.0.insert(Header {
            key,
            value: None::<&[u8]>,
        }))
    }

    /// Copies the headers out of librdkafka's memory, with `None` for a header without a value.
    pub(crate) fn to_owned(&self) -> Vec<(String, Option<Vec<u8>>)> {
        use rdkafka::message::Headers as _;
        self.0
            .iter()
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect()
    }
}

/// Reason why a record was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// librdkafka's queue is full. Poll and try again.
    #[error("the producer's queue is full")]
    Full,
    /// The record is larger than `message.max.bytes`.
    #[error("the record is larger than the configured maximum")]
    TooLarge,
    #[error("producing to Kafka")]
    Kafka(#[source] KafkaError),
}

/// Transaction settings of a producer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transactional<'t> {
    pub(crate) id: &'t str,
    /// The timeout after which the coordinator aborts a transaction.
    pub(crate) timeout: Duration,
}

/// Sends records and tracks their acknowledgements.
pub(crate) struct Producer {
    pub(super) inner: Arc<BaseProducer<Context>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    pub(super) acks: Arc<Acks>,
    /// `true` while a transaction is open and its commit has not started.
    pub(super) open: Mutex<bool>,
    pub(super) transaction_timeout: Duration,
}

impl Producer {
    /// Creates a producer for these brokers, with batches of at most `batch_bytes_max`. Results are
    /// recorded in `acks`. Connects at the first record or request.
    ///
    /// # Errors
    ///
    /// Returns librdkafka's error if it refuses a property.
    pub(crate) fn open(
        settings: &Settings,
        message_bytes_max: usize,
        batch_bytes_max: usize,
        transactional: Option<Transactional<'_>>,
        acks: Arc<Acks>,
    ) -> Result<Self, KafkaError> {
        let mut config = settings.client_config_over(PREFERRED);
        for (key, value) in FIXED {
            config.set(*key, *value);
        }
        if let Some(Transactional { id, timeout }) = transactional {
            let milliseconds = timeout.as_millis().to_string();
            config.set("transactional.id", id);
            config.set("transaction.timeout.ms", &milliseconds);
            // A record does not outlive its transaction, which is aborted and sent again as a
            // whole.
            config.set("message.timeout.ms", milliseconds);
            // librdkafka refuses a request timeout that is longer than a transaction.
            let longest = timeout.as_millis();
            if config
                .get("socket.timeout.ms")
                .and_then(|given| given.parse().ok())
                .is_some_and(|given: u128| given > longest)
            {
                config.set("socket.timeout.ms", longest.to_string());
            }
        }
        config.set("message.max.bytes", message_bytes_max.to_string());
        if config
            .get("batch.size")
            .and_then(|size| size.parse().ok())
            .is_none_or(|size: usize| size > batch_bytes_max)
        {
            config.set("batch.size", batch_bytes_max.max(1).to_string());
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        let stop = Arc::new(AtomicBool::new(false));
        let context = Context::new(acks.clone(), stop.clone());
        let inner: Arc<BaseProducer<Context>> = Arc::new(config.create_with_context(context)?);
        let thread = std::thread::Builder::new()
            .name("tidings-kafka".into())
            .spawn({
                let (inner, stop) = (inner.clone(), stop.clone());
                move || {
                    while !stop.load(Ordering::Acquire) {
                        failpoint::called("producer_poll");
                        inner.poll(POLL);
                    }
                }
            });
        let thread =
            thread.map_err(|_| KafkaError::ClientCreation("cannot start a thread".into()))?;
        let transaction_timeout =
            transactional.map_or(Duration::ZERO, |transactional| transactional.timeout);
        Ok(Self {
            inner,
            stop,
            thread: Some(thread),
            acks,
            open: Mutex::new(false),
            transaction_timeout,
        })
    }

    /// Queues a record. [`Acks`] records its acknowledgement under `tag`. Tags increase by one
    /// ([`Acks::admit`]).
    ///
    /// # Errors
    ///
    /// Returns [`SendError`] if the queue is full, the record is too large, or the producer has
    /// failed permanently.
    pub(crate) fn send(&self, record: Record<'_>, tag: u64) -> Result<(), SendError> {
        let mut base = BaseRecord::<[u8], [u8], usize>::with_opaque_to(record.topic, tag as usize)
            .partition(record.partition)
            .key(record.key)
            .timestamp(record.timestamp)
            .headers(record.headers.0);
        if let Some(value) = record.value {
            base = base.payload(value);
        }
        self.inner
            .send(base)
            .map_err(|(error, _)| match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => SendError::Full,
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => SendError::TooLarge,
                _ => SendError::Kafka(error),
            })
    }

    /// Returns the acknowledgements.
    pub(crate) fn acks(&self) -> &Arc<Acks> {
        &self.acks
    }

    /// Returns the client for requests to the cluster. They block, so call them on a blocking
    /// thread.
    pub(super) fn client(&self) -> Arc<BaseProducer<Context>> {
        self.inner.clone()
    }
}

// === impl Drop ===

impl Drop for Producer {
    /// Stops the poll thread and destroys the client on a separate thread, because destroying
    /// blocks.
    fn drop(&mut self) {
        use rdkafka::producer::PurgeConfig;
        self.stop.store(true, Ordering::Release);
        let (inner, thread) = (self.inner.clone(), self.thread.take());
        let destroy = move || {
            // Queued records were not acknowledged and will be read again.
            inner.purge(PurgeConfig::default().queue().inflight());
            if let Some(thread) = thread {
                let _ = thread.join();
            }
            drop(inner);
        };
        let _ = std::thread::Builder::new()
            .name("tidings-kafka-end".into())
            .spawn(destroy);
    }
}
