//! Access-control entries in Kafka.

use serde::Serialize;

use super::{Duty, RelayDuty};
use crate::subscriber::DeadLetters;
use crate::subscriber::failure::redrive::{GROUP as REDRIVE_GROUP, redrive_topic};

/// Kind of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AclResource {
    Topic,
    Group,
    TransactionalId,
}

impl AclResource {
    /// Returns the option of `kafka-acls.sh`.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Topic => "--topic",
            Self::Group => "--group",
            Self::TransactionalId => "--transactional-id",
        }
    }
}

/// Match between a name and resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AclPattern {
    Literal,
    Prefixed,
}

/// Allowed operations on one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct AclGrant {
    pub(crate) principal: String,
    /// Operations with Kafka's names. `Read` and `Write` include `Describe`.
    pub(crate) operations: Vec<&'static str>,
    pub(crate) resource: AclResource,
    pub(crate) name: String,
    pub(crate) pattern: AclPattern,
    /// Purpose, where the resource's name does not show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) purpose: Option<&'static str>,
}

/// Returns the default topic of a subscriber's dead letters.
fn dead_letter_topic(topic: &str, group: &str) -> String {
    let of_topic = DeadLetters::topic().topic_for(topic, group);
    of_topic.unwrap_or_default()
}

/// Returns the entries of a principal.
pub(super) fn grants(principal: &str, duty: &Duty) -> Vec<AclGrant> {
    let mut list = List {
        principal: principal.to_owned(),
        grants: Vec::new(),
    };
    match duty {
        Duty::Migrator | Duty::Publisher { .. } => {}
        Duty::Relay(relay) => list.relay(relay),
        Duty::Subscriber {
            group,
            topics,
            has_retry_topics,
            ..
        } => list.subscriber(group, topics, *has_retry_topics),
        Duty::Operator { topics, groups } => list.operator(topics, groups),
    }
    list.grants
}

/// Entries of one principal, in the order in which they are printed.
struct List {
    principal: String,
    grants: Vec<AclGrant>,
}

impl List {
    /// Adds operations on a resource. A name that ends with `*` is a prefix.
    fn allow(&mut self, operations: &[&'static str], resource: AclResource, name: &str) {
        let prefix = name.strip_suffix('*');
        self.grants.push(AclGrant {
            principal: self.principal.clone(),
            operations: operations.to_vec(),
            resource,
            name: prefix.unwrap_or(name).to_owned(),
            pattern: match prefix {
                Some(_) => AclPattern::Prefixed,
                None => AclPattern::Literal,
            },
            purpose: None,
        });
    }

    fn topic(&mut self, operations: &[&'static str], name: &str) {
        self.allow(operations, AclResource::Topic, name);
    }

    /// States the purpose of the last entry.
    fn purpose(&mut self, purpose: &'static str) {
        if let Some(last) = self.grants.last_mut() {
            last.purpose = Some(purpose);
        }
    }

    fn relay(&mut self, relay: &RelayDuty) {
        let written: &[&str] = match relay.creates_topics {
            true => &["Write", "Create"],
            false => &["Write"],
        };
        for topic in &relay.topics {
            self.topic(written, topic);
        }
        for topic in &relay.dead_letter_topics {
            self.topic(written, topic);
            self.purpose("events that cannot be delivered");
        }
        if relay.is_exactly_once {
            let ids = format!("tidings.relay.{}.*", relay.name);
            self.allow(&["Write"], AclResource::TransactionalId, &ids);
            self.topic(
                &["Read", "Write", "Create"],
                &format!("tidings.position.{}.*", relay.name),
            );
        }
    }

    fn subscriber(&mut self, group: &str, topics: &[String], has_retry_topics: bool) {
        self.allow(&["Read"], AclResource::Group, group);
        for topic in topics {
            self.topic(&["Read", "DescribeConfigs"], topic);
            self.purpose("DescribeConfigs: its dead letter topic accepts records of the same size");
            if has_retry_topics {
                let retries = format!("{topic}.{group}.retry.*");
                self.topic(&["Read", "Write", "Create"], &retries);
            }
            self.topic(&["Write", "Create"], &dead_letter_topic(topic, group));
            self.topic(&["Read"], &redrive_topic(topic, group));
        }
    }

    fn operator(&mut self, topics: &[String], groups: &[String]) {
        for topic in topics {
            self.topic(&["Read"], topic);
            for group in groups {
                self.topic(&["Read"], &dead_letter_topic(topic, group));
                self.topic(&["Write", "Create"], &redrive_topic(topic, group));
            }
        }
        if !groups.is_empty() {
            self.allow(&["Read"], AclResource::Group, REDRIVE_GROUP);
            self.purpose("records which dead letters are replayed or discarded");
        }
    }
}
