//! A real Postgres with a database for each service, and a real Kafka with the topics.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use sqlx::{AssertSqlSafe, PgPool};

use super::Failure;
use super::events::TOPICS;
use super::processes::NAMES;

/// Number of partitions of each topic.
pub(crate) const PARTITIONS: i32 = 4;

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
        let kafka: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", servers.brokers())
            .create()?;
        let topics =
            TOPICS.map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1)));
        kafka.create_topics(&topics, &AdminOptions::new()).await?;
        Ok(servers)
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
