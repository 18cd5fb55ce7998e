//! State that one session of a relay leaves to the next.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    kafka::{Acks, Failure, Settings, message_bytes_max},
    relay::{
        error::{Interruption, Meaning},
        leadership::relay_store::Saved,
        pipeline::{
            clock::{Clock, Stamping},
            publisher::{BatchIsolation, EventPublisher, SizeLimit, TopicFaults},
        },
        position::Position,
        startup::{names, transaction_timeout},
    },
};

/// The label of a record that contains a position. Labels of events are never zero.
const POSITION: i64 = 0;

/// State that one session leaves to the next.
#[derive(Default)]
pub(crate) struct Carried {
    /// A publisher whose records are all durable, with the durable position and its record's
    /// number.
    pub(crate) settled: Option<(EventPublisher, Position, u64)>,
    /// The epoch of this process's last leadership.
    pub(crate) epoch: i64,
    /// No pooler is between the relay and the database.
    pub(crate) direct: bool,
    /// Count of topic changes that the publisher's view of its topics includes.
    pub(crate) topic_changes: i64,
    /// The database allows as many connections as the relay needs.
    pub(crate) has_connections: bool,
    /// The slot's log could not be decoded.
    pub(crate) log_unusable: bool,
    /// The server did not stream the log.
    pub(crate) log_silent: bool,
    /// Suspects and rejected records of refused batches. If the last producer failed, `failed`
    /// contains its reports.
    pub(crate) isolation: BatchIsolation,
    pub(crate) topic_faults: Option<TopicFaults>,
    pub(crate) failed: Option<Arc<Acks>>,
    /// The time limit of transactions, after the brokers have refused a longer one.
    pub(crate) transaction_timeout: Option<Duration>,
    /// The source of timestamps, after brokers have refused others.
    pub(crate) stamping: Stamping,
    /// A difference of the clocks was reported.
    pub(crate) clocks_reported: bool,
}

impl Carried {
    /// Returns the state for the session after an interruption, and whether that session starts
    /// after the first and shortest pause. It does if a command waits for it, or if each such
    /// session advances the search for a refused record.
    pub(super) fn after(self, interruption: &Interruption) -> (Self, bool) {
        let is_broken = interruption.meaning() == Meaning::ProducerBroken;
        let mut next = match is_broken {
            true => self.without_producer(),
            false => self,
        };
        next.log_unusable = interruption.log_is_unusable();
        next.log_silent = interruption.log_is_silent();
        // The server may allow fewer connections than before.
        next.has_connections &= !interruption.is_timed_out();
        let at_once = match interruption {
            Interruption::TopicsChanged | Interruption::Isolated => true,
            Interruption::BatchRefused(_) => is_broken,
            _ => is_broken && next.untimely(),
        };
        (next, at_once)
    }

    /// Returns the state that remains if a session panics or is dropped. The session had taken the
    /// rest out, so it may be incomplete.
    pub(super) fn without_session(&self) -> Self {
        Self {
            epoch: self.epoch,
            direct: self.direct,
            transaction_timeout: self.transaction_timeout,
            stamping: self.stamping,
            clocks_reported: self.clocks_reported,
            ..Self::default()
        }
    }

    /// Returns the publisher of the last session if its position is still the newest one and its
    /// view of the topics is current. `alone` means that no other relay has led since.
    pub(super) fn take_settled(
        &mut self,
        alone: bool,
        saved: &Saved,
        topic_changes: i64,
    ) -> Option<(EventPublisher, Position, u64)> {
        let knows_topics =
            std::mem::replace(&mut self.topic_changes, topic_changes) == topic_changes;
        let is_newest = alone && saved.moved_to.is_none() && saved.given_up.is_empty();
        let settled = self.settled.take();
        settled.filter(|_| is_newest && knows_topics && !self.isolation.wants_trial())
    }

    /// Returns the state that remains when the producers are replaced.
    fn without_producer(self) -> Self {
        Self {
            settled: None,
            topic_changes: 0,
            ..self
        }
    }

    /// Returns the maximum batch size and the time limit of transactions.
    pub(crate) fn limits(&mut self) -> (usize, Duration) {
        (
            self.isolation.begin_session(),
            self.transaction_timeout
                .unwrap_or(transaction_timeout::WANTED),
        )
    }

    /// Records the refusals that a failed producer has reported.
    pub(crate) async fn learn(&mut self, kafka: &Settings) -> Result<(), Interruption> {
        let Some(acks) = self.failed.take() else {
            return Ok(());
        };
        if let (Some((topic, reason)), Some(faults)) = (acks.topic_fault(), &mut self.topic_faults)
        {
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
            return Err(Interruption::Refused(format!(
                "the relay's own position cannot be stored: {reason}"
            )));
        }
        let mut limits = HashMap::new();
        for ground in refused.grounds.iter().filter(|ground| ground.too_large) {
            if let Some(bytes) = message_bytes_max(kafka, &ground.topic).await {
                limits.insert(ground.topic.clone(), SizeLimit::new(bytes));
            }
        }
        tracing::warn!(
            records = refused.records.len(),
            "isolates the faulty records of refused batches"
        );
        self.isolation.refused(&refused, limits);
        Ok(())
    }

