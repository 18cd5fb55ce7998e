//! Deliveries and errors of a producer, as its threads report them.

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

/// How librdkafka words the fatal error that `enable.gapless.guarantee` makes of a refused batch.
const GAPLESS: &str = "gap-less guarantee";

/// The facilities under which librdkafka logs why a transaction failed. The text is a hint for the operator; nothing is decided by it.
const TRANSACTION_FAILED: [&str; 2] = ["ADDPARTS", "TXNERR"];

/// The error of a partition that was not added to a transaction because of another one.
const NOT_ATTEMPTED: &str = "Operation not attempted";

/// Learns of deliveries and errors on the poll thread.
pub(super) struct Context {
    acks: Arc<Acks>,
    /// The producer is being dropped.
    ending: Arc<AtomicBool>,
    /// The first log line about a transaction that failed. It names the resource.
    hint: Mutex<Option<String>>,
}

impl Context {
    pub(super) fn new(acks: Arc<Acks>, ending: Arc<AtomicBool>) -> Self {
        Self { acks, ending, hint: Mutex::new(None) }
    }

    /// The reason of a failed transaction: the client's log line if there is one, or else `otherwise`.
    pub(super) fn why(&self, otherwise: impl FnOnce() -> String) -> String {
        let reason = self.hint.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_else(otherwise);
        if reason.contains("uthorization failed") {
            return format!("{reason}; grant Write on it to the relay's principal (docs/operating.md)");
        }
        reason
    }

    /// librdkafka has removed a record from its queue. It does so when a transaction fails, and reports nothing else.
    fn purged(&self, topic: &str) {
        if !self.ending.load(Ordering::Acquire) {
            let reason = self.why(|| format!("the records for topic `{topic}` were removed from the client's queue"));
            let reason = format!("the Kafka transaction failed: {reason}");
            match forbidden_topic(&reason) {
                Some(topic) => self.acks.fail_for_topic(topic, reason.clone()),
                None => self.acks.fail(Failure::Broken(reason)),
            }
        }
    }
}

/// The topic of events that a transaction may not have. Only the log tells: the transaction fails as a whole.
fn forbidden_topic(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("Failed to add partition \"")?;
    let (topic, rest) = rest.split_once('"')?;
    (rest.contains("uthorization failed") && !is_reserved_topic(topic)).then_some(topic)
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(target: "librdkafka", facility, "{message}");
                if TRANSACTION_FAILED.contains(&facility) && !message.contains(NOT_ATTEMPTED) {
                    // librdkafka holds its own locks here: it must not be asked anything.
                    self.hint.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| message.to_owned());
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
                    Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => self.purged(message.topic()),
                    Some(RDKafkaErrorCode::InvalidTimestamp) => self.acks.refuse_timestamps(message.topic()),
                    Some(code) if refuses_the_record(code) => self.acks.refuse(tag as u64, ground(message.topic(), code)),
                    // Nothing is wrong with this one: another of its batch is refused, and told of.
                    Some(RDKafkaErrorCode::InvalidDifferentRecord) => {}
                    Some(code) if refuses_the_topic(code) => {
                        let topic = message.topic();
                        self.acks.fail_for_topic(
                            topic,
                            format!(
                                "topic `{topic}` takes no records: {code}; grant Write on it to the relay's principal, or see that it exists (docs/operating.md)"
                            ),
                        );
                    }
                    _ => self
                        .acks
                        .fail(Failure::Broken(format!("topic `{}` does not take a record of aggregate `{key}`: {error}", message.topic()))),
                }
            }
        }
    }
}

/// Why the topic refuses a record with this answer, and what to look at.
fn ground(topic: &str, code: RDKafkaErrorCode) -> Ground {
    let reason = format!("topic `{topic}` refuses it: {code}; compare the topic's max.message.bytes and cleanup.policy with the event");
    Ground { topic: topic.to_owned(), too_large: code == RDKafkaErrorCode::MessageSizeTooLarge, reason }
}

/// Whether the answer is about the topic, and not about the record or the cluster.
fn refuses_the_topic(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidTopic, PolicyViolation, TopicAuthorizationFailed, UnknownTopic, UnknownTopicOrPartition};
    matches!(code, InvalidTopic | PolicyViolation | TopicAuthorizationFailed | UnknownTopic | UnknownTopicOrPartition)
}

/// Whether a broker would refuse the record again, whoever sends it.
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
            format!("it failed: [thrd:main]: Failed to add partition \"{topic}\" [3] to transaction: Broker: {why}")
        };
        assert_eq!(forbidden_topic(&reason("order", "Topic authorization failed")), Some("order"));
        assert_eq!(forbidden_topic(&reason("order", "Unknown topic or partition")), None);
        assert_eq!(forbidden_topic(&reason("tidings.position.a.0123abcd", "Topic authorization failed")), None);
    }
}
