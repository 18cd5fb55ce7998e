//! One run of `tidings try`: its schema, its topic, its relay, and their removal.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::Utc;
use sqlx::AssertSqlSafe;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::orders::{Counts, Orders};
use super::servers::Servers;
use super::text::{Names, commands};
use crate::cli::config::Config;
use crate::cli::exit::{Failure, with_causes};
use crate::cli::relay::{ended_by, failure};
use crate::cli::tail::{EventFilter, print_records};
use crate::cli::{brokers, database, migrate, output};
use crate::kafka::{Creation, Partition, create_topic, delete_topic};
use crate::operator::{OperatorError, forget};
use crate::postgres::DatabaseSettings;
use crate::relay::{Relay, RelayError};
use crate::task::OwnedTask;

/// Partitions of the topic: more than one, so that the order per aggregate is visible.
const PARTITIONS: i32 = 3;

/// Maximum time without an event that arrives while committed events are outstanding. The first
/// start of a relay takes the longest.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Time for the relay to drain, beyond its own grace.
const BEYOND_GRACE: Duration = Duration::from_secs(2);

/// Time for which the removal waits until the lease of the relay is free.
const LEASE_WITHIN: Duration = Duration::from_secs(10);

/// Interval of checks.
const LOOK: Duration = Duration::from_millis(50);

/// Task of the relay.
type RelayTask = OwnedTask<Result<(), RelayError>>;

/// Task that prints the events.
type PrintingTask = OwnedTask<Result<(), Failure>>;

/// One run.
pub(super) struct Session {
    /// The configuration with the servers and the names of this run.
    pub(super) config: Config,
    own_url: Option<String>,
    /// A relay was started, so it may have a slot and a topic.
    has_relay: AtomicBool,
}

/// Progress of the thread that prints.
#[derive(Default)]
struct Arrivals {
    count: AtomicU64,
    /// The thread must end.
    is_over: AtomicBool,
}

impl Session {
    /// Names a run. Schema, relay and topic have the same name, which no earlier run has.
    pub(super) fn new(config: &Config, servers: &Servers) -> Self {
        let name = format!("tidings_try_{:x}", Utc::now().timestamp_micros());
        let mut config = config.clone();
        config.database = Some(servers.database.clone());
        config.kafka = Some(servers.kafka.clone());
        (config.name, config.schema, config.topic) = (name.clone(), name.clone(), name);
        config.topics.create = false;
        (config.debezium, config.topic_rewrite) = (None, None);
        Self {
            config,
            own_url: servers.own_url.clone(),
            has_relay: AtomicBool::new(false),
        }
    }

    pub(super) fn database(&self) -> Result<&DatabaseSettings, Failure> {
        database::settings(&self.config)
    }

    /// Creates the tables and the topic.
    pub(super) async fn create(&self) -> Result<(), Failure> {
        migrate::apply(&self.config, None).await?;
        let creation = Creation {
            partitions: Some(PARTITIONS),
            ..Creation::default()
        };
        create_topic(
            brokers::settings(&self.config)?,
            &self.config.topic,
            creation,
        )
        .await
        .map_err(|error| Failure::failed("cannot create the topic", &error))
    }

    /// Runs a relay, publishes events, and prints each one that arrives, until `events` are
    /// committed or `stop` is cancelled. Returns when the committed events have arrived and the
    /// relay has drained.
    pub(super) async fn publish(
        &self,
        events: Option<u64>,
        rate: u32,
        stop: &CancellationToken,
    ) -> Result<Counts, Failure> {
        let pool = database::open(&self.config, "try").await?.pool;
        let mut orders = Orders::new(pool, &self.config.schema);
        let first = orders.commit().await?;
        output::lines(&commands(&Names {
            url: self.own_url.as_deref(),
            schema: &self.config.schema,
            brokers: &brokers::settings(&self.config)?.brokers,
            event: first.to_string(),
        }));
        let shutdown = CancellationToken::new();
        let relay = self.start_relay(&shutdown, stop)?;
        let (arrivals, printing) = self.start_printing(stop)?;
        let published = orders.publish(events, rate, stop).await;
        let counts = orders.counts();
        let is_over = || relay.is_finished() || printing.is_finished();
        let arrived = arrivals.until(counts.committed, is_over).await;
        arrivals.is_over.store(true, Ordering::Relaxed);
        shutdown.cancel();
        let printed = printing.await;
        let drained = timeout(self.config.shutdown_grace + BEYOND_GRACE, relay).await;
        // The error of a part that has ended early explains the others.
        match drained {
            Ok(Ok(drained)) => drained.map_err(ended_by)?,
            Ok(Err(error)) => return Err(Failure::failed("the relay failed", &error)),
            Err(_) => {
                return Err(Failure::NotDrained(
                    "the relay did not drain in time".into(),
                ));
            }
        }
        printed.map_err(|error| Failure::failed("cannot print the events", &error))??;
        published?;
        arrived?;
        Ok(counts)
    }

