//! A real Postgres with a database for each service, and a real Kafka with the topics.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use sqlx::{AssertSqlSafe, PgPool};

use super::Failure;
use super::events::TOPICS;
use super::processes::NAMES;

/// Number of partitions of each topic.
pub(crate) const PARTITIONS: i32 = 4;

/// Time limit for the creation of the topics.
const LIMIT: Duration = Duration::from_secs(60);

/// Both servers. Those that were started here are removed on drop.
pub(crate) struct Servers {
    services: dev_services::Services,
    admin: PgPool,
}

impl Servers {
    pub(crate) async fn start() -> Result<Self, Failure> {
        let services = tokio::task::spawn_blocking(dev_services::Services::start).await??;
        let admin = PgPool::connect(&services.database_url()).await?;
        let servers = Self { services, admin };
        // Removes the databases of an earlier shop on existing servers.
        servers.clear().await?;
        for name in NAMES {
            sqlx::query(AssertSqlSafe(format!("create database shop_{name}")))
                .execute(&servers.admin)
                .await?;
        }
        servers.replace_topics().await?;
        Ok(servers)
    }

    /// Creates the topics. Deletes those of an earlier shop on existing servers first: the members
    /// of that shop may not have committed their last offsets, and its events belong to databases
    /// that no longer exist.
    async fn replace_topics(&self) -> Result<(), Failure> {
        let kafka: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", self.brokers())
            .create()?;
        for deleted in kafka.delete_topics(&TOPICS, &AdminOptions::new()).await? {
            match deleted {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((topic, error)) => {
                    return Err(format!("topic {topic} cannot be deleted: {error}").into());
                }
            }
        }
        let (mut missing, until) = (TOPICS.map(str::to_owned).to_vec(), Instant::now() + LIMIT);
        loop {
            let topics: Vec<NewTopic<'_>> = missing
                .iter()
                .map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1)))
                .collect();
            let created = kafka.create_topics(&topics, &AdminOptions::new()).await?;
            let refused: Vec<(String, RDKafkaErrorCode)> =
                created.into_iter().filter_map(Result::err).collect();
            if refused.is_empty() {
                return Ok(());
            }
            // The deletion of a topic may not have reached every broker yet.
            if Instant::now() > until {
                return Err(format!("topics cannot be created: {refused:?}").into());
            }
            missing = refused.into_iter().map(|(topic, _)| topic).collect();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn describe(&self) -> String {
        self.services.describe()
    }

    pub(crate) fn brokers(&self) -> String {
        self.services.brokers()
    }

    /// Returns the URL of a service's database.
    pub(crate) fn database_url(&self, name: &str) -> String {
        let mut url: url::Url = self
            .services
            .database_url()
            .parse()
            .expect("the servers' address is a URL");
        url.set_path(&format!("shop_{name}"));
        url.into()
    }

    /// Removes the databases, and the replication slots of their relays.
    pub(crate) async fn clear(&self) -> Result<(), Failure> {
        let slots = "select pg_terminate_backend(active_pid, 5000), \
            pg_drop_replication_slot(slot_name) \
            from pg_replication_slots where slot_name like 'tidings_shop_%'";
        sqlx::query(slots).execute(&self.admin).await?;
        for name in NAMES {
            sqlx::query(AssertSqlSafe(format!(
                "drop database if exists shop_{name} with (force)"
            )))
            .execute(&self.admin)
            .await?;
        }
        Ok(())
    }
}
