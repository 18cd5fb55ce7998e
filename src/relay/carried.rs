//! What one session of a relay leaves to the next.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    clock::{Clock, Stamping},
    error::Interruption,
    forward::{BatchIsolation, Forwarder, SizeLimit, TopicFaults},
    names,
    position::Position,
    transaction_timeout,
};
use crate::kafka::{Acks, Failure, Settings, message_bytes_max};

/// The label of a record that holds a position; events have theirs from one on.
const POSITION: i64 = 0;

/// What one session leaves to the next.
#[derive(Default)]
pub(super) struct Carried {
    /// A producer whose records are all safe, and where that leaves the relay.
    pub(super) settled: Option<(Forwarder, Position, u64)>,
    /// The epoch under which this process led last.
    pub(super) epoch: i64,
    /// No pooler stands between.
    pub(super) direct: bool,
    /// What the producer knows of topics belongs to this count of their changes.
    pub(super) topic_changes: i64,
    /// The database gives it as many connections as it needs.
    pub(super) has_connections: bool,
    /// The slot's log could not be decoded.
    pub(super) log_unusable: bool,
    /// The server did not stream the log.
    pub(super) log_silent: bool,
    /// Whom refused batches have put under suspicion, and what the last producer, if it failed, knows of one.
    pub(super) isolation: BatchIsolation,
    pub(super) topic_faults: Option<TopicFaults>,
    pub(super) failed: Option<Arc<Acks>>,
    /// The time limit of transactions, once the brokers have refused a longer one.
    pub(super) transaction_timeout: Option<Duration>,
    /// How records are stamped after the timestamps that brokers have refused.
    pub(super) stamping: Stamping,
    /// It was reported that the clocks differ.
    pub(super) clocks_reported: bool,
}

impl Carried {
    /// What is left when the producers are replaced.
    pub(super) fn without_producer(self) -> Self {
        let Self { epoch, direct, has_connections, isolation, topic_faults, failed, transaction_timeout, .. } = self;
        let Self { stamping, clocks_reported, .. } = self;
        let kept = Self { epoch, direct, has_connections, isolation, topic_faults, failed, transaction_timeout, ..Self::default() };
        Self { stamping, clocks_reported, ..kept }
    }

    /// The largest batch and the longest transaction.
    pub(super) fn limits(&mut self) -> (usize, Duration) {
        (self.isolation.begin_session(), self.transaction_timeout.unwrap_or(transaction_timeout::WANTED))
    }

    /// Takes note of what a producer that failed knows of refused batches.
    pub(super) async fn learn(&mut self, kafka: &Settings) -> Result<(), Interruption> {
        let Some(acks) = self.failed.take() else { return Ok(()) };
        if let (Some((topic, reason)), Some(faults)) = (acks.topic_fault(), &mut self.topic_faults) {
            faults.refused_records(&topic, reason);
        }
        let reason = match acks.failure() {
            Some(Failure::Refused(reason)) => reason,
            Some(Failure::Untimely(topic)) => return self.stamp_otherwise(&topic),
            _ => return Ok(()),
        };
        let mut refused = acks.refused();
        refused.records.retain(|record| record.label != POSITION);
        if refused.records.is_empty() {
            return Err(Interruption::Refused(format!("the relay's own position cannot be stored: {reason}")));
        }
        let mut limits = HashMap::new();
        for ground in refused.grounds.iter().filter(|ground| ground.too_large) {
            if let Some(bytes) = message_bytes_max(kafka, &ground.topic).await {
                limits.insert(ground.topic.clone(), SizeLimit::new(bytes));
            }
        }
        tracing::warn!(records = refused.records.len(), "looks for what is wrong with records of refused batches");
        self.isolation.refused(&refused, limits);
        Ok(())
    }

    /// A broker has refused the timestamps of the last producer's records, and the next session does something about it.
    pub(super) fn untimely(&self) -> bool {
        let failure = self.failed.as_ref().and_then(|acks| acks.failure());
        matches!(failure, Some(Failure::Untimely(topic)) if !names::is_of_positions(&topic) || self.stamping.after_refusal().is_some())
    }

    /// Has records stamped otherwise after a broker has refused their timestamps. A topic that refuses every timestamp is left
    /// alone for a while, and the others go on; without the topic of positions nobody can.
    fn stamp_otherwise(&mut self, topic: &str) -> Result<(), Interruption> {
        let refused = self.stamping;
        let Some(next) = refused.after_refusal() else {
            self.stamping = Stamping::default();
            let reason = Interruption::Untimely(topic.to_owned());
            let Some(faults) = self.topic_faults.as_mut().filter(|_| !names::is_of_positions(topic)) else { return Err(reason) };
            faults.refused_records(topic, reason.to_string());
            return Ok(());
        };
        tracing::warn!(
            topic,
            "the topic refuses records {refused}; from here on they are stamped {next}. Compare the clocks of the brokers and of the database \
             (`tidings check`), and the topic's message.timestamp.before.max.ms and message.timestamp.after.max.ms"
        );
        self.stamping = next;
        Ok(())
    }

    /// Reports once that this machine's clock is not the database's.
    pub(super) fn compare_clocks(&mut self, clock: Clock) {
        if let Some((by, ahead)) = clock.disagreement().filter(|_| !self.clocks_reported) {
            let which = if ahead { "ahead of" } else { "behind" };
            tracing::warn!(
                seconds = by.as_secs(),
                "the clock of this machine is {which} the database's: records are stamped by the database's, latencies are wrong; set the clock"
            );
            self.clocks_reported = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fault of one topic concerns that topic alone.
    #[test]
    fn a_topic_that_refuses_every_timestamp_is_left_alone_and_others_keep_their_own() {
        let mut carried = Carried { topic_faults: Some(TopicFaults::default()), ..Carried::default() };
        let mut tried = 0;
        while carried.topic_faults.as_ref().is_some_and(TopicFaults::is_idle) {
            carried.stamp_otherwise("order").expect("others continue");
            tried += 1;
        }
        assert_eq!((carried.stamping, tried > 2), (Stamping::Own, true));
        let reason = carried.topic_faults.as_ref().and_then(|faults| faults.reason("order")).unwrap_or_default();
        assert!(reason.contains("`order` refuses the timestamps"), "{reason}");
    }

    /// No position can be stored.
    #[test]
    fn a_topic_of_positions_that_refuses_every_timestamp_keeps_the_relay() {
        let mut carried = Carried { topic_faults: Some(TopicFaults::default()), ..Carried::default() };
        let refused = (0..100).find_map(|_| carried.stamp_otherwise("tidings.position.a.0123abcd").err());
        assert!(matches!(refused, Some(Interruption::Untimely(_))), "{refused:?}");
        assert!(carried.topic_faults.is_some_and(|faults| faults.is_idle()));
    }
}
