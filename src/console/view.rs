//! A request for a page: its database, its parameters and its user.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::Shared;
use super::error::ConsoleError;
use super::pages::Page;
use super::params::{Params, link};
use super::sampler::{Point, Sample};
use super::security::User;
use super::source::Source;
use crate::inspect::path::{Cluster, NO_BROKERS};
use crate::inspect::{Database, InspectError};
use crate::kafka;

/// Time limit of the reads of one page. A page has a few statements of milliseconds.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Time limit of a read of Kafka, which reads a topic up to its end.
const KAFKA_TIMEOUT: Duration = Duration::from_secs(45);

/// Time limit of a change. It is longer than that of its statements, so the server usually reports
/// the outcome first.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(40);

/// Time limit of a search across several topics. A record is near the time of its event, so a
/// search usually takes less than a second.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(30);

/// Error of a read that received no permission within [`KAFKA_TIMEOUT`].
const BUSY: &str = "other pages of the console are reading Kafka; refresh the page";

/// Reads of Kafka at the same time. Each opens connections to the brokers.
pub(super) const KAFKA_READS_MAX: usize = 2;

/// A request for a page.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) shared: Arc<Shared>,
    pub(super) user: User,
    pub(super) page: Page,
    pub(super) params: Params,
    /// Index of the selected database.
    pub(super) index: usize,
    pub(super) now: DateTime<Utc>,
}

impl View {
    /// Returns `None` if the parameter `db` names no database. The first one is the default.
    pub(super) fn new(shared: Arc<Shared>, user: User, page: Page, params: Params) -> Option<Self> {
        let index = match params.get("db") {
            None => 0,
            Some(text) => text.parse().ok()?,
        };
        (index < shared.sources.len()).then(|| Self {
            index,
            shared,
            user,
            page,
            params,
            now: Utc::now(),
        })
    }

    /// Returns the selected database.
    pub(super) fn source(&self) -> &Arc<Source> {
        &self.shared.sources[self.index]
    }

    /// Returns the databases that the page shows.
    pub(super) fn shown_sources(&self) -> &[Arc<Source>] {
        match self.page.is_of_one_database() {
            true => &self.shared.sources[self.index..=self.index],
            false => &self.shared.sources,
        }
    }

    /// Runs a read of the selected database within the time limit.
    ///
    /// # Errors
    ///
    /// Returns the reason as text for the page.
    pub(super) async fn read<T>(
        &self,
        read: impl AsyncFnOnce(&Database) -> Result<T, InspectError>,
    ) -> Result<T, ConsoleError> {
        self.rehearse(read).await
    }

    /// Runs the dry run of an action within the time limit.
    ///
    /// # Errors
    ///
    /// Returns the reason as text for the page.
    pub(super) async fn rehearse<T, E: Into<ConsoleError>>(
        &self,
        read: impl AsyncFnOnce(&Database) -> Result<T, E>,
    ) -> Result<T, ConsoleError> {
        let reading = async {
            let database = self.source().database().await?;
            read(&database).await.map_err(E::into)
        };
        timeout(READ_TIMEOUT, reading).await.unwrap_or_else(|_| {
            let seconds = READ_TIMEOUT.as_secs();
            let text = format!("the database did not respond within {seconds} s");
            Err(ConsoleError::new(text))
        })
    }

    /// Runs a read of Kafka within the time limit. `None` without brokers.
    ///
    /// # Errors
    ///
    /// Returns the reason as text for the page.
    pub(super) async fn read_kafka<T, E: std::error::Error + 'static>(
        &self,
        read: impl AsyncFnOnce(&kafka::Settings) -> Result<T, E>,
    ) -> Option<Result<T, ConsoleError>> {
        let settings = self.shared.kafka.as_ref()?;
        let Some(_permit) = self.kafka_permit().await else {
            return Some(Err(ConsoleError::new(BUSY)));
        };
        let read = timeout(KAFKA_TIMEOUT, read(settings)).await;
        Some(match read {
            Ok(read) => read.map_err(|error| ConsoleError::of(&error)),
            Err(_) => {
                let seconds = KAFKA_TIMEOUT.as_secs();
                let text = format!("the brokers did not respond within {seconds} s");
                Err(ConsoleError::new(text))
            }
        })
    }

    /// Waits for the permission to read Kafka. Returns `None` if other pages keep it for too long.
    async fn kafka_permit(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.shared.kafka_reads.acquire();
        timeout(KAFKA_TIMEOUT, permit).await.ok()?.ok()
    }

    /// Returns the cluster for a search across several topics, and the permission to read it.
    pub(super) async fn cluster(&self) -> (Cluster, Option<SemaphorePermit<'_>>) {
        let Some(settings) = self.shared.kafka.clone() else {
            return (Cluster::Unread(NO_BROKERS), None);
        };
        let time_max = SEARCH_TIME_MAX;
        match self.kafka_permit().await {
            None => (Cluster::Unread(BUSY), None),
            permit => (Cluster::Searched { settings, time_max }, permit),
        }
    }

    /// Returns the view of the database with this label, or this view if there is none.
    pub(super) fn at(&self, label: Option<&str>) -> Self {
        let mut labels = self.shared.sources.iter().map(|source| &source.label);
        let index = label.and_then(|label| labels.position(|one| one == label));
        Self {
            index: index.unwrap_or(self.index),
            ..self.clone()
        }
    }

    /// Runs a change of the selected database within the time limit.
    ///
    /// # Errors
    ///
    /// Returns the reason as text for the page.
    pub(super) async fn change<T, E: std::error::Error + 'static>(
        &self,
        change: impl AsyncFnOnce(&Database) -> Result<T, E>,
    ) -> Result<T, ConsoleError> {
        let database = self.source().writable().await?;
        match timeout(CHANGE_TIMEOUT, change(&database)).await {
            Ok(changed) => changed.map_err(|error| ConsoleError::of(&error)),
            Err(_) => Err(ConsoleError::new(format!(
                "the database did not respond within {} s; the change may have taken effect, so \
                 look at the page before you repeat it",
                CHANGE_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Returns the latest sample of a database.
    pub(super) fn sample(&self, source: &Source) -> Sample {
        source.samples.borrow().clone()
    }

    /// Returns the history of a relay.
    pub(super) fn history(&self, source: &Source, relay: &str) -> Vec<Point> {
        let history = source.history.lock();
        history.unwrap_or_else(PoisonError::into_inner).of(relay)
    }

    /// Returns a link to a page for the selected database.
    pub(super) fn page_link(&self, page: Page, parameters: &[(&str, &str)]) -> String {
        self.path_link(&page.path(), parameters)
    }

    /// Returns a link to a path for the selected database.
    pub(super) fn path_link(&self, path: &str, parameters: &[(&str, &str)]) -> String {
        let index = self.index.to_string();
        let mut all = Vec::new();
        if self.shared.sources.len() > 1 {
            all.push(("db", index.as_str()));
        }
        all.extend(parameters);
        link(path, &all)
    }

    /// Returns a link to the page that counts the events of an action.
    pub(super) fn action_link(&self, operation: &str, parameters: &[(&str, &str)]) -> String {
        let operation = [("op", operation)];
        self.path_link("/console/confirm", &[&operation[..], parameters].concat())
    }

    pub(super) fn may_act(&self) -> bool {
        self.shared.access.allows_actions()
    }
}
