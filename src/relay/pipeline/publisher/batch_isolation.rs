//! Isolation of the records for which a broker refuses a batch.
//!
//! A broker refuses a batch as a whole. The faulty records must be found in as few sessions as
//! possible, because each refusal ends one:
//!
//! ```text
//! too large, and the limit is known   the limit is applied before sending (`size_limit`), and
//!                                     batches become smaller
//! otherwise                           TRIAL: the next session sends every record in a batch of its
//!                                     own, so each refusal identifies its record, and all records
//!                                     in flight are judged at once
//! ```
//!
//! A trial ends once every suspect is judged; the session after it sends full batches again. A
//! rejected record is remembered until the batch with which it was parked is durable, because a
//! session that ends earlier reads it again.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Backpressure,
    outcome::Attempt,
    size_limit::{SizeLimit, Verdict, Weight},
};
use crate::kafka::{Acks, Refused};

/// Maximum duration of a trial. Suspects that are not read again, because an operator has deleted
/// their rows, do not prolong it.
const TRIAL_MAX: Duration = Duration::from_secs(60);

/// Size of a batch without its records, in bytes, with a reserve.
const BATCH_OVERHEAD: usize = 512;

/// Interval between checks for new reports of the broker, the number of checks without a report
/// after which no more are expected, and the maximum number of checks. The wait takes at most three
/// seconds.
const REPORTS: (Duration, u32, u32) = (Duration::from_millis(50), 5, 60);

/// Suspects and rejected records, by `seq`.
#[derive(Debug, Default)]
pub(crate) struct BatchIsolation {
    /// Records of refused batches.
    suspects: HashSet<i64>,
    /// Records that are sent alone in a session that otherwise sends full batches.
    alone_each: HashSet<i64>,
    rejected: HashMap<i64, Rejected>,
    /// The tag of a suspect that was sent and must be acknowledged before the next record is sent.
    alone: Option<u64>,
    /// Suspects in flight in a trial.
    tried: Vec<(u64, i64)>,
    /// The start of the trial. `None` if the session sends full batches.
    trial: Option<Instant>,
    /// Rejected records that were parked since the last batch ended, and those of ended batches
    /// that are not durable yet.
    set_aside: Vec<i64>,
    cut: Vec<i64>,
    /// The limits of topics that refused a record because of its size.
    limits: HashMap<String, SizeLimit>,
    /// The maximum batch size, after larger batches were refused only because of their size.
    batch_bytes_max: Option<usize>,
}

/// An event that the broker refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    pub(crate) reason: String,
    /// Number of refusals. More than one if the event was sent again as a dead letter.
    pub(crate) refusals: u32,
}

/// Result of a comparison with the topic's limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weighed {
    MayGo,
    TooLarge(String),
    /// The broker decides, after all earlier records are acknowledged.
    GoesAlone,
    /// The limit must be looked up again.
    LimitIsStale,
}

impl Weighed {
    /// Returns `None` if the record may be sent.
    pub(super) fn attempt(self, topic: &str) -> Result<Option<Attempt>, Backpressure> {
        match self {
            Self::MayGo => Ok(None),
            Self::TooLarge(reason) => Ok(Some(Attempt::Impossible(reason))),
            Self::GoesAlone => Err(Backpressure::Alone),
            Self::LimitIsStale => Err(Backpressure::SizeLimit(topic.to_owned())),
        }
    }
}

impl BatchIsolation {
    /// Returns `true` if all records are treated alike.
    pub(super) fn is_idle(&self) -> bool {
        self.suspects.is_empty()
            && self.alone_each.is_empty()
            && self.rejected.is_empty()
            && self.alone.is_none()
    }

    /// Returns `true` if the order of sending depends on acknowledgements.
    pub(super) fn watches_acknowledgements(&self) -> bool {
        !self.alone_each.is_empty() || self.alone.is_some()
    }

