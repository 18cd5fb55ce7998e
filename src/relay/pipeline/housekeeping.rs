//! Periodic jobs of a session, run on its tick.

use std::time::Duration;

use tokio::time::Instant;

use super::publisher::EventPublisher;
use crate::relay::{
    RelayOptions, error::Interruption, leadership::relay_store::RelayStore,
    monitor::metrics::RelayMetrics, source::slot, startup::names::LogNames,
};

/// Interval between examinations of the slot and the outbox's trigger.
const EXAMINE_INTERVAL: Duration = Duration::from_secs(10);

/// The jobs of one session.
pub(super) struct Housekeeping {
    names: LogNames,
    /// The outbox is Tidings' own table rather than a table made for Debezium.
    own_outbox: bool,
    examined_at: Option<Instant>,
}

impl Housekeeping {
    pub(super) fn new(options: &RelayOptions, names: &LogNames) -> Self {
        Self {
            names: names.clone(),
            own_outbox: options.debezium.is_none(),
            examined_at: None,
        }
    }

    /// Returns the names of the slot and the publication.
    pub(super) fn names(&self) -> &LogNames {
        &self.names
    }

    /// Runs the jobs that are due.
    ///
    /// # Errors
    ///
    /// Returns [`Interruption::TopicsChanged`] if a command has changed topics, or another
    /// interruption if the connection or the lease is lost.
    pub(super) async fn run(
        &mut self,
        store: &mut RelayStore,
        publisher: &EventPublisher,
        observer: &RelayMetrics,
    ) -> Result<(), Interruption> {
        if self
            .examined_at
            .is_none_or(|at| at.elapsed() > EXAMINE_INTERVAL)
        {
            self.export_slot(store, observer).await?;
            if self.own_outbox {
                store.require_own_transactions().await?;
            }
            self.examined_at = Some(Instant::now());
        }
        if publisher.a_hold_is_over() {
            end_holds(store).await?;
        }
        match store.topics_have_changed() {
            true => Err(Interruption::TopicsChanged),
            false => Ok(()),
        }
    }

    async fn export_slot(
        &self,
        store: &mut RelayStore,
        observer: &RelayMetrics,
    ) -> Result<(), Interruption> {
        if let Some((lag_bytes, retained_bytes)) =
            slot::log_kept(store.session(), &self.names.slot).await?
        {
            observer.slot(lag_bytes, retained_bytes);
        }
        Ok(())
    }
}

async fn end_holds(store: &mut RelayStore) -> Result<(), Interruption> {
    for topic in store.end_holds().await? {
        tracing::error!(
            topic,
            "a command held the topic back and did not end in time: the relay publishes to it as \
             before; see `tidings topics list`"
        );
    }
    Ok(())
}
