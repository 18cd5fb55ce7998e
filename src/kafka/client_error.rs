//! Errors of clients that are created for queries and single records.

use rdkafka::error::KafkaError;

use super::Unanswered;

/// librdkafka refuses a property, so the client cannot be created.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ClientError(#[from] KafkaError);

/// Reason why a cluster does not answer a query.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("{0}")]
    Client(#[from] ClientError),
    /// No broker responded, with the cause that the client reported.
    #[error("{0}")]
    Unreachable(String),
    /// The client did not return.
    #[error("{0}")]
    Unanswered(#[from] Unanswered),
}

impl From<KafkaError> for ClusterError {
    /// Wraps an error of creating a client.
    fn from(error: KafkaError) -> Self {
        Self::Client(error.into())
    }
}