    /// Records a refusal. `limits` contains the current limits of the topics that refused records
    /// because of their size.
    pub(crate) fn refused(&mut self, refused: &Refused, limits: HashMap<String, SizeLimit>) {
        let judged_alone = self.trial.is_some() || refused.records.len() == 1;
        for (at, ground) in refused.grounds.iter().enumerate() {
            let of_ground = refused.records.iter().filter(|record| record.ground == at);
            if judged_alone {
                of_ground.for_each(|record| self.reject(record.label, &ground.reason));
                continue;
            }
            let limit = limits.get(&ground.topic).filter(|_| ground.too_large);
            if let Some(limit) = limit.filter(|limit| self.is_news(&ground.topic, limit)) {
                self.limit_batches(limit.bytes.saturating_sub(BATCH_OVERHEAD));
                continue;
            }
            self.suspects
                .extend(of_ground.clone().map(|record| record.label));
            if ground.too_large {
                // A topic accepts batches up to its limit. A refused batch exceeds the limit, so
                // half of it is never less than half the limit.
                self.limit_batches(of_ground.map(|record| record.bytes).sum::<usize>() / 2);
            }
        }
        self.limits.extend(limits);
    }

    fn reject(&mut self, seq: i64, reason: &str) {
        self.suspects.remove(&seq);
        self.alone_each.remove(&seq);
        // Keeps the first reason, which is that of the event's own topic.
        self.rejected
            .entry(seq)
            .or_insert_with(|| Rejected {
                reason: reason.to_owned(),
                refusals: 0,
            })
            .refusals += 1;
    }

    /// Returns `true` if the limit was not applied yet, so that applying it has an effect.
    fn is_news(&self, topic: &str, limit: &SizeLimit) -> bool {
        self.limits
            .get(topic)
            .is_none_or(|known| known.bytes > limit.bytes)
            || self.batch_bytes_max.is_none_or(|max| max > limit.bytes)
    }

    fn limit_batches(&mut self, bytes: usize) {
        self.batch_bytes_max = Some(self.batch_bytes_max.unwrap_or(usize::MAX).min(bytes.max(1)));
    }

