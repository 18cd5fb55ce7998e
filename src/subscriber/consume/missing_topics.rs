//! Subscribed topics that do not exist yet.
//!
//! A member refreshes its list of topics every 30 s, which would delay the first events of a new
//! system by as long. While a subscribed topic is missing, it is looked up every second. As
//! soon as it exists, the member refreshes its list.
//!
//! Topics of replayed events are missing most of the time. One of them is looked up at a time, in
//! turn, at intervals that grow to a minute. By then the member's own refresh finds them earlier.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::group::Seat;
use crate::{
    kafka::{Lookout, OVERDUE, bounded},
    subscriber::failure::redrive::redrive_topic,
};

/// Time between two rounds.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Maximum number of rounds between two lookups of topics of replayed events.
const REDRIVEN_ROUNDS_MAX: u32 = 60;

/// Maximum number of lookups of event topics per round. It bounds the load on the brokers if many
/// topics are missing.
const QUESTIONS_MAX: usize = 16;

/// Time limit for the response of a broker.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Time after which a round ends early, so that brokers that are down or overloaded get one request
/// per round.
const SLOW: Duration = Duration::from_secs(1);

/// Topics that are looked up. Pure.
#[derive(Debug, Default)]
struct Missing {
    events: VecDeque<String>,
    /// Topics of replayed events.
    redriven: VecDeque<String>,
    /// Rounds until the next lookup of a topic of replayed events, and from that one to the next.
    redriven_in: u32,
    redriven_pause: u32,
}

impl Missing {
    /// Returns the topics for the next round and moves each of them behind the others.
    fn round(&mut self) -> Vec<String> {
        let next = |topics: &mut VecDeque<String>, count: usize| -> Vec<String> {
            let next: Vec<String> = topics.iter().take(count).cloned().collect();
            topics.rotate_left(next.len());
            next
        };
        let mut round = next(&mut self.events, QUESTIONS_MAX);
        if self.redriven_in == 0 {
            round.extend(next(&mut self.redriven, 1));
            self.redriven_pause = (self.redriven_pause * 2).clamp(1, REDRIVEN_ROUNDS_MAX);
            self.redriven_in = self.redriven_pause;
        }
        self.redriven_in -= 1;
        round
    }

    fn found(&mut self, topic: &str) {
        self.events.retain(|missing| missing != topic);
        self.redriven.retain(|missing| missing != topic);
    }
}

/// Returns the subscribed topics that are not known to exist.
fn missing(seat: &Seat, found: &[String]) -> Missing {
    let name = &seat.membership.group;
    let redriven: Vec<String> = seat
        .topics
        .keys()
        .map(|topic| redrive_topic(topic, name))
        .collect();
    let (redriven, events) = seat
        .topics
        .keys()
        .filter(|topic| !found.contains(topic))
        .cloned()
        .partition(|topic| redriven.contains(topic));
    Missing {
        events,
        redriven,
        ..Missing::default()
    }
}

/// Looks up missing topics for as long as the member runs.
pub(crate) async fn look_for_topics(lookout: Lookout, seat: &Arc<Seat>) -> Infallible {
    let mut missing_now = missing(seat, &seat.found);
    let mut rounds = interval(ASK_EVERY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        if lookout.lacks_topic() {
            // The client does not report which topic is missing.
            missing_now = missing(seat, &[]);
        }
        report(seat, &missing_now);
        let round = missing_now.round();
        if round.is_empty() {
            continue;
        }
        let asking = lookout.clone();
        let limit = ANSWER_WITHIN * u32::try_from(round.len() + 1).unwrap_or(u32::MAX) + OVERDUE;
        let looked = bounded("fetch_metadata", limit, move || look(&asking, round)).await;
        match looked {
            Ok(found) => {
                for topic in &found {
                    missing_now.found(topic);
                    tracing::debug!(
                        subscriber = seat.runner.name,
                        topic,
                        "a topic that was missing exists"
                    );
                }
            }
            Err(error) => {
                tracing::warn!(
                    subscriber = seat.runner.name,
                    %error,
                    "missing topics cannot be looked up"
                )
            }
        }
    }
}

/// Looks up these topics, and stops early if the brokers are slow. Returns the topics that exist,
/// after the member has refreshed its list. Blocks.
fn look(lookout: &Lookout, round: Vec<String>) -> Vec<String> {
    let (began, mut found) = (Instant::now(), Vec::new());
    for topic in round {
        match lookout.exists(&topic, ANSWER_WITHIN) {
            Ok(true) => found.push(topic),
            Ok(false) => {}
            Err(error) => tracing::debug!(topic, %error, "a missing topic cannot be looked up"),
        }
        if began.elapsed() > SLOW {
            break;
        }
    }
    if found.is_empty() {
        return found;
    }
    match lookout.refresh(ANSWER_WITHIN) {
        Ok(()) => found,
        Err(error) => {
            tracing::debug!(%error, "the member cannot read the list of topics");
            Vec::new()
        }
    }
}

/// Sets the reason in the state of a member that has not joined because all of its topics are
/// missing.
fn report(seat: &Seat, missing: &Missing) {
    if missing.events.len() + missing.redriven.len() == seat.topics.len() {
        let topics: Vec<&str> = missing.events.iter().map(String::as_str).collect();
        seat.runner
            .statistics
            .starts_without(&format!("no topic exists yet: {}", topics.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &str, count: usize) -> VecDeque<String> {
        (0..count).map(|n| format!("{of}{n}")).collect()
    }

    #[test]
    fn each_missing_topic_has_its_turn_and_those_of_replayed_events_one_a_round() {
        let mut few = Missing {
            events: names("e", 2),
            redriven: names("r", 2),
            ..Missing::default()
        };
        assert_eq!(few.round(), ["e0", "e1", "r0"]);
        assert_eq!(few.round(), ["e0", "e1", "r1"]);
        few.found("e0");
        few.found("r0");
        assert_eq!(few.round(), ["e1"]);
        assert_eq!(few.round(), ["e1", "r1"]);
        let mut many = Missing {
            events: names("e", QUESTIONS_MAX + 1),
            ..Missing::default()
        };
        let asked: std::collections::HashSet<String> =
            [many.round(), many.round()].concat().into_iter().collect();
        assert_eq!(asked.len(), QUESTIONS_MAX + 1);
        assert!(Missing::default().round().is_empty());
    }

    #[test]
    fn topics_of_replayed_events_are_looked_up_less_and_less_often() {
        let mut missing = Missing {
            redriven: names("r", 1),
            ..Missing::default()
        };
        let rounds: Vec<usize> = (0..400).filter(|_| !missing.round().is_empty()).collect();
        let pauses: Vec<usize> = rounds.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]);
    }
}
