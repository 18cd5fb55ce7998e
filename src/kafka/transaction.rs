//! The transactions of a producer: begun, committed, and asked whether they have failed.

use std::{
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::Producer as _,
};

use super::{Failure, Producer};

/// How long one question to the transaction coordinator may take before it is asked again.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(30);

/// How often to look whether librdkafka has ticked off what is acknowledged: rdkafka's own wait for it is 100 ms long.
const IN_FLIGHT_LOOK: Duration = Duration::from_micros(50);

/// Most looks; after them rdkafka waits.
const IN_FLIGHT_LOOKS: u32 = 2_000;

/// Why earlier producers are not fenced off.
#[derive(Debug)]
pub(crate) enum FenceError {
    /// The cluster has not answered yet: ask again.
    NoAnswer,
    /// The cluster does not allow transactions as long as the producer's.
    TimeoutTooLong,
    /// It does not pass by asking again.
    Failed(Failure),
}

impl Producer {
    /// How long a call of [`fence`](Self::fence) takes at most, if the client keeps its own time-outs.
    pub(crate) const FENCE_TIMEOUT: Duration = COORDINATOR_TIMEOUT;

    /// How long a call of [`commit`](Self::commit) takes at most, if the client keeps its own time-outs.
    pub(crate) fn commit_timeout(&self) -> Duration {
        self.transaction_timeout + COORDINATOR_TIMEOUT
    }

    /// How long a transaction may stay open.
    pub(crate) fn transaction_timeout(&self) -> Duration {
        self.transaction_timeout
    }

    /// Begins a transaction; nothing is asked of the cluster.
    ///
    /// # Errors
    /// When the producer has failed.
    pub(crate) fn begin(&self) -> Result<(), Failure> {
        let mut open = self.is_open();
        self.inner
            .begin_transaction()
            .map_err(|error| failure("beginning a transaction", &error))?;
        *open = true;
        Ok(())
    }

    /// Asks the client whether it can go no further; nothing is asked of the cluster. While a transaction is committed, its end reports that.
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
        // It refuses a second transaction, by the error of the open one if that has failed.
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

    /// Has the cluster fence off every earlier producer of the same transactional id, and end what it left open. Blocks.
    ///
    /// # Errors
    /// [`FenceError`].
    pub(crate) fn fence(&self) -> Result<(), FenceError> {
        self.inner
            .init_transactions(COORDINATOR_TIMEOUT)
            .map_err(|error| match &error {
                KafkaError::Transaction(cause)
                    if cause.code() == RDKafkaErrorCode::InvalidTransactionTimeout =>
                {
                    FenceError::TimeoutTooLong
                }
                KafkaError::Transaction(cause) if cause.is_retriable() => FenceError::NoAnswer,
                _ => FenceError::Failed(failure("fencing off earlier producers", &error)),
            })
    }

    /// Commits the transaction. Everything sent must be acknowledged: rdkafka waits in steps of 100 ms for what is not. Blocks.
    ///
    /// # Errors
    /// When it is not certain that the transaction is committed.
    pub(crate) fn commit(&self) -> Result<(), Failure> {
        // From here on the commit itself reports a transaction that failed.
        *self.is_open() = false;
        // An acknowledgement is told before librdkafka has ticked its record off.
        for _ in 0..IN_FLIGHT_LOOKS {
            if self.inner.in_flight_count() == 0 {
                break;
            }
            std::thread::sleep(IN_FLIGHT_LOOK);
        }
        let begun = Instant::now();
        loop {
            match self.inner.commit_transaction(COORDINATOR_TIMEOUT) {
                Ok(()) => return Ok(()),
                // Asked again it goes on waiting for the same answer, until the coordinator has aborted the transaction by itself.
                Err(KafkaError::Transaction(cause))
                    if cause.is_retriable() && begun.elapsed() < self.transaction_timeout =>
                {
                    tracing::warn!("kafka has not committed yet: {cause}; asks again");
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

/// What an error of a transaction means.
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
