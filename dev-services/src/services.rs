use std::cell::OnceCell;
use std::env;
use std::sync::OnceLock;
use std::thread;

use crate::choice::{Choice, choose};
use crate::compose::{self, Compose};
use crate::{Error, Kafka, KafkaOptions, Postgres, PostgresOptions};

/// The shared pair of servers. The servers that it started are removed on drop and when the process
/// ends.
#[derive(Debug)]
pub struct Services {
    postgres: Option<Postgres>,
    kafka: Option<Kafka>,
    compose: Option<Compose>,
    database_url: String,
    brokers: String,
    description: String,
}

impl Services {
    /// Returns the services of this process. The first call starts them, as [`start`](Self::start)
    /// does. They end with the process.
    ///
    /// # Errors
    ///
    /// Returns the error of the first call.
    pub fn shared() -> Result<&'static Self, &'static Error> {
        static SHARED: OnceLock<Result<Services, Error>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// Starts the services that the environment does not provide, concurrently. Returns when all of
    /// them respond.
    ///
    /// # Errors
    ///
    /// Returns an error with a remedy if a service is not available on this machine or does not
    /// start.
    pub fn start() -> Result<Self, Error> {
        let given = |name| env::var(name).ok();
        Self::start_missing(given("DATABASE_URL"), given("KAFKA_BROKERS"))
    }

    /// Starts the services without an address, concurrently. `None` and an empty text are no
    /// address. Returns when all of them respond.
    ///
    /// # Errors
    ///
    /// Returns an error with a remedy if a service is not available on this machine or does not
    /// start.
    pub fn start_missing(
        database_url: Option<String>,
        brokers: Option<String>,
    ) -> Result<Self, Error> {
        let wish = env::var("TIDINGS_DEV_SERVICES").ok();
        let docker = OnceCell::new();
        let choose = |address| {
            choose(address, wish.as_deref(), || {
                *docker.get_or_init(compose::answers)
            })
        };
        let (postgres, kafka) = (choose(database_url), choose(brokers));

        let (own_postgres, own_kafka, compose) = thread::scope(|scope| {
            let own_postgres = scope.spawn(|| {
                (postgres == Choice::Programs)
                    .then(|| Postgres::start(PostgresOptions::new()))
                    .transpose()
            });
            let own_kafka = scope.spawn(|| {
                (kafka == Choice::Programs)
                    .then(|| Kafka::start(KafkaOptions::new()))
                    .transpose()
            });
            let compose = Compose::start(postgres == Choice::Compose, kafka == Choice::Compose);
            (
                own_postgres.join().expect("starting does not panic"),
                own_kafka.join().expect("starting does not panic"),
                compose,
            )
        });
        let (own_postgres, own_kafka) = match (own_postgres, own_kafka) {
            (Ok(postgres), Ok(kafka)) => (postgres, kafka),
            (Err(postgres), Err(kafka)) => return Err(postgres.and(kafka)),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let compose = compose?;
        let in_compose = || {
            compose
                .as_ref()
                .expect("compose is started if it is chosen")
        };

        let (database_url, postgres_is) = match (&own_postgres, postgres) {
            (Some(server), _) => (server.url(), server.describe().to_owned()),
            (None, Choice::Environment(url)) => (url, "Postgres (runs already)".to_owned()),
            (None, _) => (
                in_compose().database_url(),
                "Postgres (docker compose)".to_owned(),
            ),
        };
        let (brokers, kafka_is) = match (&own_kafka, kafka) {
            (Some(broker), _) => (broker.brokers(), broker.describe().to_owned()),
            (None, Choice::Environment(brokers)) => (brokers, "Kafka (runs already)".to_owned()),
            (None, _) => (in_compose().brokers(), "Kafka (docker compose)".to_owned()),
        };
        let description = format!("{postgres_is}\n{kafka_is}");
        Ok(Self {
            postgres: own_postgres,
            kafka: own_kafka,
            compose,
            database_url,
            brokers,
            description,
        })
    }

    /// Returns the URL of a superuser, for example `postgres://postgres@127.0.0.1:17012/postgres`.
    pub fn database_url(&self) -> String {
        self.database_url.clone()
    }

    /// Returns the address for `bootstrap.servers`, for example `127.0.0.1:17013`.
    pub fn brokers(&self) -> String {
        self.brokers.clone()
    }

    /// Describes version and source of the services, one per line.
    pub fn describe(&self) -> String {
        self.description.clone()
    }

    /// Makes the servers wait up to 10 s for the process `pid` to exit when this process ends. On
    /// Ctrl-C, both receive the signal, and a program that drains still needs its database.
    ///
    /// # Errors
    ///
    /// Returns an error if a keeper has exited.
    pub fn outlast(&mut self, pid: u32) -> Result<(), Error> {
        let postgres = self.postgres.iter_mut().map(Postgres::keeper);
        let kafka = self.kafka.iter_mut().map(Kafka::keeper);
        let compose = self.compose.iter_mut().map(Compose::keeper);
        postgres
            .chain(kafka)
            .chain(compose)
            .try_for_each(|keeper| keeper.outlast(pid))
    }
}
