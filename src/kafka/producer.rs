//! An idempotent producer with a poll thread of its own.
//!
//! `send` never blocks. Acknowledgements arrive on the poll thread in batches and are marked in [`Acks`], where whoever
//! confirms positions reads them. rdkafka's `FutureProducer` allocates a channel per record; this costs one bit.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};
use tokio::sync::Notify;

use super::Settings;

/// How long one poll waits: the delay with which the thread notices that it shall end. Not less: rdkafka spins through the last
/// millisecond of each poll, which at ten polls a second was all that an idle relay cost.
const POLL: Duration = Duration::from_secs(1);

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

/// One record, borrowed.
pub(crate) struct Record<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) key: &'a [u8],
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: Headers,
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: i64,
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
    /// A producer for these brokers; nothing is connected before the first record or question.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(crate) fn open(settings: &Settings, message_bytes_max: usize) -> Result<Self, KafkaError> {
        let mut config = settings.client_config_over(PREFERRED);
        for (key, value) in FIXED {
            config.set(*key, *value);
        }
        config.set("message.max.bytes", message_bytes_max.to_string());
        config.set_log_level(RDKafkaLogLevel::Warning);
        let acks = Arc::new(Acks::default());
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
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure) => self.acks.unreachable(reason),
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
                    Some(code) if refuses_the_record(code) => self.acks.fail(Failure::Refused(format!(
                        "topic `{}` refuses a batch with a record of aggregate `{key}`: {code}; compare the topic's max.message.bytes, \
                         message timestamp settings and cleanup.policy with the event",
                        message.topic()
                    ))),
                    _ => self
                        .acks
                        .fail(Failure::Broken(format!("topic `{}` does not take a record of aggregate `{key}`: {error}", message.topic()))),
                }
            }
        }
    }
}

/// Whether a broker would refuse the record again, whoever sends it.
fn refuses_the_record(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidMessage, InvalidRecord, InvalidTimestamp, MessageSizeTooLarge};
    matches!(code, MessageSizeTooLarge | InvalidRecord | InvalidTimestamp | InvalidMessage)
}

/// Which tags Kafka has acknowledged, and what is still under way. Bounded by what the sender lets under way.
#[derive(Default)]
pub(crate) struct Acks {
    state: Mutex<AckState>,
    /// Told when the lowest unacknowledged tag moved far enough, when everything is acknowledged, and on failure.
    changed: Notify,
    watcher: OnceLock<Box<dyn Fn(Duration) + Send + Sync>>,
}

/// A limit on what is under way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    pub(crate) records: u64,
    /// Bytes of keys, values and headers.
    pub(crate) bytes: usize,
}

/// Why a producer can go no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A new producer may do better.
    Broken(String),
    /// The broker will not take the record, whoever sends it.
    Refused(String),
}

#[derive(Default)]
struct AckState {
    /// Every tag below is acknowledged.
    floor: u64,
    /// The next tag to be sent.
    next: u64,
    /// Bit `n` of the ring says whether tag `(floor rounded down to 64) + n` is acknowledged.
    words: VecDeque<u64>,
    /// Bytes of the records from `floor` on.
    sizes: VecDeque<u32>,
    bytes: usize,
    /// Wake the waiter once no more than this is under way.
    wake_below: Window,
    /// The record being timed, and since when.
    timed: Option<(u64, i64)>,
    failure: Option<Failure>,
    unreachable: Option<String>,
}

impl Acks {
    fn locked(&self) -> std::sync::MutexGuard<'_, AckState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts a record as under way and gives it its tag, unless the window is full. To be called right before it is sent.
    pub(crate) fn admit(&self, bytes: usize, window: Window) -> Option<u64> {
        let mut state = self.locked();
        let under_way = state.next - state.floor;
        // A record larger than the window goes alone.
        if under_way > 0 && (under_way >= window.records || state.bytes + bytes > window.bytes) {
            return None;
        }
        let tag = state.next;
        state.next += 1;
        state.bytes += bytes;
        state.sizes.push_back(u32::try_from(bytes).unwrap_or(u32::MAX));
        if state.words.len() * 64 <= (tag - (state.floor & !63)) as usize {
            state.words.push_back(0);
        }
        Some(tag)
    }

    /// Takes back the last tag: its record was not sent.
    pub(crate) fn retract(&self, tag: u64) {
        let mut state = self.locked();
        if state.next == tag + 1 && state.next > state.floor {
            state.next = tag;
            let size = state.sizes.pop_back().unwrap_or(0);
            state.bytes = state.bytes.saturating_sub(size as usize);
        }
    }

