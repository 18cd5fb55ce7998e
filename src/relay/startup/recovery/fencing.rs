//! Fencing: the relay becomes the only producer with its transactional ids.

use std::{future::Future, sync::Arc};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio_util::sync::CancellationToken;

use super::Session;
use crate::{
    kafka::{Failure, FenceError, OVERDUE, Producer, bounded},
    relay::{error::Interruption, monitor::metrics::Component},
};

/// Attempts to fence with the same client before the client is replaced. An attempt takes up to 30
/// seconds.
const FENCE_TRIES: u32 = 3;

/// Makes this relay the only producer with its transactional ids.
///
/// A call of the client cannot be cancelled. One that outlives its session would fence off the
/// producers of the next session, so a failure is returned after the other calls have ended too.
pub(super) async fn fence(
    session: &Session<'_>,
    producers: &[Arc<Producer>],
) -> Result<(), Interruption> {
    let failed = CancellationToken::new();
    let ids = session.names.transactional_ids.iter();
    let calls = ids
        .zip(producers)
        .map(|(id, producer)| fence_one(session, id, producer, &failed));
    first_failure_after_all(calls, &failed).await
}

/// Runs the calls until all of them have ended, and cancels `failed` once one has failed. Returns
/// the first failure.
async fn first_failure_after_all<E>(
    calls: impl IntoIterator<Item = impl Future<Output = Result<(), E>>>,
    failed: &CancellationToken,
) -> Result<(), E> {
    let mut calls: FuturesUnordered<_> = calls.into_iter().collect();
    let mut first = Ok(());
    while let Some(result) = calls.next().await {
        if result.is_err() {
            failed.cancel();
        }
        first = first.and(result);
    }
    first
}

/// Fences off the earlier producers with one id. Makes no further attempt once `failed` is
/// cancelled.
async fn fence_one(
    session: &Session<'_>,
    id: &str,
    producer: &Arc<Producer>,
    failed: &CancellationToken,
) -> Result<(), Interruption> {
    let Session { observer, lost, .. } = session;
    let (mut asked, mut standing) = (0, None);
    loop {
        asked += 1;
        let asks = producer.clone();
        let fenced = tokio::select! {
            fenced = bounded(
                "init_transactions",
                Producer::FENCE_TIMEOUT + OVERDUE,
                move || asks.fence(),
            ) => fenced,
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
        };
        match fenced {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason @ (FenceError::NoAnswer | FenceError::EarlierOpen))) => {
                let text = match reason {
                    FenceError::EarlierOpen => format!(
                        "the brokers do not end an earlier transaction of transactional id `{id}`; \
                         the relay waits for them, see docs/operating.md"
                    ),
                    _ => "the transaction coordinator does not answer; the relay waits for it"
                        .to_owned(),
                };
                tracing::warn!("{text}");
                observer.pulse().moved();
                // Replaced each time, because the reason may change.
                drop(standing.replace(observer.hold(Component::Kafka, &text)));
                if asked == FENCE_TRIES || failed.is_cancelled() {
                    return Err(Interruption::Kafka(text));
                }
            }
            Ok(Err(FenceError::TimeoutTooLong)) => {
                return Err(Interruption::TransactionTimeout(
                    producer.transaction_timeout(),
                ));
            }
            Ok(Err(FenceError::Failed(Failure::Fenced))) => {
                return Err(Interruption::Kafka(format!(
                    "another relay has started to produce with transactional id `{id}` at the same \
                     time"
                )));
            }
            Ok(Err(FenceError::Failed(
                Failure::Broken(reason) | Failure::Refused(reason) | Failure::Untimely(reason),
            ))) => {
                return Err(Interruption::Kafka(format!(
                    "cannot become the only producer with transactional id `{id}`: {reason}. If \
                     the cluster enforces ACLs, grant Write on it to the relay's principal, see \
                     docs/operating.md"
                )));
            }
            Err(unanswered) => return Err(Interruption::Kafka(unanswered.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_returned_once_no_call_is_left_that_could_fence_off_the_next_session() {
        let (failed, began) = (CancellationToken::new(), Instant::now());
        let call = |seconds, result: Result<(), &'static str>| async move {
            sleep(Duration::from_secs(seconds)).await;
            result
        };
        let calls = [call(9, Err("late")), call(1, Err("early")), call(5, Ok(()))];
        let result = first_failure_after_all(calls, &failed).await;
        assert_eq!((result, began.elapsed().as_secs()), (Err("early"), 9));
        assert!(failed.is_cancelled());
        let calls = [call(1, Ok(())), call(2, Ok(()))];
        let none = CancellationToken::new();
        assert_eq!(first_failure_after_all(calls, &none).await, Ok(()));
        assert!(!none.is_cancelled());
    }
}
