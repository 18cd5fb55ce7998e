//! An idempotent producer with a poll thread of its own.
//!
//! `send` never blocks. Acknowledgements arrive on the poll thread in batches and are marked in [`Acks`], where whoever
//! confirms positions reads them. rdkafka's `FutureProducer` allocates a channel per record; this costs one bit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};

use super::{
    Settings,
    acks::{Acks, Failure},
};

/// How long one poll waits: the delay with which the thread notices that it shall end. Not less: rdkafka spins through the last
/// millisecond of each poll, which at ten polls a second was all that an idle relay cost, and there are three producers.
const POLL: Duration = Duration::from_secs(5);

/// What the producer sets and a user may not: the guarantees rest on it. Each value has its reason.
const FIXED: &[(&str, &str)] = &[
    // One copy of each record per partition, in order, whatever is retried (KIP-98).
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // A batch that cannot be delivered stops the producer instead of letting later records of its keys overtake.
    ("enable.gapless.guarantee", "true"),
    // 0 = retry for ever: the default of five minutes drops a record and lets the next ones pass.
    ("message.timeout.ms", "0"),
    // Partitions are computed here; this only says the same to whoever reads the configuration.
    ("partitioner", "murmur2_random"),
];

/// How long a transaction may stay open: after it the coordinator aborts it. Well above any batch, and no longer than readers
/// of committed records should wait for a relay that died without a successor.
const TRANSACTION_TIMEOUT_MS: &str = "60000";

/// How long one question to the transaction coordinator may take before it is asked again.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(30);

/// How often to look whether librdkafka has ticked off what is acknowledged: rdkafka's own wait for it is 100 ms long.
const IN_FLIGHT_LOOK: Duration = Duration::from_micros(50);

/// Most looks; after them rdkafka waits.
const IN_FLIGHT_LOOKS: u32 = 2_000;

/// What the producer prefers; `[kafka.properties]` may say otherwise.
const PREFERRED: &[(&str, &str)] = &[
    // Not even a tenth of a millisecond: librdkafka's timers are as coarse as a millisecond, and a steady stream pays all of it. Behind,
    // batches fill by themselves while five requests are under way.
    ("linger.ms", "0"),
    ("batch.size", "1000000"),
    ("batch.num.messages", "10000"),
    ("compression.type", "lz4"),
    // Bounded by the relay's own window well below this.
    ("queue.buffering.max.messages", "200000"),
    ("queue.buffering.max.kbytes", "262144"),
    // A broker that went away comes back: try often enough to be felt as quick.
    ("reconnect.backoff.max.ms", "2000"),
    ("retry.backoff.ms", "50"),
    ("topic.metadata.refresh.interval.ms", "60000"),
    ("statistics.interval.ms", "0"),
    ("log.connection.close", "false"),
];

/// How librdkafka words the fatal error that `enable.gapless.guarantee` makes of a refused batch.
const GAPLESS: &str = "gap-less guarantee";

/// Under which facility librdkafka logs that a transaction may not have a partition. Nothing else tells what is wrong: the transaction has failed, and its
/// records are purged as they are when the producer is dropped.
const PARTITION_REFUSED: &str = "ADDPARTS";

/// One record, borrowed.
pub(crate) struct Record<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) key: &'a [u8],
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: Headers,
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: i64,
    /// By what it is known if the broker refuses it; not sent.
    pub(crate) label: i64,
}

/// Headers under construction, in librdkafka's own memory.
pub(crate) struct Headers(OwnedHeaders);

impl Headers {
    pub(crate) fn with_capacity(headers: usize) -> Self {
        Self(OwnedHeaders::new_with_capacity(headers))
    }

    pub(crate) fn put(self, key: &str, value: &[u8]) -> Self {
        Self(self.0.insert(Header { key, value: Some(value) }))
    }

    pub(crate) fn put_null(self, key: &str) -> Self {
        Self(self.0.insert(Header { key, value: None::<&[u8]> }))
    }

    /// Out of librdkafka's memory.
    pub(crate) fn to_owned(&self) -> Vec<(String, Vec<u8>)> {
        use rdkafka::message::Headers as _;
        self.0.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect()
    }
}

