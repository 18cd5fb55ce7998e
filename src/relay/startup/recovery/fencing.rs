//! Fencing: the relay becomes the only producer with its transactional ids.

use std::sync::Arc;

use futures_util::future::try_join_all;

use super::Session;
use crate::{
    kafka::{Failure, FenceError, OVERDUE, Producer, bounded},
    relay::{error::Interruption, monitor::metrics::Component},
};

/// Attempts to fence with the same client before the client is replaced. An attempt takes up to 30
/// seconds.
const FENCE_TRIES: u32 = 3;

/// Makes this relay the only producer with its transactional ids.
pub(super) async fn fence(
    session: &Session<'_>,
    producers: &[Arc<Producer>],
) -> Result<(), Interruption> {
    let ids = session.names.transactional_ids.iter();
    try_join_all(
        ids.zip(producers)
            .map(|(id, producer)| fence_one(session, id, producer)),
    )
    .await?;
    Ok(())
}

async fn fence_one(
    session: &Session<'_>,
    id: &str,
    producer: &Arc<Producer>,
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
            Ok(Err(FenceError::NoAnswer)) => {
                let text = "the transaction coordinator does not answer; the relay waits for it";
                tracing::warn!("{text}");
                observer.pulse().moved();
                standing.get_or_insert_with(|| observer.hold(Component::Kafka, text));
                if asked == FENCE_TRIES {
                    return Err(Interruption::Kafka(text.into()));
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
