//! Errors of a consumer: a member of a group, or a reader that never joins one.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::kafka::{Partition, TopicError, Unanswered};

/// Reason why a consumer cannot read, look up or commit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsumerError {
    /// The cluster or the client refused the call, or did not respond in time.
    #[error("{0}")]
    Refused(#[from] KafkaError),
    /// The same, while the progress of a group was read.
    #[error("the progress of group {group}: {error}")]
    Progress { group: String, error: KafkaError },
    /// The response does not contain the requested topic.
    #[error("no broker returned metadata of topic {0}")]
    NoMetadata(String),
    /// The brokers report an error instead of the topic's partitions.
    #[error("topic {topic}: {code}")]
    Topic {
        topic: String,
        code: RDKafkaErrorCode,
    },
    #[error("topic `{0}` does not exist")]
    MissingTopic(String),
    /// The records or the offsets of the topic cannot be read.
    #[error("{}", unreadable(topic, error))]
    Reading { topic: String, error: KafkaError },
    /// No record arrived in time before the end of a partition.
    #[error("group {group}: no record within {limit:?}")]
    NoRecord { group: String, limit: Duration },
    /// The coordinator omitted partitions from its response.
    #[error("the coordinator does not report the commits of all partitions of topic {0}")]
    NoCommits(String),
    #[error("partition {} of topic {} has no queue", .0.number, .0.topic)]
    NoQueue(Partition),
    /// The client has left its group.
    #[error("the member has left")]
    Left,
    /// The client did not return.
    #[error("{0}")]
    Unanswered(#[from] Unanswered),
}

fn unreadable(topic: &str, error: &KafkaError) -> String {
    match error {
        // No record arrived in time before the end.
        KafkaError::NoMessageReceived => format!("topic `{topic}` cannot be read to its end"),
        error => error.to_string(),
    }
}

/// Returns `true` if the topic may not be read.
pub(in crate::kafka) fn is_denied(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed)
}

impl From<ConsumerError> for TopicError {
    fn from(error: ConsumerError) -> Self {
        match error {
            ConsumerError::Reading { topic, error } if is_denied(&error) => Self::Denied {
                topic,
                reason: error.to_string(),
            },
            ConsumerError::Reading { topic, error } => {
                Self::Unreachable(format!("reading `{topic}`: {error}"))
            }
            error => Self::Unreachable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_topic_is_described_for_a_reader_and_for_a_relay() {
        let denied = RDKafkaErrorCode::TopicAuthorizationFailed;
        let lost = RDKafkaErrorCode::BrokerTransportFailure;
        for (error, text, is_denied) in [
            (
                KafkaError::MessageConsumption(denied),
                "authorization",
                true,
            ),
            (KafkaError::MetadataFetch(lost), "transport failure", false),
            (KafkaError::NoMessageReceived, "to its end", false),
        ] {
            let reading = ConsumerError::Reading {
                topic: "order".into(),
                error: error.clone(),
            };
            let shown = reading.to_string().to_lowercase();
            assert!(shown.contains(text), "{shown}");
            match TopicError::from(reading) {
                TopicError::Denied { topic, reason } => {
                    assert!(is_denied && topic == "order" && reason == error.to_string());
                }
                TopicError::Unreachable(reason) => {
                    assert_eq!(reason, format!("reading `order`: {error}"));
                    assert!(!is_denied);
                }
                other => panic!("{other}"),
            }
        }
    }
}