    /// Starts the relay. Its end requests the end of the run.
    fn start_relay(
        &self,
        shutdown: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<RelayTask, Failure> {
        let missing = || Failure::Failed("a relay requires a database and brokers".into());
        let options = self.config.relay_options().ok_or_else(missing)?;
        let relay = Relay::new(options).map_err(ended_by)?;
        self.has_relay.store(true, Ordering::Relaxed);
        let (shutdown, stop) = (shutdown.clone(), stop.clone());
        Ok(OwnedTask::spawn(async move {
            let _stop = stop.drop_guard();
            relay.run(shutdown).await
        }))
    }

    /// Starts to print the events of the topic. The end of the output requests the end of the run.
    fn start_printing(
        &self,
        stop: &CancellationToken,
    ) -> Result<(Arc<Arrivals>, PrintingTask), Failure> {
        let kafka = brokers::settings(&self.config)?.clone();
        let partition = |number| Partition {
            topic: self.config.topic.as_str().into(),
            number,
        };
        let from = (0..PARTITIONS).map(|number| (partition(number), 0));
        let from = from.collect();
        let (arrivals, stop) = (Arc::new(Arrivals::default()), stop.clone());
        let seen = arrivals.clone();
        let printing = OwnedTask::spawn(async move {
            let _stop = stop.drop_guard();
            print_records(
                &kafka,
                from,
                EventFilter::default(),
                false,
                move |printed| {
                    seen.count.store(printed, Ordering::Relaxed);
                    match seen.is_over.load(Ordering::Relaxed) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                },
            )
            .await
        });
        Ok((arrivals, printing))
    }

    /// Removes the relay, its slot and its topics, and the schema.
    ///
    /// # Errors
    ///
    /// Returns the first failure. The remaining objects are removed nevertheless, where possible.
    pub(super) async fn remove(&self) -> Result<(), Failure> {
        let kafka = brokers::settings(&self.config)?;
        let mut topics = vec![self.config.topic.clone()];
        let forgotten = match self.has_relay.load(Ordering::Relaxed) {
            true => self.forget_relay().await,
            false => Ok(None),
        };
        let failed = match forgotten {
            Ok(positions) => {
                topics.extend(positions);
                None
            }
            Err(failure) => Some(failure),
        };
        let dropped = self.drop_schema().await;
        let mut deleted = Ok(());
        for topic in topics {
            let deletion = delete_topic(kafka, &topic).await;
            let deletion = deletion.map_err(|error| Failure::Failed(with_causes(&error)));
            deleted = deleted.and(deletion.map(|_| ()));
        }
        failed.map_or(Ok(()), Err).and(dropped).and(deleted)
    }

    /// Removes the relay's row, slot and publication. Returns the topic of its positions.
    async fn forget_relay(&self) -> Result<Option<String>, Failure> {
        let Config { schema, name, .. } = &self.config;
        let pool = database::open(&self.config, "try").await?.pool;
        let mut session = pool
            .acquire()
            .await
            .map_err(|error| Failure::failed("cannot use the database", &error))?;
        let until = Instant::now() + LEASE_WITHIN;
        loop {
            match forget(&mut session, schema, name).await {
                Ok(forgotten) => return Ok(forgotten.topic),
                // The session of a relay that did not drain may still hold the lease.
                Err(OperatorError::Refused(_)) if Instant::now() < until => sleep(LOOK * 10).await,
                Err(error) => return Err(failure(&self.config, error)),
            }
        }
    }

    async fn drop_schema(&self) -> Result<(), Failure> {
        let pool = database::open(&self.config, "try").await?.pool;
        let sql = format!("drop schema if exists \"{}\" cascade", self.config.schema);
        let dropped = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await;
        dropped
            .map(|_| ())
            .map_err(|error| Failure::failed("cannot drop the schema", &error))
    }

    /// Describes the objects that remain when the removal is interrupted.
    pub(super) fn left_behind(&self) -> String {
        let name = &self.config.name;
        match &self.own_url {
            Some(_) => "exiting at once".to_owned(),
            None => format!(
                "exiting at once; schema, relay and topic {name} remain\n  \
                 -> tidings relay forget {name} --schema {name} --delete-topic\n  \
                 -> drop schema {name} cascade, and delete topic {name}"
            ),
        }
    }
}

impl Arrivals {
    /// Waits until `wanted` events have arrived, or until `is_over` returns `true`.
    ///
    /// # Errors
    ///
    /// Returns a failure if no event arrives for [`STALL_MAX`].
    async fn until(&self, wanted: u64, is_over: impl Fn() -> bool) -> Result<(), Failure> {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let count = self.count.load(Ordering::Relaxed);
            if count >= wanted || is_over() {
                return Ok(());
            }
            if count > seen {
                (seen, since) = (count, Instant::now());
            }
            if since.elapsed() > STALL_MAX {
                return Err(Failure::Failed(format!(
                    "{count} of {wanted} committed events have arrived, and none within {} s\n  \
                     -> `tidings check` reports faults of the servers",
                    STALL_MAX.as_secs()
                )));
            }
            sleep(LOOK).await;
        }
    }
}
