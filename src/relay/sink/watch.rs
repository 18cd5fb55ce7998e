//! Detection of producers that fail without a report.
//!
//! librdkafka reports the failure of a transaction only in a log line and in the results of later
//! calls. A client whose threads hang reports nothing. In both cases the records in flight are
//! never acknowledged. While nothing is acknowledged, this task therefore queries the producers for
//! a failure, and limits the time without an acknowledgement.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::kafka::{Acks, Failure, OVERDUE, Producer, Settings, answers, bounded};

/// Interval between queries of the producers while nothing is acknowledged. It delays the end of a
/// session. A query costs microseconds.
const LOOK: Duration = Duration::from_millis(250);

/// Maximum time that one query adds to a silence, so that a suspension of the process does not
/// count as waiting.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Time limit of a query, which the client answers without a broker.
const FAULT_LIMIT: Duration = Duration::from_secs(30);

/// Maximum silence without transactions while the cluster answers another client. It exceeds the
/// duration of an election, and the time that a replica takes to return to a partition below
/// `min.insync.replicas`. New producers then send the same records again.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Interval between log entries about a silence. A silence that is too long queries the cluster at
/// the same interval.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// Time without an acknowledgement while records are in flight.
#[derive(Default)]
struct Silence {
    floor: u64,
    length: Duration,
}

impl Silence {
    /// Adds `passed` and returns the length. `floor` is the tag below which everything is
    /// acknowledged. Returns `None` if a record was acknowledged or none is in flight.
    fn observe(&mut self, floor: u64, under_way: u64, passed: Duration) -> Option<Duration> {
        if under_way == 0 || floor != self.floor {
            (self.floor, self.length) = (floor, Duration::ZERO);
            return None;
        }
        self.length += passed.min(LOOK_MAX);
        Some(self.length)
    }
}

/// Fails `acks` once one of the producers has failed or has been silent for too long. Does not
/// return before.
pub(super) async fn watch(producers: Vec<Arc<Producer>>, acks: Arc<Acks>, settings: Settings) {
    let (mut silence, mut looked, mut reported) =
        (Silence::default(), Instant::now(), Duration::ZERO);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let passed = std::mem::replace(&mut looked, Instant::now()).elapsed();
        let Some(length) = silence.observe(acks.floor(), acks.under_way().0, passed) else {
            reported = Duration::ZERO;
            continue;
        };
        let report = length >= reported + REPORT_EVERY;
        if report {
            reported = length;
            tracing::warn!(
                records = acks.under_way().0,
                seconds = length.as_secs(),
                "kafka has acknowledged nothing"
            );
        }
        let failure = match fault(&producers).await {
            Some(failure) => Some(failure),
            None => too_long(&producers, &settings, length, report).await,
        };
        if let Some(failure) = failure
            && acks.floor() == silence.floor
        {
            acks.fail(failure);
            return;
        }
    }
}

/// Returns the failure that one of the producers reports when queried.
async fn fault(producers: &[Arc<Producer>]) -> Option<Failure> {
    let producers = producers.to_vec();
    let asked = bounded("begin_transaction", FAULT_LIMIT, move || {
        producers.iter().find_map(|producer| producer.fault())
    });
    asked
        .await
        .unwrap_or_else(|unanswered| Some(Failure::Broken(unanswered.to_string())))
}

/// Returns the failure that a silence of this length means.
async fn too_long(
    producers: &[Arc<Producer>],
    settings: &Settings,
    length: Duration,
    ask: bool,
) -> Option<Failure> {
    let transaction = producers
        .iter()
        .map(|producer| producer.transaction_timeout())
        .max()
        .unwrap_or_default();
    let seconds = length.as_secs();
    if !transaction.is_zero() {
        // The coordinator has aborted the transaction by now.
        let text = format!(
            "nothing was acknowledged for {seconds} s, which is longer than a transaction may take"
        );
        return (length > transaction + OVERDUE).then_some(Failure::Broken(text));
    }
    if length < SILENCE_MAX || !ask || !answers(settings).await {
        return None;
    }
    Some(Failure::Broken(format!(
        "nothing was acknowledged for {seconds} s although the cluster answers"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_lasts_while_nothing_is_acknowledged_and_the_process_runs() {
        let (mut silence, second) = (Silence::default(), Duration::from_secs(1));
        assert_eq!(silence.observe(0, 0, second), None);
        assert_eq!(silence.observe(0, 3, second), Some(second));
        assert_eq!(silence.observe(0, 5, second), Some(2 * second));
        assert_eq!(silence.observe(1, 4, second), None, "one was acknowledged");
        assert_eq!(
            silence.observe(1, 4, 3600 * second),
            Some(LOOK_MAX),
            "the process was suspended"
        );
        assert_eq!(silence.observe(5, 0, second), None);
    }
}
