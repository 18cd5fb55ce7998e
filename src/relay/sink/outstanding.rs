//! The records of a sink that are not durable, visible while the sink's session does not respond.

use std::sync::Arc;

use tokio::sync::watch;

use super::exactly_once::Reached;
use crate::{
    kafka::{Acks, Failure},
    relay::error::Interruption,
};

/// View of the outstanding records of a sink. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outstanding {
    acks: Arc<Acks>,
    /// Progress of the batches with delivery exactly once. Otherwise an acknowledged record is
    /// durable.
    batches: Option<watch::Receiver<Reached>>,
}

impl Outstanding {
    /// Returns the view of a sink that delivers at least once.
    pub(crate) fn of_records(acks: Arc<Acks>) -> Self {
        Self {
            acks,
            batches: None,
        }
    }

    /// Returns the view of a sink that delivers exactly once.
    pub(super) fn of_batches(acks: Arc<Acks>, batches: watch::Receiver<Reached>) -> Self {
        Self {
            acks,
            batches: Some(batches),
        }
    }

    /// Returns the number of records that are not acknowledged, including positions.
    pub(crate) fn records(&self) -> u64 {
        self.acks.under_way().0
    }

    /// Returns the number of sent events that are not durable. Records of positions do not count.
    pub(crate) fn events(&self) -> u64 {
        match &self.batches {
            Some(batches) => batches.borrow().events(self.acks.sent()),
            None => self.records(),
        }
    }

    /// Returns the reason why the producer cannot continue, if it has failed.
    pub(crate) fn failure(&self) -> Option<Interruption> {
        let of_commit = self.batches.as_ref().and_then(|batches| {
            let reached = batches.borrow();
            reached.failure().cloned()
        });
        // A refused record makes the commit fail, so it takes precedence as the cause.
        let failure = match (self.acks.failure(), of_commit) {
            (Some(refused @ (Failure::Refused(_) | Failure::Untimely(_))), _) => Some(refused),
            (of_records, of_commit) => of_commit.or(of_records),
        };
        failure.map(Interruption::from)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kafka::Window;

    /// Returns the view of a sink that has sent a batch of `events` with its position, of which
    /// nothing is acknowledged.
    pub(crate) fn with_batch(events: u64, failure: Option<Failure>) -> Outstanding {
        let (acks, reached) = (Arc::<Acks>::default(), watch::Sender::<Reached>::default());
        for label in 0..=events {
            acks.admit(label.cast_signed(), 1, LARGE).expect("room");
        }
        reached.send_modify(|reached| {
            reached.position_sent();
            failure
                .into_iter()
                .for_each(|failure| reached.fail(failure));
        });
        Outstanding::of_batches(acks, reached.subscribe())
    }

    const LARGE: Window = Window {
        records: 1_000,
        bytes: 1_000,
    };

    #[test]
    fn events_are_outstanding_until_their_batch_is_committed_and_positions_never_are() {
        let (acks, reached) = (Arc::<Acks>::default(), watch::Sender::<Reached>::default());
        let outstanding = Outstanding::of_batches(acks.clone(), reached.subscribe());
        let send = |records: i64| {
            for label in 0..records {
                acks.admit(label, 1, LARGE).expect("room");
            }
        };
        assert_eq!((outstanding.events(), outstanding.records()), (0, 0));
        send(3);
        assert_eq!(outstanding.events(), 3);
        send(1);
        reached.send_modify(Reached::position_sent);
        assert_eq!((outstanding.events(), outstanding.records()), (3, 4));
        send(2);
        reached.send_modify(|reached| reached.committed(1, 4));
        assert_eq!(outstanding.events(), 2);
        // A batch without events.
        send(1);
        reached.send_modify(Reached::position_sent);
        reached.send_modify(|reached| reached.committed(2, 7));
        send(1);
        reached.send_modify(Reached::position_sent);
        assert_eq!(outstanding.events(), 0);
    }

    #[test]
    fn a_failed_commit_is_the_cause_unless_a_record_was_refused() {
        let broken = |text: &str| Failure::Broken(text.into());
        let outstanding = with_batch(1, Some(broken("the commit failed")));
        let text = |outstanding: &Outstanding| outstanding.failure().map(|cause| cause.to_string());
        outstanding.acks.fail(broken("later"));
        assert_eq!(text(&outstanding).as_deref(), Some("the commit failed"));
        let outstanding = with_batch(1, Some(broken("the commit failed")));
        outstanding.acks.fail(Failure::Untimely("orders".into()));
        assert!(text(&outstanding).is_some_and(|text| text.contains("refuses the timestamps")));
        assert_eq!(text(&with_batch(1, None)), None);
    }
}
