//! Web console for operators: pages over `inspect`, actions over `operator`, `saga` and
//! `subscriber`. It contains neither SQL nor reads of Kafka.
//!
//! ```text
//! request ─▶ security (who, from which page) ─▶ routes ─▶ pages ─▶ layout ─▶ response
//!                                                  ├────▶ live (the page again, when it changes)
//!                                                  └────▶ actions (count, confirm, run, log)
//! sampler (one per database) ─▶ overview, charts, the rhythm of live pages
//! ```
//!
//! | path | response |
//! |---|---|
//! | `/console` | overview |
//! | `/console/events` | events of the outbox, and the path of one |
//! | `/console/parked`, `/dead-letters`, `/subscribers`, `/sagas`, `/scheduled` | one page each |
//! | `/console/actions` | the actions that run, and the last ones that ended |
//! | `/console/live?page=…` | server-sent events with the content of a page |
//! | `/console/confirm?op=…` | number of the affected events, and the button that carries it out |
//! | `POST /console/act` | starts an action, and redirects to its page or to the running actions |
//! | `/console/style.css`, `live.js`, `icon.svg` | embedded files |
//!
//! One sampler per database reads for all open tabs. A database that does not respond is shown as
//! such and delays no other database.

mod actions;
mod assets;
mod chart;
mod error;
mod layout;
mod live;
mod pages;
mod params;
mod routes;
mod sampler;
mod security;
mod source;
mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use actions::Runs;
pub(crate) use security::{Access, Credential, Exposure};
use source::Source;

use crate::{kafka, postgres};

/// Time for the samplers to end after shutdown.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of the console.
#[derive(Debug)]
pub(crate) struct ConsoleOptions {
    /// The databases, in display order.
    pub(crate) databases: Vec<postgres::DatabaseSettings>,
    pub(crate) schema: String,
    /// The brokers, for dead letters and the lag of subscribers.
    pub(crate) kafka: Option<kafka::Settings>,
    pub(crate) access: Access,
    /// Payloads and headers are not shown.
    pub(crate) hide_payloads: bool,
}

/// A running console.
#[derive(Debug)]
pub(crate) struct Console {
    shared: Arc<Shared>,
    samplers: JoinSet<()>,
}

/// State that all requests share.
#[derive(Debug)]
struct Shared {
    sources: Vec<Arc<Source>>,
    kafka: Option<kafka::Settings>,
    access: Access,
    hide_payloads: bool,
    streams: Arc<Semaphore>,
    /// Reads of Kafka that run at the same time.
    kafka_reads: Semaphore,
    runs: Runs,
    shutdown: CancellationToken,
}

impl Console {
    /// Starts the samplers, which end when `shutdown` is cancelled.
    pub(crate) fn start(options: ConsoleOptions, shutdown: CancellationToken) -> Self {
        let sources: Vec<Arc<Source>> = options
            .databases
            .into_iter()
            .map(|settings| Arc::new(Source::new(settings, &options.schema)))
            .collect();
        let mut samplers = JoinSet::new();
        for source in &sources {
            samplers.spawn(sampler::run(source.clone(), shutdown.clone()));
        }
        let shared = Shared {
            sources,
            kafka: options.kafka,
            access: options.access,
            hide_payloads: options.hide_payloads,
            streams: Arc::new(Semaphore::new(live::STREAMS_MAX)),
            kafka_reads: Semaphore::new(view::KAFKA_READS_MAX),
            runs: Runs::new(shutdown.clone()),
            shutdown,
        };
        Self {
            shared: Arc::new(shared),
            samplers,
        }
    }

    /// Returns the routes, all below `/console`.
    pub(crate) fn router(&self) -> Router {
        routes::router(self.shared.clone())
    }

    /// Waits for actions and samplers to end after shutdown.
    pub(crate) async fn end(mut self) {
        self.shared.runs.end().await;
        let ended = timeout(END_TIMEOUT, async {
            while self.samplers.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            tracing::debug!("a database did not respond; its sampler is abandoned");
        }
    }
}
