//! Delivery reports and errors of a producer.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryResult, ProducerContext},
};

use super::acks::{Acks, Failure, Ground};
use crate::event::is_reserved_topic;

/// Part of librdkafka's fatal error for a refused batch under `enable.gapless.guarantee`.
const GAPLESS: &str = "gap-less guarantee";

/// Log facilities that librdkafka uses for the reason of a failed transaction. The text is shown to
/// the operator, and [`forbidden_topic`] reads the topic from it.
const TRANSACTION_FAILED: [&str; 2] = ["ADDPARTS", "TXNERR"];

/// Error of a partition that was not added to a transaction because another partition failed.
const NOT_ATTEMPTED: &str = "Operation not attempted";

/// Parts of the broker's errors for a producer that another one has fenced off, or whose
/// transaction the cluster has aborted. The client may report them only in a log line.
const FENCED: [&str; 2] = ["fences the current one", "with an old epoch"];

/// Receives delivery reports and errors on the poll thread and passes them to [`Acks`].
pub(super) struct Context {
    acks: Arc<Acks>,
    /// Set while the producer is being dropped.
    ending: Arc<AtomicBool>,
    /// The first log line about a failed transaction. It names the resource.
    hint: Mutex<Option<String>>,
}

impl Context {
    pub(super) fn new(acks: Arc<Acks>, ending: Arc<AtomicBool>) -> Self {
        Self {
            acks,
            ending,
            hint: Mutex::new(None),
        }
    }

    /// Returns the reason of a failed transaction: the client's log line, or `otherwise` if there
    /// is none.
    pub(super) fn why(&self, otherwise: impl FnOnce() -> String) -> String {
        let reason = self
            .hint
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .unwrap_or_else(otherwise);
        if reason.contains("uthorization failed") {
            return format!(
                "{reason}; grant the relay's principal Write on it (docs/operating.md)"
            );
        }
        reason
    }

    /// Handles a record that librdkafka has removed from its queue. It does so when a transaction
    /// fails, and reports nothing else.
    fn purged(&self, topic: &str) {
        if !self.ending.load(Ordering::Acquire) {
            let reason = self.why(|| {
                format!("the records for topic `{topic}` were removed from the client's queue")
            });
            let reason = format!("the Kafka transaction failed: {reason}");
            match forbidden_topic(&reason) {
                Some(topic) => self.acks.fail_for_topic(topic, reason.clone()),
                None if FENCED.iter().any(|text| reason.contains(text)) => {
                    self.acks.fail(Failure::Fenced)
                }
                None => self.acks.fail(Failure::Broken(reason)),
            }
        }
    }
}

/// Returns the topic for events that the principal may not write to. Only the log names it, because
/// the transaction fails as a whole.
fn forbidden_topic(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("Failed to add partition \"")?;
    let (topic, rest) = rest.split_once('"')?;
    (rest.contains("uthorization failed") && !is_reserved_topic(topic)).then_some(topic)
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::warn!(target: "librdkafka", facility, "{message}");
                if TRANSACTION_FAILED.contains(&facility) && !message.contains(NOT_ATTEMPTED) {
                    // librdkafka holds its own locks during this callback, so the client must not
                    // be called.
                    self.hint
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert_with(|| message.to_owned());
                }
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure) => {
                self.acks.unreachable(reason)
            }
            Some(RDKafkaErrorCode::Fatal) if reason.contains("fenced") => {
                self.acks.fail(Failure::Fenced)
            }
            // The delivery reports of the refused batch follow immediately and identify its
            // records.
            Some(RDKafkaErrorCode::Fatal) if reason.contains(GAPLESS) => {
                tracing::debug!(reason, "kafka client")
            }
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
                let key = message
                    .key()
                    .map(String::from_utf8_lossy)
                    .unwrap_or_default();
                match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => {
                        self.purged(message.topic())
                    }
                    Some(RDKafkaErrorCode::InvalidTimestamp) => {
                        self.acks.refuse_timestamps(message.topic())
                    }
                    Some(code) if refuses_the_record(code) => {
                        self.acks.refuse(tag as u64, ground(message.topic(), code))
                    }
                    // This record is valid. Another record of its batch was refused, which has its
                    // own report.
                    Some(RDKafkaErrorCode::InvalidDifferentRecord) => {}
                    Some(code) if refuses_the_topic(code) => {
                        let topic = message.topic();
                        self.acks.fail_for_topic(
                            topic,
                            format!(
                                "topic `{topic}` does not accept records: {code}; grant the \
                                 relay's principal Write on it, or check that it exists \
                                 (docs/operating.md)"
                            ),
                        );
                    }
                    _ => self.acks.fail(Failure::Broken(format!(
                        "topic `{}` does not take a record of aggregate `{key}`: {error}",
                        message.topic()
                    ))),
                }
            }
        }
    }
}

/// Returns the reason why the topic refuses a record with this error code, and a remedy.
fn ground(topic: &str, code: RDKafkaErrorCode) -> Ground {
    let reason = format!(
        "topic `{topic}` refuses the record: {code}; compare the topic's max.message.bytes and \
         cleanup.policy with the event"
    );
    Ground {
        topic: topic.to_owned(),
        too_large: code == RDKafkaErrorCode::MessageSizeTooLarge,
        reason,
    }
}

/// Returns `true` if the error concerns the topic rather than the record or the cluster.
fn refuses_the_topic(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        InvalidTopic, PolicyViolation, TopicAuthorizationFailed, UnknownTopic,
        UnknownTopicOrPartition,
    };
    matches!(
        code,
        InvalidTopic
            | PolicyViolation
            | TopicAuthorizationFailed
            | UnknownTopic
            | UnknownTopicOrPartition
    )
}

/// Returns `true` if a broker would refuse the record again, whichever producer sends it.
fn refuses_the_record(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidMessage, InvalidRecord, MessageSizeTooLarge};
    matches!(code, MessageSizeTooLarge | InvalidRecord | InvalidMessage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_a_transaction_may_not_have_is_known_from_the_log() {
        let reason = |topic: &str, why: &str| {
            format!(
                "it failed: [thrd:main]: Failed to add partition \"{topic}\" [3] to transaction: \
                 Broker: {why}"
            )
        };
        assert_eq!(
            forbidden_topic(&reason("order", "Topic authorization failed")),
            Some("order")
        );
        assert_eq!(
            forbidden_topic(&reason("order", "Unknown topic or partition")),
            None
        );
        assert_eq!(
            forbidden_topic(&reason(
                "tidings.position.a.0123abcd",
                "Topic authorization failed"
            )),
            None
        );
    }
}
