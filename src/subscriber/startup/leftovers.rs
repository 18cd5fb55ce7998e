//! Leftovers of an earlier deployment. Records in retry topics that are no longer configured are
//! handled. Events of topics that are no longer subscribed are reported.

use crate::{
    kafka::{ConsumerError, Known, Member},
    postgres::errors::with_causes,
    subscriber::{attempt::escalation::retry_delay, failure::dead_letter::origin_of, run::Plan},
};

/// The group's own topics that exist but are not configured.
#[derive(Debug, Default, PartialEq, Eq)]
struct OwnTopics {
    /// Retry topics of subscribed topics, each with its origin.
    retried: Vec<(String, String)>,
    /// Retry and redrive topics whose origin is not subscribed.
    abandoned: Vec<String>,
}

impl OwnTopics {
    fn among<'t>(
        names: impl IntoIterator<Item = &'t String>,
        group: &str,
        is_subscribed: impl Fn(&str) -> bool,
    ) -> Self {
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
    /// Subscribes to the retry topics that earlier deployments created with other delays or with
    /// another escalation, so that their records are handled. Returns the group's topics whose
    /// origin is not subscribed.
    pub(crate) fn read_earlier_retry_topics(&mut self, names: &[String]) -> Vec<String> {
        let own = OwnTopics::among(names, &self.name, |topic| self.topics.contains_key(topic));
        for (topic, origin) in own.retried {
            tracing::info!(
                subscriber = self.name,
                topic,
                "a retry topic of an earlier deployment is read too; it can be deleted once it is \
                 empty"
            );
            let source = self.topics.get(&origin).copied().unwrap_or_default();
            self.topics.insert(topic, source);
        }
        own.abandoned
    }

    /// Logs parked events of topics that are not subscribed. No member handles them.
    pub(crate) async fn report_parked_elsewhere(&self) {
        let Some(inbox) = &self.core.inbox else {
            return;
        };
        let topics: Vec<&str> = self.topics.keys().map(String::as_str).collect();
        match inbox.parked_outside(&topics).await {
            Ok(left) => {
                for (topic, events, aggregates) in left {
                    tracing::warn!(
                        subscriber = self.name,
                        topic,
                        events,
                        aggregates,
                        "parked events belong to a topic that is not subscribed and are not \
                         handled: run a version that subscribes to the topic until they are, or \
                         delete them from the table `subscriber_parked`"
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

/// Logs unfinished records of abandoned topics. Blocks for up to ten seconds per topic.
pub(crate) fn report_abandoned(member: &Member, subscriber: &str, topics: &[String]) {
    for topic in topics {
        match unfinished(member, topic) {
            Ok(0) => {}
            Ok(records) => tracing::warn!(
                subscriber,
                topic,
                records,
                "records wait in a topic of this group whose original topic is not subscribed: \
                 run a version that subscribes to it until they are handled, or delete the topic"
            ),
            Err(error) => tracing::warn!(
                subscriber,
                topic,
                %error,
                "the records that wait in a topic of this group cannot be counted"
            ),
        }
    }
}

/// Returns the number of records from the group's commits to the end of a topic. Partitions without
/// a commit do not count: this group has never read them, and they may belong to a group with a
/// similar name.
fn unfinished(member: &Member, topic: &str) -> Result<i64, ConsumerError> {
    let partitions = member.partitions_of(topic)?;
    let Known { committed, .. } = member.committed(&partitions)?;
    committed.iter().try_fold(0, |sum, committed| {
        Ok(sum + (member.end_now(&committed.partition)? - committed.offset).max(0))
    })
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
        assert_eq!(
            own.retried,
            [("order.g.retry.1m".to_owned(), "order".to_owned())]
        );
        assert_eq!(own.abandoned, ["payment.g.retry.5m", "payment.g.redrive"]);
    }
}
