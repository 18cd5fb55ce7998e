//! Companions: parts that run next to a subscriber on the database of its inbox. Sagas are
//! companions.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Meta, Statistics,
    attempt::pause::Pause,
    inbox::OpenInbox,
    run::{Plan, RunError},
    startup::registration::Entry,
};
use crate::{kafka::Settings, postgres::SchemaName, task::OwnedTask};

/// Maximum number of notifications that wait for a busy companion. A companion that misses a
/// notification checks everything instead.
const NEWS: usize = 64;

/// A future of a [`Companion`].
pub(crate) type Task<'t, T> = Pin<Box<dyn Future<Output = T> + Send + 't>>;

/// Environment of a companion.
pub(crate) struct Ground {
    pub(crate) pool: PgPool,
    pub(crate) schema: SchemaName,
    /// The subscriber's name, which is also its consumer group.
    pub(crate) consumer: String,
    pub(crate) statistics: Statistics,
    pub(crate) pause: Arc<Pause>,
    pub(crate) kafka: Settings,
    /// The topics of aggregates that are not read from the topic with the aggregate's name.
    pub(crate) topics: HashMap<&'static str, Vec<String>>,
    /// The names of all companions.
    pub(crate) names: Vec<String>,
    /// Notifications from the database, for all companions.
    pub(crate) news: broadcast::Sender<String>,
}

impl Ground {
    /// Returns the topics that events of an aggregate are read from.
    pub(crate) fn topics_of(&self, aggregate: &'static str) -> Vec<String> {
        self.topics
            .get(aggregate)
            .cloned()
            .unwrap_or_else(|| vec![aggregate.to_owned()])
    }
}

/// Reason why a companion cannot run.
#[derive(Debug)]
pub(crate) enum NotAdmitted {
    /// Permanently, with the cause and the remedy.
    Refused(String),
    /// The database did not respond, or lacks a table or a permission.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for NotAdmitted {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// Interest of a companion in an event that has no handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Another version of the code waits for the event.
    Waits,
    /// No version of this companion waits for the event. Another companion may.
    Not,
    /// No companion of any version can wait for the event.
    Impossible,
}

/// A part that runs next to a subscriber.
pub(crate) trait Companion: Send + Sync {
    /// Returns the name, which is unique within the subscriber.
    fn name(&self) -> &str;

    /// Checks that the companion can run. Called before the subscriber joins its group.
    fn admit<'t>(&'t self, ground: &'t Ground) -> Task<'t, Result<(), NotAdmitted>>;

    /// Returns whether an event without a handler must be kept for another version of the code.
    fn interest<'t>(
        &'t self,
        ground: &'t Ground,
        event: &'t Meta,
    ) -> Task<'t, Result<Interest, sqlx::Error>>;

    /// Runs until `stop` is cancelled.
    fn run(self: Arc<Self>, ground: Arc<Ground>, stop: CancellationToken) -> Task<'static, ()>;
}

/// The companions of a subscriber. Without an inbox there are none.
#[derive(Clone, Default)]
pub(crate) struct Companions {
    all: Vec<Arc<dyn Companion>>,
    ground: Option<Arc<Ground>>,
}

impl Companions {
    pub(crate) fn new(
        all: Vec<Arc<dyn Companion>>,
        inbox: Option<&OpenInbox>,
        plan: &Plan,
    ) -> Self {
        let ground = inbox.filter(|_| !all.is_empty()).map(|inbox| {
            Arc::new(Ground {
                pool: inbox.pool.clone(),
                schema: inbox.schema.clone(),
                consumer: inbox.consumer.clone(),
                statistics: plan.statistics.clone(),
                pause: plan.pause.clone(),
                kafka: plan.bus.settings().clone(),
                topics: plan.named_topics.clone(),
                names: all
                    .iter()
                    .map(|companion| companion.name().to_owned())
                    .collect(),
                news: broadcast::channel(NEWS).0,
            })
        });
        Self { all, ground }
    }

    /// Returns `true` if an event without a handler can be skipped without querying the companions,
    /// because its correlation id does not belong to a saga.
    pub(crate) fn may_skip(&self, correlation: Option<&str>) -> bool {
        self.ground.is_none() || correlation.is_none_or(|id| Uuid::try_parse(id).is_err())
    }

    /// Returns whether an event without a handler must be kept for another version of the code.
    ///
    /// # Errors
    ///
    /// Returns the database's error if a query fails.
    pub(crate) async fn keep(&self, event: &Meta) -> Result<bool, sqlx::Error> {
        let Some(ground) = &self.ground else {
            return Ok(false);
        };
        for companion in &self.all {
            match companion.interest(ground, event).await? {
                Interest::Waits => return Ok(true),
                Interest::Not => {}
                // This result holds for all companions, so one query is enough.
                Interest::Impossible => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Checks that each companion can run. Returns `false` if the subscriber is shut down before
    /// that is decided.
    ///
    /// # Errors
    ///
    /// Returns [`RunError`] if a companion cannot run or the database is not set up for it.
    pub(crate) async fn admit(&self, stop: &CancellationToken) -> Result<bool, RunError> {
        let Some(ground) = &self.ground else {
            return Ok(true);
        };
        for companion in &self.all {
            let entry = Entry {
                subscriber: &ground.consumer,
                what: format!("saga `{}`", companion.name()),
                schema: &ground.schema,
                pool: &ground.pool,
                tables: &["saga_code", "saga"],
            };
            if entry
                .until_registered(stop, || companion.admit(ground))
                .await?
                .is_none()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn start(&self, stop: &CancellationToken) -> Vec<OwnedTask<()>> {
        let Some(ground) = &self.ground else {
            return Vec::new();
        };
        let start = |companion: &Arc<dyn Companion>| {
            OwnedTask::spawn(companion.clone().run(ground.clone(), stop.clone()))
        };
        self.all.iter().map(start).collect()
    }
}

/// Waits for each task within the drain timeout. A task that has not finished by then is aborted,
/// and its transaction is rolled back.
pub(crate) async fn end(running: Vec<OwnedTask<()>>, drain: Duration) {
    for mut task in running {
        let _ = tokio::time::timeout(drain, &mut task).await;
    }
}
