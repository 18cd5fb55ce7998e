//! The time limit of the relay's Kafka transactions.

use std::time::Duration;

use super::error::Interruption;
use crate::kafka::{Settings, broker_setting};

/// How long a transaction may stay open unless the brokers allow less: after it the coordinator aborts it. Well above any batch, and no
/// longer than readers of committed records should wait for a relay that died without a successor.
pub(crate) const WANTED: Duration = Duration::from_secs(60);

/// The shortest one that librdkafka takes.
pub(crate) const LEAST: Duration = Duration::from_secs(1);

/// The brokers' setting that limits it; 15 minutes by default.
pub(crate) const LIMIT: &str = "transaction.max.timeout.ms";

/// The time limit to try after the brokers have refused `refused`: theirs, or half as long if it may not be read.
///
/// # Errors
/// A refusal when even the shortest one is too long.
pub(super) async fn shorter(kafka: &Settings, refused: Duration) -> Result<Duration, Interruption> {
    let told = broker_setting(kafka, LIMIT).await.and_then(|text| text.parse().ok()).map(Duration::from_millis);
    let next = next(refused, told).ok_or_else(|| {
        Interruption::Refused(format!(
            "the brokers allow no transaction of {} ms, the shortest that the relay can use: raise {LIMIT} on every broker ({} ms is enough), or run with --delivery at-least-once",
            LEAST.as_millis(),
            WANTED.as_millis()
        ))
    })?;
    tracing::warn!(
        milliseconds = next.as_millis(),
        limit = told.map(|limit| limit.as_millis()),
        "the brokers do not allow transactions of {} ms ({LIMIT}); the relay uses a shorter time limit: an outage of a broker that lasts \
         longer ends a transaction, and its events are sent again",
        refused.as_millis()
    );
    Ok(next)
}

fn next(refused: Duration, told: Option<Duration>) -> Option<Duration> {
    let next = told.filter(|limit| *limit < refused).unwrap_or(refused / 2);
    // What is halved ends at the least; a limit that was read does not.
    let next = if told.is_none() && refused > LEAST { next.max(LEAST) } else { next };
    (next >= LEAST).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_the_brokers_is_used_or_else_found_by_halving() {
        let seconds = Duration::from_secs;
        assert_eq!(next(seconds(60), Some(seconds(10))), Some(seconds(10)));
        assert_eq!(next(seconds(60), None), Some(seconds(30)));
        assert_eq!(next(Duration::from_millis(1_500), None), Some(LEAST));
        assert_eq!(next(LEAST, None), None);
        assert_eq!(next(seconds(60), Some(Duration::from_millis(500))), None);
        assert_eq!(next(seconds(10), Some(seconds(10))), Some(seconds(5)), "brokers that disagree");
    }
}
