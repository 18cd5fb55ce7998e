//! Requests to the cluster about one topic.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

use super::super::{
    backpressure::Resolved,
    creation_budget::{CreationBudget, MayCreate},
};
use crate::{
    kafka::{Creation, Directory, TopicError},
    relay::{
        DeliveryGuarantee, RelayOptions, TopicOptions,
        monitor::metrics::{Component, Reason, RelayMetrics},
    },
};

/// Interval between two requests to a cluster that does not answer.
const OUTAGE_RETRY: Duration = Duration::from_secs(2);

/// An answer about a topic.
pub(crate) struct Looked {
    pub(in crate::relay::pipeline::publisher) topic: String,
    pub(in crate::relay::pipeline::publisher) answer: Result<i32, TopicError>,
    /// All topics, if a list was requested.
    pub(in crate::relay::pipeline::publisher) survey: Option<HashMap<String, i32>>,
}

/// Looks up topics, and creates them if the options allow it.
#[derive(Clone)]
pub(super) struct Asker {
    directory: Arc<Directory>,
    create: TopicOptions,
    create_max_per_minute: u32,
    budget: Arc<Mutex<CreationBudget>>,
    pub(super) may_be_compacted: bool,
}

impl Asker {
    pub(super) fn new(options: &RelayOptions) -> Self {
        let create_max_per_minute = options.topic_limits.create_max_per_minute;
        Self {
            directory: Arc::new(Directory::new(&options.kafka)),
            create: options.topics.clone(),
            create_max_per_minute,
            budget: Arc::new(Mutex::new(CreationBudget::new(create_max_per_minute))),
            may_be_compacted: options.delivery == DeliveryGuarantee::ExactlyOnce,
        }
    }

    /// Looks up a topic once. `waits` means that an event waits for the answer.
    pub(super) async fn ask(&self, topic: &str, waits: bool) -> Result<i32, TopicError> {
        let mut answer = self.directory.partitions(topic).await;
        if matches!(answer, Err(TopicError::Unknown(_))) && self.create.create {
            answer = self.create(topic, waits).await;
        }
        self.accepted(topic, answer?).await
    }

    async fn create(&self, topic: &str, waits: bool) -> Result<i32, TopicError> {
        let may_create = self
            .budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(waits);
        let reason = match may_create {
            MayCreate::Yes => {
                let how = Creation {
                    partitions: self.create.partitions,
                    replication: self.create.replication,
                    config: &[],
                };
                return self.directory.create(topic, how).await;
            }
            MayCreate::Beside => "it is being created".to_owned(),
            MayCreate::No => format!(
                "{} topics were created within a minute, which is as many as \
                 topics.create_max_per_minute allows; it is created in its turn",
                self.create_max_per_minute
            ),
        };
        Err(TopicError::NotYet {
            topic: topic.to_owned(),
            reason,
        })
    }

    async fn accepted(&self, topic: &str, partitions: i32) -> Result<i32, TopicError> {
        if !self.may_be_compacted {
            self.directory.refuse_compacted(topic).await?;
        }
        Ok(partitions)
    }

    /// Returns the first answer that is not an outage, for an event that waits for it. Lists all
    /// topics first if `survey` is set.
    pub(super) async fn until_answered(
        self,
        topic: String,
        survey: bool,
        observer: RelayMetrics,
    ) -> Resolved {
        // Stands as long as this future lives. A session that drops it raises its own reason.
        let mut standing: Option<Reason> = None;
        let survey = if survey {
            self.directory.all().await.ok()
        } else {
            None
        };
        loop {
            let listed = survey.as_ref().and_then(|all| all.get(&topic));
            let answer = match listed {
                Some(partitions) => self.accepted(&topic, *partitions).await,
                None => self.ask(&topic, true).await,
            };
            let Err(error @ TopicError::Unreachable(_)) = answer else {
                return Resolved::Topic(Looked {
                    topic,
                    answer,
                    survey,
                });
            };
            tracing::warn!("{error}; the relay waits, nothing is lost");
            match &standing {
                Some(reason) => reason.set(error.to_string()),
                None => standing = Some(observer.hold(Component::Kafka, error.to_string())),
            }
            sleep(OUTAGE_RETRY).await;
        }
    }
}
