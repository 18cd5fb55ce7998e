//! Time limit of the relay's Kafka transactions.

use std::time::Duration;

use crate::{
    kafka::{Settings, broker_setting},
    relay::error::Interruption,
};

/// Default time limit of a transaction, after which the coordinator aborts it. Well above the
/// duration of any batch, and short enough for readers of committed records if a relay dies without
/// a successor.
pub(crate) const WANTED: Duration = Duration::from_secs(60);

/// The shortest time limit that librdkafka accepts.
pub(crate) const LEAST: Duration = Duration::from_secs(1);

/// The brokers' setting that limits transactions. Defaults to 15 minutes.
pub(crate) const LIMIT: &str = "transaction.max.timeout.ms";

/// Returns the time limit to try after the brokers have refused `refused`: the brokers' own limit,
/// or half of `refused` if that limit cannot be read.
///
/// # Errors
///
/// Returns a refusal if even the shortest time limit is too long.
pub(crate) async fn shorter(kafka: &Settings, refused: Duration) -> Result<Duration, Interruption> {
    let told = broker_setting(kafka, LIMIT)
        .await
        .and_then(|text| text.parse().ok())
        .map(Duration::from_millis);
    let next = next(refused, told).ok_or_else(|| {
        Interruption::Refused(format!(
            "the brokers allow no transaction of {} ms, the shortest that the relay can use: raise \
             {LIMIT} on every broker ({} ms is enough), or run with --delivery at-least-once",
            LEAST.as_millis(),
            WANTED.as_millis()
        ))
    })?;
    tracing::warn!(
        milliseconds = next.as_millis(),
        limit = told.map(|limit| limit.as_millis()),
        "the brokers do not allow transactions of {} ms ({LIMIT}); the relay uses a shorter time \
         limit: an outage of a broker that lasts longer ends a transaction, and its events are \
         sent again",
        refused.as_millis()
    );
    Ok(next)
}

fn next(refused: Duration, told: Option<Duration>) -> Option<Duration> {
    let next = told.filter(|limit| *limit < refused).unwrap_or(refused / 2);
    // Halving ends at the minimum. A limit that was read may be below it, which is a refusal.
    let next = if told.is_none() && refused > LEAST {
        next.max(LEAST)
    } else {
        next
    };
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
        assert_eq!(
            next(seconds(10), Some(seconds(10))),
            Some(seconds(5)),
            "brokers that disagree"
        );
    }
}
