//! Parts that run beside a subscriber on the database of its inbox: sagas.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::inbox::OpenInbox;
use super::register::Entry;
use super::run::{Plan, RunError};
use super::{Meta, Statistics};
use crate::kafka::Settings;
use crate::postgres::SchemaName;

/// How many notices wait for a companion that is busy. One that misses some looks at everything.
const NEWS: usize = 64;

/// A future of a [`Companion`].
pub(crate) type Task<'t, T> = Pin<Box<dyn Future<Output = T> + Send + 't>>;

/// What a companion works on.
pub(crate) struct Ground {
    pub(crate) pool: PgPool,
    pub(crate) schema: SchemaName,
    /// The subscriber's name, its consumer group.
    pub(crate) consumer: String,
    pub(crate) statistics: Statistics,
    pub(crate) kafka: Settings,
    /// The topics of aggregates that are not read from the topic of their name.
    pub(crate) topics: HashMap<&'static str, Vec<String>>,
    /// The names of all companions.
    pub(crate) names: Vec<String>,
    /// Notices of the database, for all companions.
    pub(crate) news: broadcast::Sender<String>,
}

impl Ground {
    /// The topics from which events of an aggregate are read.
    pub(crate) fn topics_of(&self, aggregate: &'static str) -> Vec<String> {
        self.topics.get(aggregate).cloned().unwrap_or_else(|| vec![aggregate.to_owned()])
    }
}

/// Why a companion may not run.
#[derive(Debug)]
pub(crate) enum NotAdmitted {
    /// For good, with the cause and the remedy.
    Refused(String),
    /// The database did not answer, or lacks a table or a permission.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for NotAdmitted {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// Whether a companion needs an event that has no handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Another version of the code waits for it.
    Waits,
    /// No version of this companion waits for it. Another companion may.
    Not,
    /// No companion of any version can wait for it.
    Impossible,
}

/// A part that runs beside a subscriber.
pub(crate) trait Companion: Send + Sync {
    /// Its name, unique in the subscriber.
    fn name(&self) -> &str;

    /// Called before the subscriber joins its group.
    fn admit<'t>(&'t self, ground: &'t Ground) -> Task<'t, Result<(), NotAdmitted>>;

    /// Whether an event without a handler must be kept for another version of the code.
    fn interest<'t>(&'t self, ground: &'t Ground, event: &'t Meta) -> Task<'t, Result<Interest, sqlx::Error>>;

    /// Runs until `stop` is cancelled.
    fn run(self: Arc<Self>, ground: Arc<Ground>, stop: CancellationToken) -> Task<'static, ()>;
}

/// The companions of a subscriber. Without an inbox there are none.
#[derive(Clone, Default)]
pub(super) struct Companions {
    all: Vec<Arc<dyn Companion>>,
    ground: Option<Arc<Ground>>,
}

impl Companions {
    pub(super) fn new(all: Vec<Arc<dyn Companion>>, inbox: Option<&OpenInbox>, plan: &Plan) -> Self {
        let ground = inbox.filter(|_| !all.is_empty()).map(|inbox| {
            Arc::new(Ground {
                pool: inbox.pool.clone(),
                schema: inbox.schema.clone(),
                consumer: inbox.consumer.clone(),
                statistics: plan.statistics.clone(),
                kafka: plan.bus.settings().clone(),
                topics: plan.named_topics.clone(),
                names: all.iter().map(|companion| companion.name().to_owned()).collect(),
                news: broadcast::channel(NEWS).0,
            })
        });
        Self { all, ground }
    }

    /// True if an event without a handler may be skipped without a question to the companions: its correlation id is no saga's.
    pub(super) fn may_skip(&self, correlation: Option<&str>) -> bool {
        self.ground.is_none() || correlation.is_none_or(|id| Uuid::try_parse(id).is_err())
    }

    /// Whether an event without a handler must be kept for another version of the code.
    ///
    /// # Errors
    /// What the server reports.
    pub(super) async fn keep(&self, event: &Meta) -> Result<bool, sqlx::Error> {
        let Some(ground) = &self.ground else { return Ok(false) };
        for companion in &self.all {
            match companion.interest(ground, event).await? {
                Interest::Waits => return Ok(true),
                Interest::Not => {}
                // One query decides, however many companions there are.
                Interest::Impossible => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Asks each companion whether it may run. Returns false if the subscriber is shut down before that is known.
    ///
    /// # Errors
    /// A companion may not run, or the database is not set up for it.
    pub(super) async fn admit(&self, stop: &CancellationToken) -> Result<bool, RunError> {
        let Some(ground) = &self.ground else { return Ok(true) };
        for companion in &self.all {
            let entry = Entry {
                subscriber: &ground.consumer,
                what: format!("saga `{}`", companion.name()),
                schema: &ground.schema,
                pool: &ground.pool,
                tables: &["saga_code", "saga"],
            };
            if entry.until_registered(stop, || companion.admit(ground)).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn start(&self, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let Some(ground) = &self.ground else { return Vec::new() };
        let start = |companion: &Arc<dyn Companion>| tokio::spawn(companion.clone().run(ground.clone(), stop.clone()));
        self.all.iter().map(start).collect()
    }
}

/// Waits for each within the drain timeout. What has not ended by then is rolled back.
pub(super) async fn end(running: Vec<JoinHandle<()>>, drain: Duration) {
    for mut task in running {
        if tokio::time::timeout(drain, &mut task).await.is_err() {
            task.abort();
        }
    }
}
