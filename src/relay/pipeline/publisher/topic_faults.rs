//! Unusable topics. Their events are parked, and the topics are looked up again until they are
//! usable.
//!
//! ```text
//!            a look-up, or refused records
//!  (usable) ──────────────────────────────▶ UNUSABLE ── looked up repeatedly ──▶ RELEASING
//!     ▲                                        ▲                                  │     │
//!     │                                        └────────── unusable again ────────┘     │
//!     └────────────────────────── no event waits any more ──────────────────────────────┘
//! ```
//!
//! While a topic is releasing, new events queue behind the waiting ones. A topic that is unusable
//! for longer than `topics.give_up_after` is *given up*: it no longer prevents readiness, and the
//! relay logs it for the operator. It is still looked up.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Interval between two look-ups of a topic, soon after it was found unusable and later. A look-up
/// costs a request.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// Interval between two attempts with a topic that refused records although its look-up succeeds,
/// at first and at most. Each failed attempt ends the session for all topics.
const TRY_EVERY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// Maximum number of tracked topics. More of them indicate that ids are used as types.
const FAULTS_MAX: usize = 10_000;

/// The unusable topics.
#[derive(Debug, Default)]
pub(crate) struct TopicFaults {
    topics: HashMap<String, TopicFault>,
    give_up_after: Duration,
}

#[derive(Debug)]
struct TopicFault {
    reason: String,
    /// The reason differs from the reason stored with events that already wait.
    restated: bool,
    since: Instant,
    given_up: bool,
    releasing: bool,
    look_at: Instant,
    /// Pause after the next refusal of records.
    pause: Duration,
}

impl TopicFault {
    fn state(&mut self, reason: String) {
        self.restated |= !self.reason.is_empty() && self.reason != reason;
        self.reason = reason;
    }
}

impl TopicFaults {
    pub(super) fn new(give_up_after: Duration) -> Self {
        Self {
            topics: HashMap::new(),
            give_up_after,
        }
    }

    /// Returns `true` if every topic is usable and no event waits for one.
    pub(crate) fn is_idle(&self) -> bool {
        self.topics.is_empty()
    }

    /// Returns `true` if one more topic can be tracked.
    pub(super) fn has_room(&self) -> bool {
        self.topics.len() < FAULTS_MAX
    }

    /// Returns the reason why events of this topic wait. Returns `None` if they do not have to.
    pub(crate) fn reason(&self, topic: &str) -> Option<&str> {
        self.topics.get(topic).map(|fault| fault.reason.as_str())
    }

    /// Records that a look-up has found the topic unusable.
    pub(super) fn found(&mut self, topic: &str, reason: String) {
        let now = Instant::now();
        let fault = self.entry(topic, now);
        let late = now - fault.since > LOOK_EVERY.1;
        fault.look_at = now + if late { LOOK_EVERY.1 } else { LOOK_EVERY.0 };
        fault.state(reason);
        fault.releasing = false;
    }

    /// Records that the state of the topic is unknown. It is looked up next.
    pub(super) fn postponed(&mut self, topic: &str, reason: String) {
        let now = Instant::now();
        let fault = self.entry(topic, now);
        fault.state(reason);
        fault.look_at = now;
    }

    /// Records that the topic has refused records although a look-up finds no fault in it.
    pub(crate) fn refused_records(&mut self, topic: &str, reason: String) {
        let now = Instant::now();
        let fault = self.entry(topic, now);
        fault.look_at = now + fault.pause;
        fault.pause = (fault.pause * 2).min(TRY_EVERY.1);
        fault.state(reason);
        fault.releasing = false;
    }

    fn entry(&mut self, topic: &str, now: Instant) -> &mut TopicFault {
        self.topics
            .entry(topic.to_owned())
            .or_insert_with(|| TopicFault {
                reason: String::new(),
                restated: false,
                since: now,
                given_up: false,
                releasing: false,
                look_at: now,
                pause: TRY_EVERY.0,
            })
    }

    /// Records that events of the topic wait since an earlier session or process.
    pub(crate) fn waits(&mut self, topic: &str, reason: String, given_up: bool) {
        if !self.topics.contains_key(topic) {
            let fault = self.entry(topic, Instant::now());
            // Tried at once: the topic may exist by now, or the events may have another topic.
            (fault.reason, fault.given_up, fault.releasing) = (reason, given_up, true);
        }
    }

