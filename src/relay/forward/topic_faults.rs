//! Topics that cannot be used. Their events are set aside, and the topics are looked at again until they can.
//!
//! ```text
//!            a look-up, or a refusal to take records
//!  (usable) ─────────────────────────────────────────▶ UNUSABLE ── looked at again and again ──▶ RELEASING ── nothing waits ──▶ (usable)
//!                                                          ▲                                         │
//!                                                          └───────── cannot be used again ──────────┘
//! ```
//!
//! While a topic is releasing, new events queue up behind those that wait. A topic that cannot be used for longer than
//! `topics.give_up_after` is *given up*: no reason against readiness any more, but a parked one for the operator. It is looked at
//! all the same.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Between two looks at a topic that was found unusable lately, and later. A look costs a request.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// Between two tries at a topic that refused records although it can be looked up, at first and at most. Each try that fails ends
/// the session, for everybody.
const TRY_EVERY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// Most topics that are remembered. So many are no topics, but ids that are taken for types.
const FAULTS_MAX: usize = 10_000;

/// The topics that cannot be used.
#[derive(Debug, Default)]
pub(in crate::relay) struct TopicFaults {
    topics: HashMap<String, TopicFault>,
    give_up_after: Duration,
}

#[derive(Debug)]
struct TopicFault {
    reason: String,
    /// The reason is another one than that of events that wait already.
    restated: bool,
    since: Instant,
    given_up: bool,
    releasing: bool,
    look_at: Instant,
    /// How long to leave it alone after the next refusal of records.
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
        Self { topics: HashMap::new(), give_up_after }
    }

    /// Whether every topic can be used, and nothing waits for one.
    pub(in crate::relay) fn is_idle(&self) -> bool {
        self.topics.is_empty()
    }

    /// Whether one more topic can be remembered.
    pub(super) fn has_room(&self) -> bool {
        self.topics.len() < FAULTS_MAX
    }

    /// Why events of this topic wait; `None` if they need not.
    pub(in crate::relay) fn reason(&self, topic: &str) -> Option<&str> {
        self.topics.get(topic).map(|fault| fault.reason.as_str())
    }

    /// A look-up has found the topic unusable.
    pub(super) fn found(&mut self, topic: &str, reason: String) {
        let now = Instant::now();
        let fault = self.entry(topic, now);
        let late = now - fault.since > LOOK_EVERY.1;
        fault.look_at = now + if late { LOOK_EVERY.1 } else { LOOK_EVERY.0 };
        fault.state(reason);
        fault.releasing = false;
    }

    /// The topic is to be looked at next: it is not known whether it can be used.
    pub(super) fn postponed(&mut self, topic: &str, reason: String) {
        let now = Instant::now();
        let fault = self.entry(topic, now);
        fault.state(reason);
        fault.look_at = now;
    }

    /// The topic has refused records, although a look-up finds nothing wrong with it.
    pub(in crate::relay) fn refused_records(&mut self, topic: &str, reason: String) {
        let now = Instant::now();
        let fault = self.entry(topic, now);
        fault.look_at = now + fault.pause;
        fault.pause = (fault.pause * 2).min(TRY_EVERY.1);
        fault.state(reason);
        fault.releasing = false;
    }

    fn entry(&mut self, topic: &str, now: Instant) -> &mut TopicFault {
        self.topics.entry(topic.to_owned()).or_insert_with(|| TopicFault {
            reason: String::new(),
            restated: false,
            since: now,
            given_up: false,
            releasing: false,
            look_at: now,
            pause: TRY_EVERY.0,
        })
    }

    /// Events of the topic wait since an earlier session, or an earlier process.
    pub(in crate::relay) fn waits(&mut self, topic: &str, reason: String, given_up: bool) {
        if !self.topics.contains_key(topic) {
            let fault = self.entry(topic, Instant::now());
            // Tried at once: the topic may be there by now, or the events may go elsewhere.
            (fault.reason, fault.given_up, fault.releasing) = (reason, given_up, true);
        }
    }

    /// Whether what waits for the topic is being released.
    pub(super) fn is_releasing(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|fault| fault.releasing)
    }

    /// Topics whose events wait for another reason than before, once.
    pub(in crate::relay) fn restated(&mut self) -> Vec<(String, String)> {
        let restated =
            |(topic, fault): (&String, &mut TopicFault)| std::mem::take(&mut fault.restated).then(|| (topic.clone(), fault.reason.clone()));
        self.topics.iter_mut().filter_map(restated).collect()
    }

    /// Looks at the topic as soon as possible, because somebody asks for it.
    pub(in crate::relay) fn look_now(&mut self, topic: &str) {
        if let Some(fault) = self.topics.get_mut(topic) {
            fault.look_at = Instant::now();
        }
    }

    /// The topics to be looked at now, `most` of them. Each is due again later.
    pub(super) fn due(&mut self, most: usize) -> Vec<String> {
        let now = Instant::now();
        let due = self.topics.iter_mut().filter(|(_, fault)| !fault.releasing && fault.look_at <= now).take(most);
        due.map(|(topic, fault)| {
            fault.look_at = now + LOOK_EVERY.1;
            topic.clone()
        })
        .collect()
    }

    /// The topic can be used: what waits for it goes first.
    pub(super) fn usable(&mut self, topic: &str) {
        if let Some(fault) = self.topics.get_mut(topic) {
            fault.releasing = true;
        }
    }

    /// The topics for which events still wait although they can be used.
    pub(in crate::relay) fn releasing(&self) -> Vec<String> {
        self.topics.iter().filter(|(_, fault)| fault.releasing).map(|(topic, _)| topic.clone()).collect()
    }

    /// Nothing waits for the topic any more.
    pub(in crate::relay) fn released(&mut self, topic: &str) {
        self.topics.remove(topic);
    }

    /// Whether the topic cannot be used for longer than it is waited for.
    pub(super) fn is_overdue(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|fault| !fault.releasing && fault.since.elapsed() >= self.give_up_after)
    }

    /// Gives topics up that cannot be used for too long: names and reasons of those that were not yet.
    pub(super) fn give_up(&mut self) -> Vec<(String, String)> {
        let after = self.give_up_after;
        let overdue = |fault: &TopicFault| !fault.given_up && !fault.releasing && fault.since.elapsed() >= after;
        let overdue = self.topics.iter_mut().filter(|(_, fault)| overdue(fault));
        overdue
            .map(|(topic, fault)| {
                fault.given_up = true;
                (topic.clone(), fault.reason.clone())
            })
            .collect()
    }

    /// The reason against readiness: topics that cannot be used and are not given up.
    pub(super) fn standing(&self) -> Option<String> {
        let standing = self.topics.iter().filter(|(_, fault)| !fault.given_up && !fault.releasing);
        let mut standing: Vec<&str> = standing.map(|(_, fault)| fault.reason.as_str()).collect();
        standing.sort_unstable();
        let more = standing.len().saturating_sub(3);
        standing.truncate(3);
        let more = if more > 0 { format!("; and {more} more topics cannot be used") } else { String::new() };
        (!standing.is_empty()).then(|| format!("{}{more}", standing.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_topic_is_a_reason_against_readiness_until_it_is_given_up_and_is_looked_at_until_it_can_be_used() {
        let mut faults = TopicFaults::new(30 * SECOND);
        faults.found("a", "topic `a` does not exist".into());
        assert_eq!((faults.reason("a"), faults.reason("b")), (Some("topic `a` does not exist"), None));
        assert_eq!((faults.standing().as_deref(), faults.due(9), faults.give_up()), (faults.reason("a"), vec![], vec![]));
        tokio::time::advance(3 * SECOND).await;
        assert_eq!((faults.due(9), faults.due(9)), (vec!["a".to_owned()], vec![]));
        assert!(!faults.is_overdue("a"));
        tokio::time::advance(30 * SECOND).await;
        assert_eq!(faults.restated(), []);
        faults.found("a", "topic `a` may not be used".into());
        assert_eq!((faults.restated().len(), faults.restated().len()), (1, 0));
        assert!(faults.is_overdue("a"));
        assert_eq!(faults.give_up(), [("a".to_owned(), "topic `a` may not be used".to_owned())]);
        assert_eq!((faults.give_up(), faults.standing()), (vec![], None));
        faults.look_now("a");
        assert_eq!(faults.due(9), ["a"]);
        faults.usable("a");
        assert!(faults.reason("a").is_some(), "new events queue up behind those that wait");
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
    async fn what_waits_since_an_earlier_process_is_looked_at_at_once_and_many_topics_are_summed_up() {
        let mut faults = TopicFaults::new(30 * SECOND);
        faults.waits("a", "was missing".into(), true);
        assert_eq!((faults.releasing(), faults.standing()), (vec!["a".to_owned()], None));
        for n in 0..9 {
            faults.found(&n.to_string(), format!("topic {n}"));
        }
        assert_eq!(faults.standing().as_deref(), Some("topic 0; topic 1; topic 2; and 6 more topics cannot be used"));
    }
}
