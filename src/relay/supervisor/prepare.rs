//! The start of a session, up to the moment before it reads.

use tokio_util::sync::CancellationToken;

use super::{Relay, handover::Carried};
use crate::relay::{
    DeliveryGuarantee,
    error::Interruption,
    leadership::relay_store::{RelayStore, Saved, within},
    monitor::metrics::Component,
    parked::store,
    pipeline::{Pipeline, publisher::EventPublisher},
    position::Position,
    row::table_layout::{self, TableLayout},
    startup::{
        names::{self, KafkaNames, LogNames},
        preflight,
        recovery::{self, Start},
        server,
    },
};

/// A session that is ready to read.
pub(super) struct Ready {
    pub(super) server: server::Server,
    pub(super) names: LogNames,
    pub(super) table_layout: TableLayout,
    pub(super) pipeline: Pipeline,
    pub(super) moved: bool,
}

impl Relay {
    /// Prepares everything that a session needs before it reads.
    pub(super) async fn prepare(
        &self,
        carried: &mut Carried,
        lost: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<Ready, Interruption> {
        let (options, observer) = (&self.options, &self.observer);
        observer.pulse().step("checking the requirements");
        preflight::require(options).await?;
        observer.pulse().step("taking over the relay's row");
        let (mut relay_store, saved, alone) = self.take_over(carried).await?;
        observer.pulse().step("examining the database");
        let table_layout = table_layout::examine(options, relay_store.session()).await?;
        let server = server::examine(relay_store.session()).await?;
        let names = names::log_names(
            options.subject(),
            relay_store.session(),
            &server.identity,
            &saved.names,
        );
        let names = within("looking for the relay's slot and publication", names).await?;
        relay_store.keep_names(options, &names).await?;
        carried.learn(&options.kafka).await?;
        let settled = carried.take_settled(alone, &saved, relay_store.topic_changes());
        observer
            .pulse()
            .step("starting the producers and reading the position");
        let (mut publisher, mut start) = self
            .start(&server, saved, &mut relay_store, settled, carried, lost)
            .await?;
        observer.pulse().step("loading parked events");
        let table_layout = table_layout
            .judge(options, relay_store.session(), &start.position)
            .await?;
        let released = std::mem::take(&mut start.position.released);
        self.load(&mut publisher, &mut relay_store, &released, carried)
            .await?;
        let moved = start.moved;
        let tokens = (lost.clone(), shutdown.clone());
        let mut pipeline = Pipeline::new(
            options,
            &names,
            start,
            relay_store,
            publisher,
            observer,
            tokens,
        );
        if moved {
            pipeline.end_batch().await?;
        }
        pipeline.report_parked();
        // Last: from here on the end of the session returns the isolation state to `carried`.
        pipeline
            .publisher_mut()
            .isolate(std::mem::take(&mut carried.isolation));
        Ok(Ready {
            server,
            names,
            table_layout,
            pipeline,
            moved,
        })
    }

    /// Takes over the relay's row with a new epoch. The last value is `true` if no other relay has
    /// led since this relay's last session.
    async fn take_over(
        &self,
        carried: &mut Carried,
    ) -> Result<(RelayStore, Saved, bool), Interruption> {
        let observer = &self.observer;
        let (relay_store, saved) = RelayStore::take_over(&self.options).await?;
        observer.note(Component::Database, "connected");
        carried.compare_clocks(relay_store.clock());
        require_forward(carried.epoch, relay_store.epoch())?;
        let alone = relay_store.epoch() == carried.epoch + 1;
        carried.epoch = relay_store.epoch();
        observer.note(
            Component::Lease,
            format!("leads, epoch {}", relay_store.epoch()),
        );
        Ok((relay_store, saved, alone))
    }

    /// Loads the state of earlier sessions into the publisher: parked events, unusable topics,
    /// topics that are being grown.
    async fn load(
        &self,
        publisher: &mut EventPublisher,
        store: &mut RelayStore,
        released: &[i64],
        carried: &mut Carried,
    ) -> Result<(), Interruption> {
        // These events were released before the last session ended, and are still in the table.
        if !released.is_empty() {
            store::delete(store, released).await?;
        }
        if let Some(faults) = carried.topic_faults.take() {
            publisher.take_up_faults(faults);
        }
        // Events of a Debezium table are never parked.
        if self.options.debezium.is_none() {
            publisher.load_parked(store::load(store).await?);
        }
        // In this order: if a growth ends in between, its new partition count is read rather than
        // its hold.
        publisher.hold_back(store.take_up_holds().await?);
        publisher.pin(store.pinned().await?);
        Ok(())
    }

    /// Returns a publisher and the start position of the session.
    async fn start(
        &self,
        server: &server::Server,
        saved: Saved,
        relay_store: &mut RelayStore,
        settled: Option<(EventPublisher, Position, u64)>,
        carried: &mut Carried,
        lost: &CancellationToken,
    ) -> Result<(EventPublisher, Start), Interruption> {
        let (options, observer) = (&self.options, &self.observer);
        let names = KafkaNames::new(&options.name, &server.identity, &options.schema);
        if let Some((mut publisher, position, number)) = settled {
            publisher.go_on(&names, server, relay_store, number);
            return Ok((
                publisher,
                Start {
                    position,
                    number,
                    moved: false,
                },
            ));
        }
        let (batch_bytes_max, transaction_timeout) = carried.limits();
        let transactional = match options.delivery {
            DeliveryGuarantee::ExactlyOnce => names.transactional(transaction_timeout),
            DeliveryGuarantee::AtLeastOnce => Vec::new(),
        };
        let stamps = (relay_store.clock(), carried.stamping);
        let mut publisher = EventPublisher::open(
            options,
            &saved.event_source,
            observer,
            batch_bytes_max,
            &transactional,
            stamps,
        )?;
        let cluster = publisher.reach_cluster().await?;
        let session = recovery::Session {
            options,
            server,
            names: &names,
            cluster: &cluster,
            observer,
            lost,
        };
        let start = recovery::resume(session, saved, relay_store, &mut publisher).await?;
        tracing::info!(
            relay = options.name,
            epoch = relay_store.epoch(),
            cluster,
            delivery = options.delivery.word(),
            "leads"
        );
        Ok((publisher, start))
    }
}

/// Returns an interruption unless the epoch has increased.
fn require_forward(before: i64, now: i64) -> Result<(), Interruption> {
    if now > before {
        return Ok(());
    }
    Err(Interruption::Refused(format!(
        "the database has gone back in time: this relay led under epoch {before} and finds epoch \
         {} (a restore, or a failover that lost commits); events that were published may not exist \
         any more. When it is started again, the relay compares its position with the database",
        now - 1
    )))
}
