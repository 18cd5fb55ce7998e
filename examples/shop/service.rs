//! Common parts of the five services: a database, a relay for its outbox, a subscriber with an
//! inbox, and HTTP with health checks.

use std::future::Future;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tidings::health::{DatabaseCheck, Health};
use tidings::relay::{Relay, RelayOptions, TopicOptions};
use tidings::subscriber::{
    RunError, Subscriber,
    typestate::{HasInbox, NoState},
};
use tidings::{Bus, kafka, postgres};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::Failure;

/// Maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1_024;

/// A service during its start.
pub(crate) struct Service {
    name: &'static str,
    database_url: String,
    brokers: kafka::Settings,
    pub(crate) pool: PgPool,
    pub(crate) broken: Broken,
}

/// State of the page's switch that breaks a service. A broken service refuses commands and responds
/// to requests with 500. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Broken(Arc<AtomicBool>);

impl Broken {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, broken: bool) {
        self.0.store(broken, Ordering::Relaxed);
    }
}

impl Service {
    /// Connects to the service's own database and creates the tables of Tidings and of the service.
    pub(crate) async fn start(name: &'static str, tables: &'static str) -> Result<Self, Failure> {
        end_with_parent();
        let database_url = std::env::var("DATABASE_URL")?;
        let brokers = kafka::Settings {
            brokers: std::env::var("KAFKA_BROKERS")?,
            ..Default::default()
        };
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .connect(&database_url)
            .await?;
        tidings::migrate(&pool).await?;
        sqlx::raw_sql(tables).execute(&pool).await?;
        Ok(Self {
            name,
            database_url,
            brokers,
            pool,
            broken: Broken::default(),
        })
    }

    /// Returns a subscriber without handlers. Add them and pass it to [`run`](Self::run). The
    /// changes of a handler, its published events and its inbox entry are one transaction.
    pub(crate) fn subscriber<S: Send + Sync + 'static>(&self) -> Subscriber<S, NoState, HasInbox> {
        // With a fixed instance id, a restarted process gets its partitions back at once.
        Bus::new(self.brokers.clone())
            .subscriber(self.name)
            .inbox(self.pool.clone())
            .instance_id(self.name)
    }

    /// Serves HTTP, handles events and runs the relay. Returns when one of these ends, which is an
    /// error.
    pub(crate) async fn run(
        self,
        routes: Router,
        handling: impl Future<Output = Result<(), RunError>>,
    ) -> Result<(), Failure> {
        // In production, `tidings relay` is a separate process with a standby.
        let mut options = RelayOptions::new(
            postgres::DatabaseSettings::parse(&self.database_url)?,
            self.brokers,
        );
        options.name = format!("shop_{}", self.name);
        options.event_source = format!("/shop/{}", self.name);
        options.topics = TopicOptions {
            create: true,
            partitions: Some(4),
            replication: None,
        };
        let relaying = Relay::new(options)?.run(CancellationToken::new());

        let health = Health::new().check("database", DatabaseCheck::new(&self.pool));
        let switch = |broken: bool| {
            post(move |State(switch): State<Broken>| async move { switch.set(broken) })
        };
        let routes = routes.layer(from_fn_with_state(self.broken.clone(), unless_broken));
        let switches = Router::new()
            .route("/break", switch(true))
            .route("/mend", switch(false))
            .with_state(self.broken);
        let listener = listen()?;
        let ended: Result<(), Failure> = tokio::select! {
            ended = relaying => ended.map_err(Into::into),
            ended = handling => ended.map_err(Into::into),
            ended = axum::serve(
                listener, routes.merge(switches).merge(health.router())
            ) => ended.map_err(Into::into),
        };
        ended.inspect_err(|error| eprintln!("{}: {error}", self.name))
    }
}

async fn unless_broken(State(broken): State<Broken>, request: Request, next: Next) -> Response {
    if broken.is_set() {
        return (StatusCode::INTERNAL_SERVER_ERROR, "out of order\n").into_response();
    }
    next.run(request).await
}

/// Listens on the address of this service, to which a socket of the parent process is bound.
pub(crate) fn listen() -> Result<TcpListener, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(std::env::var("LISTEN")?.parse()?)?;
    Ok(socket.listen(BACKLOG)?)
}

/// Ends this process when its parent has exited, which closes this process's standard input. The
/// exit is as abrupt as SIGKILL, which the services must survive anyway.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
}
