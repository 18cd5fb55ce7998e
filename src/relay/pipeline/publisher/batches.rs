//! Batches of the publisher: their records, their durability, and the handover to the next
//! producers.

use super::{BatchIsolation, EventPublisher};
use crate::relay::{
    error::Interruption,
    leadership::relay_store::RelayStore,
    position::{Journal, Position},
    routing::template::Route,
    sink::{Batch, Durable},
    startup::{names::KafkaNames, server::Server},
};

/// Number of records by topic.
type Counts<'r> = Vec<(&'r Route, u64)>;

impl EventPublisher {
    pub(super) fn count(&mut self, route: usize) {
        if self.counts.len() <= route {
            self.counts.resize(route + 1, 0);
        }
        self.counts[route] += 1;
    }

    /// Takes the isolation state of earlier producers.
    pub(crate) fn isolate(&mut self, isolation: BatchIsolation) {
        self.isolation = isolation;
    }

    /// Requests that an event is sent alone, and forgets an earlier refusal of it.
    pub(crate) fn suspect(&mut self, seq: i64) {
        self.isolation.suspect(seq);
    }

    /// Returns the isolation state for the next producers. `drained` means that all sent events are
    /// durable.
    pub(crate) fn take_isolation(&mut self, drained: bool) -> BatchIsolation {
        std::mem::take(&mut self.isolation).carry_over(drained)
    }

    /// Continues under a new epoch with a producer whose records are all durable.
    pub(crate) fn go_on(
        &mut self,
        names: &KafkaNames,
        server: &Server,
        relay_store: &RelayStore,
        number: u64,
    ) {
        self.clock = relay_store.clock();
        let journal = Journal::new(
            server.identity.clone(),
            relay_store.epoch(),
            number,
            relay_store.seal().clone(),
        );
        self.sink.write_positions(names.topic.clone(), journal);
    }

    /// Ends a batch: the records sent so far belong together, and the relay's position after them
    /// is `position`. Returns `false` if the last batch is still being committed.
    pub(crate) fn end_batch(&mut self, position: Position) -> bool {
        let counts = std::mem::take(&mut self.counts);
        match self.sink.cut(Batch {
            position: Box::new(position),
            counts,
            at: self.stamping.stamp(i64::MAX, self.clock.now()),
        }) {
            Ok(()) => {
                self.isolation.cut();
                true
            }
            Err(batch) => {
                self.counts = batch.counts;
                false
            }
        }
    }

    /// Returns the batches that became durable since the last call, and the number of their records
    /// by topic.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the producer has failed, or if a trial of suspects has ended.
    pub(crate) fn durable(&mut self) -> Result<Option<(Durable, Counts<'_>)>, Interruption> {
        self.observe_cluster();
        self.look_after_topics();
        self.observer.in_flight(self.sink.acks().under_way().0);
        // Before the durable batches are taken, because an error would drop them.
        if self.isolation.acknowledged(self.sink.acks().floor()) {
            return Err(Interruption::Isolated);
        }
        let durable = self.sink.durable();
        if durable.is_none()
            && let Some(failure) = self.sink.failure()
        {
            return Err(failure);
        }
        if durable.is_some() && self.sink.is_settled() {
            self.isolation.durable();
        }
        Ok(durable.map(|durable| {
            let counts = durable
                .batch
                .counts
                .iter()
                .enumerate()
                .filter(|(_, records)| **records > 0);
            let counts: Vec<_> = counts
                .map(|(at, records)| (&self.routes.all()[at], *records))
                .collect();
            counts
                .iter()
                .for_each(|(route, records)| self.observer.published(&route.topic, *records));
            (durable, counts)
        }))
    }
}