/// Why a record was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// librdkafka's queue is full: poll and try again.
    #[error("the producer's queue is full")]
    Full,
    /// The record is larger than `message.max.bytes`.
    #[error("the record is larger than the configured maximum")]
    TooLarge,
    #[error("producing to Kafka")]
    Kafka(#[source] KafkaError),
}

/// Sends records and learns of their fate.
pub(crate) struct Producer {
    inner: Arc<BaseProducer<Context>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    acks: Arc<Acks>,
}

impl Producer {
    /// A producer for these brokers, with batches of `batch_bytes_max` at most, which tells `acks` what becomes of its records; nothing is
    /// connected before the first record or question.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(crate) fn open(
        settings: &Settings,
        message_bytes_max: usize,
        batch_bytes_max: usize,
        transactional_id: Option<&str>,
        acks: Arc<Acks>,
    ) -> Result<Self, KafkaError> {
        let mut config = settings.client_config_over(PREFERRED);
        for (key, value) in FIXED {
            config.set(*key, *value);
        }
        if let Some(id) = transactional_id {
            config.set("transactional.id", id);
            config.set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS);
            // A record does not outlive its transaction, which is aborted and sent anew as a whole.
            config.set("message.timeout.ms", TRANSACTION_TIMEOUT_MS);
        }
        config.set("message.max.bytes", message_bytes_max.to_string());
        if config.get("batch.size").and_then(|size| size.parse().ok()).is_none_or(|size: usize| size > batch_bytes_max) {
            config.set("batch.size", batch_bytes_max.max(1).to_string());
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        let inner: Arc<BaseProducer<Context>> = Arc::new(config.create_with_context(Context { acks: acks.clone() })?);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("tidings-kafka".into()).spawn({
            let (inner, stop) = (inner.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Acquire) {
                    inner.poll(POLL);
                }
            }
        });
        let thread = thread.map_err(|_| KafkaError::ClientCreation("no thread for the producer".into()))?;
        Ok(Self { inner, stop, thread: Some(thread), acks })
    }

    /// Takes a record; `tag` comes back in [`Acks`]. Tags count up by one ([`Acks::admit`]).
    ///
    /// # Errors
    /// When the queue is full, the record too large, or the producer has failed for good.
    pub(crate) fn send(&self, record: Record<'_>, tag: u64) -> Result<(), SendError> {
        let mut base = BaseRecord::<[u8], [u8], usize>::with_opaque_to(record.topic, tag as usize)
            .partition(record.partition)
            .key(record.key)
            .timestamp(record.timestamp)
            .headers(record.headers.0);
        if let Some(value) = record.value {
            base = base.payload(value);
        }
        self.inner.send(base).map_err(|(error, _)| match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => SendError::Full,
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => SendError::TooLarge,
            _ => SendError::Kafka(error),
        })
    }

    /// Begins a transaction; nothing is asked of the cluster.
    ///
    /// # Errors
    /// When the producer has failed.
    pub(crate) fn begin(&self) -> Result<(), Failure> {
        self.inner.begin_transaction().map_err(|error| failure("beginning a transaction", &error))
    }

    /// Has the cluster fence off every earlier producer of the same transactional id, and end what it left open. Blocks.
    ///
    /// # Errors
    /// What does not pass by asking again; `None` if the cluster has not answered yet.
    pub(crate) fn fence(&self) -> Result<(), Option<Failure>> {
        self.inner.init_transactions(COORDINATOR_TIMEOUT).map_err(|error| match &error {
            KafkaError::Transaction(cause) if cause.is_retriable() => None,
            _ => Some(failure("fencing off earlier producers", &error)),
        })
    }

    /// Commits the transaction. Everything sent must be acknowledged: rdkafka waits in steps of 100 ms for what is not. Blocks.
    ///
    /// # Errors
    /// When it is not certain that the transaction is committed.
    pub(crate) fn commit(&self) -> Result<(), Failure> {
        // An acknowledgement is told before librdkafka has ticked its record off.
        for _ in 0..IN_FLIGHT_LOOKS {
            if self.inner.in_flight_count() == 0 {
                break;
            }
            std::thread::sleep(IN_FLIGHT_LOOK);
        }
        loop {
            match self.inner.commit_transaction(COORDINATOR_TIMEOUT) {
                Ok(()) => return Ok(()),
                // Asked again it goes on waiting for the same answer.
                Err(KafkaError::Transaction(cause)) if cause.is_retriable() => {
                    tracing::warn!("kafka has not committed yet: {cause}; asks again");
                    self.acks.unreachable(&cause.to_string());
                }
                Err(error) => return Err(failure("committing to Kafka", &error)),
            }
        }
    }

    /// What was acknowledged.
    pub(crate) fn acks(&self) -> &Arc<Acks> {
        &self.acks
    }

    /// The client, for questions about the cluster. They block: ask on a blocking thread.
    pub(super) fn client(&self) -> Arc<BaseProducer<Context>> {
        self.inner.clone()
    }
}