    /// Has the time from `since` (microseconds, Unix epoch) to the acknowledgement of `tag` told to the watcher, if none is being timed.
    pub(crate) fn time(&self, tag: u64, since: i64) {
        let mut state = self.locked();
        if state.timed.is_none() && tag >= state.floor {
            state.timed = Some((tag, since));
        }
    }

    /// Who is told the times; set once.
    pub(crate) fn watch(&self, watcher: impl Fn(Duration) + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// Every tag below this is acknowledged.
    pub(crate) fn floor(&self) -> u64 {
        self.locked().floor
    }

    /// Records and bytes under way.
    pub(crate) fn under_way(&self) -> (u64, usize) {
        let state = self.locked();
        (state.next - state.floor, state.bytes)
    }

    /// Waits until no more than `below` is under way, or the producer failed. Acknowledgements before that wake nobody, so that a
    /// sender with a full window fills it by halves and not one by one.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn settle(&self, below: Window) {
        loop {
            let notified = self.changed.notified();
            {
                let mut state = self.locked();
                if state.is_below(below) || state.failure.is_some() {
                    return;
                }
                state.wake_below = below;
            }
            notified.await;
        }
    }

    /// Why the producer can go no further, once it cannot.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.locked().failure.clone()
    }

    /// Why Kafka is not reachable at present; an acknowledgement clears it.
    pub(crate) fn unreachable_since_last_ack(&self) -> Option<String> {
        self.locked().unreachable.clone()
    }

    fn mark(&self, tag: u64) {
        let (wake, since) = {
            let mut state = self.locked();
            let since = state.timed.take_if(|(timed, _)| *timed == tag).map(|(_, since)| since);
            (state.mark(tag), since)
        };
        if wake {
            self.changed.notify_one();
        }
        if let (Some(since), Some(watcher)) = (since, self.watcher.get()) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            watcher(now.saturating_sub(Duration::from_micros(since.try_into().unwrap_or(0))));
        }
    }

    fn fail(&self, failure: Failure) {
        self.locked().failure.get_or_insert(failure);
        self.changed.notify_one();
    }

    /// The cluster has answered a question.
    pub(super) fn reachable(&self) {
        self.locked().reachable();
    }

    fn unreachable(&self, reason: &str) {
        let mut state = self.locked();
        if state.unreachable.is_none() {
            tracing::warn!(reason, "kafka is not reachable; events wait in the outbox");
        }
        state.unreachable = Some(reason.to_owned());
    }
}

impl AckState {
    /// Marks one tag; true if the waiter has something to do.
    fn mark(&mut self, tag: u64) -> bool {
        if tag < self.floor {
            return false;
        }
        let at = (tag - (self.floor & !63)) as usize;
        if let Some(word) = self.words.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
        let size = self.sizes.get((tag - self.floor) as usize).map_or(0, |size| *size as usize);
        self.bytes = self.bytes.saturating_sub(size);
        self.reachable();
        if tag != self.floor {
            return false;
        }
        self.advance();
        self.is_below(self.wake_below)
    }

    fn reachable(&mut self) {
        if self.unreachable.take().is_some() {
            tracing::info!("kafka is reachable again");
        }
    }

    fn is_below(&self, window: Window) -> bool {
        self.next - self.floor <= window.records && self.bytes <= window.bytes
    }

    /// Moves the floor over the acknowledged prefix, a word at a time.
    fn advance(&mut self) {
        let before = self.floor;
        while let Some(&word) = self.words.front() {
            let offset = (self.floor % 64) as u32;
            let ones = (!(word >> offset)).trailing_zeros().min(64 - offset);
            self.floor += u64::from(ones);
            if offset + ones < 64 {
                break;
            }
            self.words.pop_front();
        }
        self.sizes.drain(..(self.floor - before) as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_floor_is_the_lowest_tag_that_is_not_acknowledged(order in Just((0..300u64).collect::<Vec<_>>()).prop_shuffle(), sent_first in 1usize..300) {
            let acks = Acks::default();
            let (mut sent, mut done) = (0u64, BTreeSet::new());
            for chunk in order.chunks(sent_first) {
                // Everything up to the largest tag of this chunk must have been sent.
                // A record that was not sent after all leaves no trace.
                let retracted = acks.admit(7, Window { records: 1000, bytes: 1000 }).expect("room");
                acks.retract(retracted);
                while sent <= *chunk.iter().max().expect("not empty") {
                    prop_assert_eq!(acks.admit(1, Window { records: 1000, bytes: 1000 }), Some(sent));
                    sent += 1;
                }
                for &tag in chunk {
                    acks.mark(tag);
                    done.insert(tag);
                    let lowest = (0..).find(|tag| !done.contains(tag)).expect("endless");
                    prop_assert_eq!(acks.floor(), lowest);
                }
                prop_assert_eq!(acks.under_way().1, (sent as usize) - done.len());
            }
        }
    }
}