    /// Returns `true` if a broker has refused the timestamps of the last producer's records and the
    /// next session reacts to it.
    pub(crate) fn untimely(&self) -> bool {
        let failure = self.failed.as_ref().and_then(|acks| acks.failure());
        matches!(
            failure,
            Some(Failure::Untimely(topic))
                if !names::is_of_positions(&topic) || self.stamping.after_refusal().is_some()
        )
    }

    /// Selects other timestamps after a broker has refused some. A topic that refuses every
    /// timestamp counts as unusable for a while, and others continue. If it is the position topic,
    /// no event can be published.
    fn stamp_otherwise(&mut self, topic: &str) -> Result<(), Interruption> {
        let refused = self.stamping;
        let Some(next) = refused.after_refusal() else {
            self.stamping = Stamping::default();
            let reason = Interruption::Untimely(topic.to_owned());
            let Some(faults) = self
                .topic_faults
                .as_mut()
                .filter(|_| !names::is_of_positions(topic))
            else {
                return Err(reason);
            };
            faults.refused_records(topic, reason.to_string());
            return Ok(());
        };
        tracing::warn!(
            topic,
            "the topic refuses records {refused}; from now on they are stamped {next}. Compare the \
             clocks of the brokers and of the database (`tidings check`), and the topic's \
             message.timestamp.before.max.ms and message.timestamp.after.max.ms"
        );
        self.stamping = next;
        Ok(())
    }

    /// Reports once that this machine's clock differs from the database's.
    pub(crate) fn compare_clocks(&mut self, clock: Clock) {
        if let Some((by, ahead)) = clock.disagreement().filter(|_| !self.clocks_reported) {
            let which = if ahead { "ahead of" } else { "behind" };
            tracing::warn!(
                seconds = by.as_secs(),
                "the clock of this machine is {which} the database's: records are stamped by the \
                 database's, latencies are wrong; set the clock"
            );
            self.clocks_reported = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_leaves_follows_from_how_it_ended() {
        let before = || Carried {
            epoch: 7,
            direct: true,
            has_connections: true,
            transaction_timeout: Some(Duration::from_secs(9)),
            topic_changes: 3,
            ..Carried::default()
        };
        // `topic_changes` is kept together with the producer.
        for (interruption, keeps_producer, at_once) in [
            (Interruption::LeaseLost, true, false),
            (Interruption::Publication, true, false),
            (Interruption::Waiting("another relay".into()), true, false),
            (Interruption::Kafka("fatal".into()), false, false),
            (Interruption::TopicsChanged, false, true),
            (Interruption::Isolated, false, true),
            (Interruption::BatchRefused("too large".into()), false, true),
        ] {
            let (after, soon) = before().after(&interruption);
            let kept = after.topic_changes == 3;
            assert_eq!((kept, soon), (keeps_producer, at_once), "{interruption:?}");
            assert_eq!((after.epoch, after.direct), (7, true), "{interruption:?}");
            let timeout = after.transaction_timeout;
            assert_eq!(timeout, Some(Duration::from_secs(9)), "{interruption:?}");
        }
    }

    /// A session may panic or hang after its brokers have refused a long time limit.
    #[test]
    fn the_facts_that_no_session_takes_out_survive_its_panic() {
        let left = Carried {
            epoch: 7,
            direct: true,
            has_connections: true,
            transaction_timeout: Some(Duration::from_secs(9)),
            stamping: Stamping::Sending,
            clocks_reported: true,
            topic_changes: 3,
            ..Carried::default()
        }
        .without_session();
        assert_eq!(
            (left.epoch, left.direct, left.transaction_timeout),
            (7, true, Some(Duration::from_secs(9)))
        );
        assert_eq!(
            (left.stamping, left.clocks_reported),
            (Stamping::Sending, true)
        );
        assert_eq!((left.topic_changes, left.has_connections), (0, false));
    }

    /// A fault of one topic affects only that topic.
    #[test]
    fn a_topic_that_refuses_every_timestamp_is_left_alone_and_others_keep_their_own() {
        let mut carried = Carried {
            topic_faults: Some(TopicFaults::default()),
            ..Carried::default()
        };
        let mut tried = 0;
        while carried
            .topic_faults
            .as_ref()
            .is_some_and(TopicFaults::is_idle)
        {
            carried.stamp_otherwise("order").expect("others continue");
            tried += 1;
        }
        assert_eq!((carried.stamping, tried > 2), (Stamping::Own, true));
        let reason = carried
            .topic_faults
            .as_ref()
            .and_then(|faults| faults.reason("order"))
            .unwrap_or_default();
        assert!(
            reason.contains("`order` refuses the timestamps"),
            "{reason}"
        );
    }

    /// No position can be stored.
    #[test]
    fn a_topic_of_positions_that_refuses_every_timestamp_keeps_the_relay() {
        let mut carried = Carried {
            topic_faults: Some(TopicFaults::default()),
            ..Carried::default()
        };
        let refused =
            (0..100).find_map(|_| carried.stamp_otherwise("tidings.position.a.0123abcd").err());
        assert!(
            matches!(refused, Some(Interruption::Untimely(_))),
            "{refused:?}"
        );
        assert!(carried.topic_faults.is_some_and(|faults| faults.is_idle()));
    }
}
