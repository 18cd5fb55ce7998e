//! Transactions of a producer: start, commit, and detection of failures.

use std::{
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::Producer as _,
};

use super::{Failure, Producer};

/// Timeout of one request to the transaction coordinator, after which it is repeated.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval of the checks whether librdkafka has removed the acknowledged records from its queue.
/// rdkafka's own wait takes 100 ms.
const IN_FLIGHT_LOOK: Duration = Duration::from_micros(50);

/// Maximum number of checks, after which rdkafka waits.
const IN_FLIGHT_LOOKS: u32 = 2_000;

/// Reason why earlier producers are not fenced off.
#[derive(Debug)]
pub(crate) enum FenceError {
    /// The cluster has not responded yet. Retry.
    NoAnswer,
    /// The coordinator responds, but has not ended the transaction of an earlier producer yet.
    /// Retry.
    EarlierOpen,
    /// The cluster does not allow transactions that are as long as the producer's.
    TimeoutTooLong,
    /// A retry would not succeed.
    Failed(Failure),
}

impl Producer {
    /// Maximum duration of [`fence`](Self::fence), if the client keeps its own timeouts.
    pub(crate) const FENCE_TIMEOUT: Duration = COORDINATOR_TIMEOUT;

    /// Returns the maximum duration of [`commit`](Self::commit), if the client keeps its own
    /// timeouts.
    pub(crate) fn commit_timeout(&self) -> Duration {
        self.transaction_timeout + COORDINATOR_TIMEOUT
    }

    /// Returns the transaction timeout.
    pub(crate) fn transaction_timeout(&self) -> Duration {
        self.transaction_timeout
    }

    /// Begins a transaction without a request to the cluster.
    ///
    /// # Errors
    ///
    /// Returns [`Failure`] if the producer has failed.
    pub(crate) fn begin(&self) -> Result<(), Failure> {
        let mut open = self.is_open();
        self.inner
            .begin_transaction()
            .map_err(|error| failure("beginning a transaction", &error))?;
        *open = true;
        Ok(())
    }

    /// Returns why the producer cannot continue, if it has failed, without a request to the
    /// cluster. During a commit, the commit itself reports the failure.
    pub(crate) fn fault(&self) -> Option<Failure> {
        if let Some((code, reason)) = self.inner.client().fatal_error() {
            return Some(if is_fencing(code) {
                Failure::Fenced
            } else {
                Failure::Broken(reason)
            });
        }
        let open = self.is_open();
        if !*open {
            return None;
        }
        // The client refuses a second transaction. If the open one has failed, it returns that
        // error.
        match self.inner.begin_transaction() {
            Err(KafkaError::Transaction(cause)) if is_fencing(cause.code()) => {
                Some(Failure::Fenced)
            }
            Err(KafkaError::Transaction(cause))
                if cause.is_fatal() || cause.txn_requires_abort() =>
            {
                let reason = self.inner.context().why(|| cause.to_string());
                Some(Failure::Broken(format!(
                    "the Kafka transaction failed: {reason}"
                )))
            }
            _ => None,
        }
    }

    /// Fences off all earlier producers with the same transactional id and ends their open
    /// transactions. Blocks.
    ///
    /// # Errors
    ///
    /// Returns [`FenceError`].
    pub(crate) fn fence(&self) -> Result<(), FenceError> {
        self.inner
            .init_transactions(COORDINATOR_TIMEOUT)
            .map_err(|error| match &error {
                KafkaError::Transaction(cause)
                    if cause.code() == RDKafkaErrorCode::InvalidTransactionTimeout =>
                {
                    FenceError::TimeoutTooLong
                }
                KafkaError::Transaction(cause)
                    if cause.code() == RDKafkaErrorCode::ConcurrentTransactions =>
                {
                    FenceError::EarlierOpen
                }
                KafkaError::Transaction(cause) if cause.is_retriable() => FenceError::NoAnswer,
                _ => FenceError::Failed(failure("fencing off earlier producers", &error)),
            })
    }

    /// Commits the transaction. All records must be acknowledged, because rdkafka waits in steps of
    /// 100 ms for others. Blocks.
    ///
    /// # Errors
    ///
    /// Returns [`Failure`] if it is not certain that the transaction is committed.
    pub(crate) fn commit(&self) -> Result<(), Failure> {
        // From now on, the commit itself reports a failed transaction.
        *self.is_open() = false;
        // librdkafka reports an acknowledgement before it removes the record from its queue.
        for _ in 0..IN_FLIGHT_LOOKS {
            if self.inner.in_flight_count() == 0 {
                break;
            }
            #[expect(clippy::disallowed_methods, reason = "called on a thread of its own")]
            std::thread::sleep(IN_FLIGHT_LOOK);
        }
        let begun = Instant::now();
        loop {
            match self.inner.commit_transaction(COORDINATOR_TIMEOUT) {
                Ok(()) => return Ok(()),
                // A repeated call continues to wait for the same response, until the coordinator
                // aborts the transaction by itself.
                Err(KafkaError::Transaction(cause))
                    if cause.is_retriable() && begun.elapsed() < self.transaction_timeout =>
                {
                    tracing::warn!("kafka has not committed yet: {cause}; retrying");
                    self.acks.unreachable(&cause.to_string());
                }
                Err(error) => return Err(failure("committing to Kafka", &error)),
            }
        }
    }

    fn is_open(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Converts an error of a transaction.
fn failure(doing: &str, error: &KafkaError) -> Failure {
    match error {
        KafkaError::Transaction(cause) if is_fencing(cause.code()) => Failure::Fenced,
        KafkaError::Transaction(cause) => Failure::Broken(format!("{doing}: {cause}")),
        other => Failure::Broken(format!("{doing}: {other}")),
    }
}

fn is_fencing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
    )
}