    /// Returns `true` if the waiting events of the topic are being released.
    pub(super) fn is_releasing(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|fault| fault.releasing)
    }

    /// Returns the topics whose events wait for a new reason. Each change is returned once.
    pub(crate) fn restated(&mut self) -> Vec<(String, String)> {
        let restated = |(topic, fault): (&String, &mut TopicFault)| {
            std::mem::take(&mut fault.restated).then(|| (topic.clone(), fault.reason.clone()))
        };
        self.topics.iter_mut().filter_map(restated).collect()
    }

    /// Schedules a look-up of the topic as soon as possible, because an operator requests it.
    pub(crate) fn look_now(&mut self, topic: &str) {
        if let Some(fault) = self.topics.get_mut(topic) {
            fault.look_at = Instant::now();
        }
    }

    /// Returns the topics that are due for a look-up, at most `most`. Each is due again later.
    pub(super) fn due(&mut self, most: usize) -> Vec<String> {
        let now = Instant::now();
        let due = self
            .topics
            .iter_mut()
            .filter(|(_, fault)| !fault.releasing && fault.look_at <= now)
            .take(most);
        due.map(|(topic, fault)| {
            fault.look_at = now + LOOK_EVERY.1;
            topic.clone()
        })
        .collect()
    }

    /// Records that the topic is usable. Its waiting events are released first.
    pub(super) fn usable(&mut self, topic: &str) {
        if let Some(fault) = self.topics.get_mut(topic) {
            fault.releasing = true;
        }
    }

    /// Returns the usable topics that events still wait for.
    pub(crate) fn releasing(&self) -> Vec<String> {
        self.topics
            .iter()
            .filter(|(_, fault)| fault.releasing)
            .map(|(topic, _)| topic.clone())
            .collect()
    }

    /// Records that no event waits for the topic any more.
    pub(crate) fn released(&mut self, topic: &str) {
        self.topics.remove(topic);
    }

    /// Returns `true` if the topic is unusable for longer than `give_up_after`.
    pub(super) fn is_overdue(&self, topic: &str) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|fault| !fault.releasing && fault.since.elapsed() >= self.give_up_after)
    }

    /// Gives up the topics that are unusable for too long. Returns the names and reasons of those
    /// that were not given up before.
    pub(super) fn give_up(&mut self) -> Vec<(String, String)> {
        let after = self.give_up_after;
        let overdue = |fault: &TopicFault| {
            !fault.given_up && !fault.releasing && fault.since.elapsed() >= after
        };
        let overdue = self.topics.iter_mut().filter(|(_, fault)| overdue(fault));
        overdue
            .map(|(topic, fault)| {
                fault.given_up = true;
                (topic.clone(), fault.reason.clone())
            })
            .collect()
    }

    /// Returns the reason that prevents readiness: topics that are unusable and not given up.
    pub(super) fn standing(&self) -> Option<String> {
        let standing = self
            .topics
            .iter()
            .filter(|(_, fault)| !fault.given_up && !fault.releasing);
        let mut standing: Vec<&str> = standing.map(|(_, fault)| fault.reason.as_str()).collect();
        standing.sort_unstable();
        let more = standing.len().saturating_sub(3);
        standing.truncate(3);
        let more = if more > 0 {
            format!("; and {more} more topics cannot be used")
        } else {
            String::new()
        };
        (!standing.is_empty()).then(|| format!("{}{more}", standing.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_topic_is_a_reason_against_readiness_until_it_is_given_up_and_is_looked_at_until_it_can_be_used()
     {
        let mut faults = TopicFaults::new(30 * SECOND);
        faults.found("a", "topic `a` does not exist".into());
        assert_eq!(
            (faults.reason("a"), faults.reason("b")),
            (Some("topic `a` does not exist"), None)
        );
        assert_eq!(
            (
                faults.standing().as_deref(),
                faults.due(9),
                faults.give_up()
            ),
            (faults.reason("a"), vec![], vec![])
        );
        tokio::time::advance(3 * SECOND).await;
        assert_eq!(
            (faults.due(9), faults.due(9)),
            (vec!["a".to_owned()], vec![])
        );
        assert!(!faults.is_overdue("a"));
        tokio::time::advance(30 * SECOND).await;
        assert_eq!(faults.restated(), []);
        faults.found("a", "topic `a` may not be used".into());
        assert_eq!((faults.restated().len(), faults.restated().len()), (1, 0));
        assert!(faults.is_overdue("a"));
        assert_eq!(
            faults.give_up(),
            [("a".to_owned(), "topic `a` may not be used".to_owned())]
        );
        assert_eq!((faults.give_up(), faults.standing()), (vec![], None));
        faults.look_now("a");
        assert_eq!(faults.due(9), ["a"]);
        faults.usable("a");
        assert!(
            faults.reason("a").is_some(),
            "new events queue behind the waiting ones"
        );
        assert_eq!(faults.releasing(), ["a"]);
        faults.released("a");
        assert!(faults.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_refuses_records_is_tried_less_and_less_often() {
        let mut faults = TopicFaults::new(30 * SECOND);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            faults.refused_records("a", "no".into());
            let mut pause = 0;
            while faults.due(1).is_empty() {
                tokio::time::advance(SECOND).await;
                pause += 1;
            }
            faults.usable("a");
            pauses.push(pause);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_since_an_earlier_process_is_looked_at_at_once_and_many_topics_are_summed_up()
     {
        let mut faults = TopicFaults::new(30 * SECOND);
        faults.waits("a", "was missing".into(), true);
        assert_eq!(
            (faults.releasing(), faults.standing()),
            (vec!["a".to_owned()], None)
        );
        for n in 0..9 {
            faults.found(&n.to_string(), format!("topic {n}"));
        }
        assert_eq!(
            faults.standing().as_deref(),
            Some("topic 0; topic 1; topic 2; and 6 more topics cannot be used")
        );
    }
}