// === impl Drop ===

impl Drop for Producer {
    /// Ends the poll thread and destroys the client on a thread of its own: destroying blocks.
    fn drop(&mut self) {
        use rdkafka::producer::PurgeConfig;
        self.stop.store(true, Ordering::Release);
        let (inner, thread) = (self.inner.clone(), self.thread.take());
        let destroy = move || {
            // What is still queued was not acknowledged and will be read again.
            inner.purge(PurgeConfig::default().queue().inflight());
            if let Some(thread) = thread {
                let _ = thread.join();
            }
            drop(inner);
        };
        let _ = std::thread::Builder::new().name("tidings-kafka-end".into()).spawn(destroy);
    }
}

/// Learns of deliveries and errors on the poll thread.
pub(super) struct Context {
    acks: Arc<Acks>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(target: "librdkafka", facility, "{message}");
                if facility == PARTITION_REFUSED && message.contains("uthorization failed") {
                    self.acks
                        .fail(Failure::Broken(format!("{message}; grant Write on the topic to the relay's principal (docs/operating.md)")));
                }
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure) => self.acks.unreachable(reason),
            Some(RDKafkaErrorCode::Fatal) if reason.contains("fenced") => self.acks.fail(Failure::Fenced),
            // The report of the batch that was refused follows at once, and says which records were in it.
            Some(RDKafkaErrorCode::Fatal) if reason.contains(GAPLESS) => tracing::debug!(reason, "kafka client"),
            Some(RDKafkaErrorCode::Fatal) => self.acks.fail(Failure::Broken(reason.to_owned())),
            _ => tracing::warn!(%error, reason, "kafka client"),
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        match result {
            Ok(_) => self.acks.mark(tag as u64),
            Err((error, message)) => {
                let key = message.key().map(String::from_utf8_lossy).unwrap_or_default();
                match error.rdkafka_error_code() {
                    // The producer is being dropped: what it still held is read again.
                    Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => {}
                    Some(code) if refuses_the_record(code) => self.acks.refuse(tag as u64, || {
                        format!(
                            "topic `{}` refuses it: {code}; compare the topic's max.message.bytes, message timestamp settings and \
                             cleanup.policy with the event",
                            message.topic()
                        )
                    }),
                    // Nothing is wrong with this one: another of its batch is refused, and told of.
                    Some(RDKafkaErrorCode::InvalidDifferentRecord) => {}
                    _ => self
                        .acks
                        .fail(Failure::Broken(format!("topic `{}` does not take a record of aggregate `{key}`: {error}", message.topic()))),
                }
            }
        }
    }
}

/// What an error of a transaction means.
fn failure(doing: &str, error: &KafkaError) -> Failure {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    match error {
        KafkaError::Transaction(cause) if matches!(cause.code(), Fenced | ProducerFenced | InvalidProducerEpoch) => Failure::Fenced,
        KafkaError::Transaction(cause) => Failure::Broken(format!("{doing}: {cause}")),
        other => Failure::Broken(format!("{doing}: {other}")),
    }
}

/// Whether a broker would refuse the record again, whoever sends it.
fn refuses_the_record(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidMessage, InvalidRecord, InvalidTimestamp, MessageSizeTooLarge};
    matches!(code, MessageSizeTooLarge | InvalidRecord | InvalidTimestamp | InvalidMessage)
}