    /// Returns `true` if the next session is a trial.
    pub(crate) fn wants_trial(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Starts a trial if there are suspects. Returns the maximum batch size for the next producers.
    pub(crate) fn begin_session(&mut self) -> usize {
        self.trial = self.wants_trial().then(Instant::now);
        // A record that exceeds the maximum is sent in a batch of its own.
        if self.trial.is_some() {
            1
        } else {
            self.batch_bytes_max.unwrap_or(usize::MAX)
        }
    }

    /// Compares a record with its topic's limit. `tags` contains the tag after the last record, and
    /// the tag below which all records are acknowledged.
    pub(super) fn weigh(
        &mut self,
        topic: &str,
        seq: i64,
        weight: Weight<'_>,
        tags: (u64, u64),
    ) -> Weighed {
        let Some(limit) = self.limits.get(topic) else {
            return Weighed::MayGo;
        };
        match limit.weigh(weight) {
            Verdict::Fits => Weighed::MayGo,
            _ if limit.is_stale() => Weighed::LimitIsStale,
            Verdict::TooLarge => Weighed::TooLarge(limit.reason(topic)),
            Verdict::Unknown => {
                self.alone_each.insert(seq);
                if self.may_send(seq, tags.1, tags.0) {
                    Weighed::MayGo
                } else {
                    Weighed::GoesAlone
                }
            }
        }
    }

    /// Returns `true` if a topic's limit must be compared.
    pub(super) fn has_limits(&self) -> bool {
        !self.limits.is_empty()
    }

    /// Replaces the limit of a topic. Without a limit the broker decides.
    pub(super) fn learn_limit(&mut self, topic: String, limit: Option<SizeLimit>) {
        match limit {
            Some(limit) => drop(self.limits.insert(topic, limit)),
            None => drop(self.limits.remove(&topic)),
        }
    }

    /// Requests that an event is sent alone, and forgets an earlier refusal of it.
    pub(crate) fn suspect(&mut self, seq: i64) {
        self.rejected.remove(&seq);
        self.alone_each.insert(seq);
    }

    /// Returns the refusal of the event, if it was refused.
    pub(crate) fn rejected(&self, seq: i64) -> Option<&Rejected> {
        self.rejected.get(&seq)
    }

    /// Records that the event is parked, or sent to the dead letters, with the current batch.
    pub(super) fn set_aside(&mut self, seq: i64) {
        self.suspects.remove(&seq);
        self.alone_each.remove(&seq);
        if self.rejected.contains_key(&seq) {
            self.set_aside.push(seq);
        }
    }

    /// Returns `true` if the event may be sent now. All records below tag `floor` are acknowledged,
    /// and `next` is the tag after the last one.
    pub(super) fn may_send(&mut self, seq: i64, floor: u64, next: u64) -> bool {
        if self.trial.is_some() {
            return true;
        }
        if self.alone.is_some_and(|tag| floor <= tag) {
            return false;
        }
        self.alone = None;
        floor == next || !self.alone_each.contains(&seq)
    }

    /// Records that the event was sent with this tag. An event that is sent alone is no longer a
    /// suspect: if it is refused, it is rejected.
    pub(super) fn sent(&mut self, seq: i64, tag: u64) {
        if self.trial.is_some() {
            if self.suspects.contains(&seq) {
                self.tried.push((tag, seq));
            }
        } else if self.alone_each.remove(&seq) {
            self.alone = Some(tag);
        }
    }

    /// Records that all tags below `floor` are acknowledged. Returns `true` if this ends a trial.
    pub(super) fn acknowledged(&mut self, floor: u64) -> bool {
        let suspects = &mut self.suspects;
        self.tried
            .retain(|(tag, seq)| *tag >= floor || !suspects.remove(seq));
        let Some(since) = self.trial else {
            return false;
        };
        if since.elapsed() > TRIAL_MAX {
            self.suspects.clear();
        }
        self.suspects.is_empty()
    }

    /// Records that the batch of the sent records has ended.
    pub(super) fn cut(&mut self) {
        self.cut.append(&mut self.set_aside);
    }

    /// Records that the ended batches are durable.
    pub(super) fn durable(&mut self) {
        for seq in self.cut.drain(..) {
            self.rejected.remove(&seq);
        }
    }

    /// Returns the state for the next producers, without the tags of the last ones. `drained` means
    /// that all sent events are durable.
    pub(crate) fn carry_over(mut self, drained: bool) -> Self {
        if drained {
            self.cut();
            self.durable();
        }
        Self {
            alone: None,
            alone_each: HashSet::new(),
            tried: Vec::new(),
            set_aside: Vec::new(),
            cut: Vec::new(),
            ..self
        }
    }
}

/// Waits until the broker has reported on all records in flight, or reports nothing more.
pub(crate) async fn until_reported(acks: &Acks) {
    let (pause, quiet, most) = REPORTS;
    let (mut reports, mut unchanged) = (acks.reports(), 0);
    for _ in 0..most {
        tokio::time::sleep(pause).await;
        let now = acks.reports();
        unchanged = if now == reports { unchanged + 1 } else { 0 };
        reports = now;
        if unchanged == quiet {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::kafka::{Ground, RefusedRecord};

    fn refusal(seqs: &[i64], bytes: usize, too_large: bool) -> Refused {
        let records = seqs
            .iter()
            .map(|label| RefusedRecord {
                label: *label,
                bytes,
                ground: 0,
            })
            .collect();
        Refused {
            records,
            grounds: vec![Ground {
                topic: "t".into(),
                too_large,
                reason: "no".into(),
            }],
        }
    }

    /// Simulates a broker that receives batches of arbitrary sizes and refuses each batch with a
    /// bad event, together with all records in flight. Runs sessions until all events are sent or
    /// rejected. Returns the rejected events and the number of sessions.
    fn found(
        events: &[bool],
        cuts: &[usize],
        window: usize,
        parks_durably: bool,
    ) -> (BTreeSet<i64>, usize) {
        let (mut isolation, mut found, mut sessions) =
            (BatchIsolation::default(), BTreeSet::new(), 0);
        'session: loop {
            sessions += 1;
            isolation = isolation.carry_over(false);
            let single = isolation.begin_session() == 1;
            let (mut under_way, mut set_aside): (Vec<i64>, Vec<i64>) = (Vec::new(), Vec::new());
            let mut cuts = cuts.iter().cycle();
            let mut room = *cuts.next().expect("endless");
            for seq in 1..=events.len() as i64 + 1 {
                let last = seq as usize > events.len();
                if !last && isolation.rejected(seq).is_some() {
                    isolation.set_aside(seq);
                    set_aside.push(seq);
                    continue;
                }
                let full = if single { window } else { room };
                if under_way.len() >= full || last {
                    let bad: Vec<i64> = under_way
                        .iter()
                        .copied()
                        .filter(|seq| events[*seq as usize - 1])
                        .collect();
                    if !bad.is_empty() {
                        isolation.refused(
                            &refusal(if single { &bad } else { &under_way }, 1, false),
                            HashMap::new(),
                        );
                        continue 'session;
                    }
                    room = *cuts.next().expect("endless");
                    under_way.clear();
                    isolation.acknowledged(seq as u64);
                    if parks_durably {
                        isolation.cut();
                        isolation.durable();
                        found.extend(set_aside.drain(..));
                    }
                }
                if !last {
                    isolation.sent(seq, seq as u64);
                    under_way.push(seq);
                }
            }
            found.extend(set_aside);
            return (found, sessions);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_batches_exactly_the_bad_events_are_found(
            events in proptest::collection::vec(proptest::bool::weighted(0.2), 1..60),
            cuts in proptest::collection::vec(1usize..30, 1..6), window in 1usize..30,
        ) {
            let bad: BTreeSet<i64> =
                (1..).zip(&events).filter(|(_, bad)| **bad).map(|(seq, _)| seq).collect();
            let (found, sessions) = found(&events, &cuts, window, false);
            prop_assert_eq!(&found, &bad);
            // For all events that are in flight together: at most one session to notice the refusal
            // and one to find them.
            prop_assert!(
                sessions <= 2 * (events.len() / window + 1) + 1 || sessions <= 2 * bad.len() + 1,
                "{} sessions", sessions
            );
        }
    }

    #[test]
    fn ten_bad_events_among_a_hundred_good_ones_take_a_session_to_notice_and_one_to_find() {
        let events: Vec<bool> = (0..110).map(|n| n % 11 == 0).collect();
        let (found, sessions) = found(&events, &[30], 4096, false);
        assert_eq!((found.len(), sessions), (10, 3));
    }

    #[test]
    fn a_rejected_event_is_known_until_the_batch_that_set_it_aside_is_durable() {
        let mut isolation = BatchIsolation::default();
        isolation.refused(&refusal(&[7], 1, false), HashMap::new());
        isolation.set_aside(7);
        isolation = isolation.carry_over(false);
        assert!(isolation.rejected(7).is_some(), "the session ended first");
        isolation.set_aside(7);
        isolation.durable();
        assert!(
            isolation.rejected(7).is_some(),
            "only an earlier batch is durable"
        );
        isolation.cut();
        isolation.durable();
        assert!(isolation.rejected(7).is_none() && isolation.is_idle());
    }

    #[test]
    fn a_limit_that_is_known_makes_batches_smaller_and_suspects_nothing_until_it_does_not_help() {
        let limits = || HashMap::from([("t".to_owned(), SizeLimit::new(10_000))]);
        let mut isolation = BatchIsolation::default();
        isolation.refused(&refusal(&[1, 2], 9_000, true), limits());
        assert_eq!(isolation.begin_session(), 10_000 - BATCH_OVERHEAD);
        // Refused again, so the limit does not explain the refusal.
        isolation.refused(&refusal(&[1, 2], 9_000, true), limits());
        assert_eq!(isolation.begin_session(), 1);
        isolation.refused(&refusal(&[2], 9_000, true), limits());
        assert!(isolation.rejected(2).is_some() && isolation.rejected(1).is_none());
        isolation.sent(1, 5);
        assert!(!isolation.acknowledged(5) && isolation.acknowledged(6));
    }

    #[test]
    fn nothing_goes_beside_an_event_that_is_tried_again() {
        let mut isolation = BatchIsolation::default();
        isolation.suspect(1);
        assert!(
            !isolation.may_send(1, 5, 6)
                && isolation.may_send(9, 5, 6)
                && isolation.may_send(1, 6, 6)
        );
        isolation.sent(1, 6);
        assert!(!isolation.may_send(9, 6, 7) && isolation.may_send(9, 7, 7) && isolation.is_idle());
    }
}
