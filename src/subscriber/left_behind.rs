//! Work that an earlier deployment left behind: records in retry topics that are no longer written, and events that wait for a
//! topic that is no longer subscribed. The first are handled, the second are reported.

use super::dead_letters::origin_of;
use super::escalate::retry_delay;
use super::run::Plan;
use crate::kafka::{Known, Member};
use crate::postgres::errors::with_causes;

/// The group's own topics that exist without being configured.
#[derive(Debug, Default, PartialEq, Eq)]
struct OwnTopics {
    /// Retry topics of subscribed topics, each with that topic.
    retried: Vec<(String, String)>,
    /// Retry and redrive topics of topics that are not subscribed.
    abandoned: Vec<String>,
}

impl OwnTopics {
    fn among<'t>(names: impl IntoIterator<Item = &'t String>, group: &str, is_subscribed: impl Fn(&str) -> bool) -> Self {
        let mut own = Self::default();
        for name in names.into_iter().filter(|name| !is_subscribed(name)) {
            let origin = origin_of(name, group);
            if origin == name {
                continue;
            }
            if !is_subscribed(origin) {
                own.abandoned.push(name.clone());
            } else if retry_delay(name, group).is_some() {
                own.retried.push((name.clone(), origin.to_owned()));
            }
        }
        own
    }
}

impl Plan {
    /// Subscribes to the retry topics that earlier deployments made with other delays, or with another escalation: what is in
    /// them is handled. Returns the group's topics whose origin is not subscribed.
    pub(super) fn read_earlier_retry_topics(&mut self, names: &[String]) -> Vec<String> {
        let own = OwnTopics::among(names, &self.name, |topic| self.topics.contains_key(topic));
        for (topic, origin) in own.retried {
            tracing::info!(
                subscriber = self.name,
                topic,
                "a retry topic of an earlier deployment is read too; it can be deleted once it is empty"
            );
            let source = self.topics.get(&origin).copied().unwrap_or_default();
            self.topics.insert(topic, source);
        }
        own.abandoned
    }

    /// Reports parked events of topics that are not subscribed: no member handles them.
    pub(super) async fn report_parked_elsewhere(&self) {
        let Some(inbox) = &self.core.inbox else { return };
        let topics: Vec<&str> = self.topics.keys().map(String::as_str).collect();
        match inbox.parked_outside(&topics).await {
            Ok(left) => {
                for (topic, events, aggregates) in left {
                    tracing::warn!(
                        subscriber = self.name,
                        topic,
                        events,
                        aggregates,
                        "parked events belong to a topic that is not subscribed and are not handled: run a version that subscribes to \
                         the topic until they are, or delete them from the table `detour`"
                    );
                }
            }
            Err(error) => {
                tracing::warn!(
                    subscriber = self.name,
                    error = with_causes(&error),
                    "parked events of topics that are not subscribed cannot be counted"
                );
            }
        }
    }
}

/// Reports records of abandoned topics that the group has not finished. Blocks for up to ten seconds per topic.
pub(super) fn report_abandoned(member: &Member, subscriber: &str, topics: &[String]) {
    for topic in topics {
        match unfinished(member, topic) {
            Ok(0) => {}
            Ok(records) => tracing::warn!(
                subscriber,
                topic,
                records,
                "records wait in a topic of this group whose original topic is not subscribed: run a version that subscribes to it until \
                 they are handled, or delete the topic"
            ),
            Err(error) => tracing::warn!(subscriber, topic, error, "the records that wait in a topic of this group cannot be counted"),
        }
    }
}

/// The records of a topic from the group's commits to its end. Partitions without a commit were never read by this group, and may
/// belong to another one with a similar name.
fn unfinished(member: &Member, topic: &str) -> Result<i64, String> {
    let partitions = member.partitions_of(topic)?;
    let Known { committed, .. } = member.committed(&partitions)?;
    committed.iter().try_fold(0, |sum, committed| Ok(sum + (member.end_now(&committed.partition)? - committed.offset).max(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_topics_of_earlier_deployments_are_told_from_topics_of_others() {
        let names = [
            "order",
            "order.g.retry.1m",
            "order.g.retry.30s",
            "order.g.redrive",
            "order.g.dlt",
            "order.h.retry.1m",
            "order.g.retry.soon",
            "payment.g.retry.5m",
            "payment.g.redrive",
            "payment.g.dlt",
        ]
        .map(String::from);
        let subscribed = ["order", "order.g.retry.30s", "order.g.redrive"];
        let own = OwnTopics::among(&names, "g", |topic| subscribed.contains(&topic));
        assert_eq!(own.retried, [("order.g.retry.1m".to_owned(), "order".to_owned())]);
        assert_eq!(own.abandoned, ["payment.g.retry.5m", "payment.g.redrive"]);
    }
}
