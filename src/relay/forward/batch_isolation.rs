//! Who is suspected after a broker refused a batch.
//!
//! A broker refuses a batch as a whole and does not always say why. What was in it is sent again one by one, each acknowledged before
//! anything else goes: then the batch that is refused holds the culprit alone.

use std::collections::{HashMap, HashSet};

/// Suspects and culprits, by `seq`.
#[derive(Debug, Default)]
pub(in crate::relay) struct BatchIsolation {
    suspects: HashSet<i64>,
    culprits: HashMap<i64, Rejected>,
    /// The tag of a suspect that was sent and must be acknowledged before anything else goes.
    alone: Option<u64>,
    /// Suspects that were sent, and of these, those that are in a batch being committed. Until it is, they may have to be sent again.
    sent: Vec<i64>,
    cut: Vec<i64>,
}

/// An event that the broker refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::relay) struct Rejected {
    pub(in crate::relay) reason: String,
    /// How often it was refused alone; more than once if it was sent again as a dead letter.
    pub(in crate::relay) refusals: u32,
}

impl BatchIsolation {
    /// Nobody is suspected.
    pub(in crate::relay) fn is_idle(&self) -> bool {
        self.suspects.is_empty() && self.culprits.is_empty() && self.alone.is_none()
    }

    /// A batch with these was refused.
    pub(in crate::relay) fn accuse(&mut self, refused: &[i64], reason: &str) {
        match refused {
            [alone] => {
                self.suspects.remove(alone);
                // The first reason is the event's own topic's.
                self.culprits.entry(*alone).or_insert_with(|| Rejected { reason: reason.to_owned(), refusals: 0 }).refusals += 1;
            }
            several => self.suspects.extend(several),
        }
    }

    /// To be sent alone, whatever happens to others.
    pub(in crate::relay) fn suspect(&mut self, seq: i64) {
        self.suspects.insert(seq);
    }

    /// The event, if it is known to be refused.
    pub(in crate::relay) fn rejected(&self, seq: i64) -> Option<&Rejected> {
        self.culprits.get(&seq)
    }

    /// Done with this one: if it is met again, the broker is asked again.
    pub(in crate::relay) fn forget(&mut self, seq: i64) {
        self.culprits.remove(&seq);
        self.suspects.remove(&seq);
    }

    /// Whether the event may go now: everything below tag `floor` is acknowledged, up to `next` it is sent.
    pub(in crate::relay) fn may_send(&mut self, seq: i64, floor: u64, next: u64) -> bool {
        if self.alone.is_some_and(|tag| floor <= tag) {
            return false;
        }
        self.alone = None;
        floor == next || !self.suspects.contains(&seq)
    }

    /// The event was sent under this tag.
    pub(in crate::relay) fn sent(&mut self, seq: i64, tag: u64) {
        if self.suspects.contains(&seq) {
            self.alone = Some(tag);
            self.sent.push(seq);
        }
    }

    /// What was sent ends a batch.
    pub(in crate::relay) fn cut(&mut self) {
        self.cut.append(&mut self.sent);
    }

    /// The batches that were ended are durable.
    pub(in crate::relay) fn durable(&mut self) {
        for seq in self.cut.drain(..) {
            self.suspects.remove(&seq);
        }
    }

    /// What the next producer must know: tags are the last one's.
    pub(in crate::relay) fn carry_over(mut self) -> Self {
        (self.alone, self.sent, self.cut) = (None, Vec::new(), Vec::new());
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A broker that takes batches as they fall and refuses each that holds a bad event, with all that is under way: sessions until all
    /// events are sent or found bad. What was found, and how many sessions it took.
    fn found(events: &[bool], cuts: &[usize]) -> (BTreeSet<i64>, usize) {
        let (mut isolation, mut found, mut sessions) = (BatchIsolation::default(), BTreeSet::new(), 0);
        'session: loop {
            sessions += 1;
            isolation = isolation.carry_over();
            let (mut batch, mut floor, mut next): (Vec<i64>, u64, u64) = (Vec::new(), 0, 0);
            let mut cuts = cuts.iter().cycle();
            let mut room = *cuts.next().expect("endless");
            for seq in 0..=events.len() as i64 {
                let last = seq as usize == events.len();
                if !last && isolation.rejected(seq).is_some() {
                    found.insert(seq);
                    continue;
                }
                // The batch goes when it is full, at the end, and whenever the sender has to wait.
                while !batch.is_empty() && (last || batch.len() >= room || !isolation.may_send(seq, floor, next)) {
                    if batch.iter().any(|seq| events[*seq as usize]) {
                        isolation.accuse(&batch, "no");
                        continue 'session;
                    }
                    (floor, room) = (next, *cuts.next().expect("endless"));
                    batch.clear();
                }
                if !last {
                    assert!(isolation.may_send(seq, floor, next));
                    isolation.sent(seq, next);
                    next += 1;
                    batch.push(seq);
                }
            }
            return (found, sessions);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_batches_exactly_the_bad_events_are_found(events in proptest::collection::vec(proptest::bool::weighted(0.1), 1..60), cuts in proptest::collection::vec(1usize..30, 1..6)) {
            let bad: BTreeSet<i64> = (0..).zip(&events).filter(|(_, bad)| **bad).map(|(seq, _)| seq).collect();
            let (found, sessions) = found(&events, &cuts);
            prop_assert_eq!(&found, &bad);
            // One to notice, one to find, for each.
            prop_assert!(sessions <= 2 * bad.len() + 1, "{} sessions for {}", sessions, bad.len());
        }
    }

    #[test]
    fn nothing_goes_beside_a_suspect() {
        let mut isolation = BatchIsolation::default();
        isolation.accuse(&[1, 2], "too large");
        assert!(!isolation.may_send(1, 5, 6) && isolation.may_send(9, 5, 6) && isolation.may_send(1, 6, 6));
        isolation.sent(1, 6);
        assert!(!isolation.may_send(9, 6, 7) && isolation.may_send(9, 7, 7));
        assert!(!isolation.may_send(1, 7, 8), "not durable yet: if it must be sent again, then alone");
        isolation.cut();
        isolation.durable();
        assert!(isolation.may_send(1, 7, 8));
        isolation.accuse(&[2], "too large");
        assert_eq!(isolation.rejected(2), Some(&Rejected { reason: "too large".into(), refusals: 1 }));
        isolation.forget(2);
        assert!(isolation.is_idle());
    }
}
