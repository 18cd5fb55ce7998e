//! What the five services have in common: a database, a relay for its outbox, a subscriber with an inbox, HTTP with health.

use std::future::Future;
use std::io::Read as _;

use axum::Router;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tidings::health::{DatabaseCheck, Health};
use tidings::relay::{Relay, RelayOptions, TopicOptions};
use tidings::subscriber::{HasInbox, NoState, RunError, Subscriber};
use tidings::{Bus, kafka, postgres};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Failure;

/// A service that is starting.
pub(crate) struct Service {
    name: &'static str,
    database_url: String,
    brokers: kafka::Settings,
    pub(crate) pool: PgPool,
}

impl Service {
    /// Connects to its own database, and makes Tidings' tables and its own.
    pub(crate) async fn start(name: &'static str, tables: &'static str) -> Result<Self, Failure> {
        end_with_parent();
        let database_url = std::env::var("DATABASE_URL")?;
        let brokers = kafka::Settings { brokers: std::env::var("KAFKA_BROKERS")?, ..Default::default() };
        let pool = PgPoolOptions::new().max_connections(8).connect(&database_url).await?;
        tidings::migrate(&pool).await?;
        sqlx::raw_sql(tables).execute(&pool).await?;
        Ok(Self { name, database_url, brokers, pool })
    }

    /// Give it handlers, and [`run`](Self::run) it. What a handler writes, what it publishes and that it was called are one transaction.
    pub(crate) fn subscriber(&self) -> Subscriber<(), NoState, HasInbox> {
        // With a name of its own a process that was killed gets its partitions back at once.
        Bus::new(self.brokers.clone()).subscriber(self.name).inbox(self.pool.clone()).instance_id(self.name)
    }

    /// Answers, handles and relays until one of these ends, which is a fault.
    pub(crate) async fn run(self, routes: Router, handling: impl Future<Output = Result<(), RunError>>) -> Result<(), Failure> {
        // In production `tidings relay` is a process of its own, with a standby.
        let mut options = RelayOptions::new(postgres::Settings::parse(&self.database_url)?, self.brokers);
        options.name = format!("shop_{}", self.name);
        options.event_source = format!("/shop/{}", self.name);
        options.topics = TopicOptions { create: true, partitions: Some(4), replication: None };
        let relaying = Relay::new(options)?.run(CancellationToken::new());

        let health = Health::new().check("database", DatabaseCheck::new(&self.pool));
        let listener = TcpListener::bind(std::env::var("LISTEN")?).await?;
        let ended: Result<(), Failure> = tokio::select! {
            ended = relaying => ended.map_err(Into::into),
            ended = handling => ended.map_err(Into::into),
            ended = axum::serve(listener, routes.merge(health.router())) => ended.map_err(Into::into),
        };
        ended.inspect_err(|error| eprintln!("{}: {error}", self.name))
    }
}

/// Ends this process when the one that started it is gone: its end of our standard input is closed then. As hard as kill -9, which the services
/// survive anyway.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
}
