//! One Postgres and one Kafka for a whole run.

use dev_services::{Kafka, KafkaOptions, Postgres, PostgresOptions};

use super::Outcome;

/// Both servers, sized so that neither checkpoints nor the first compiler tier of the JVM affect a
/// comparison.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) kafka: Kafka,
}

impl Servers {
    /// Starts both servers.
    pub(crate) fn start() -> Outcome<Self> {
        Self::start_with(&[])
    }

    /// Starts both servers as [`start`](Self::start) does, with more settings for Postgres.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Outcome<Self> {
        let postgres = PostgresOptions::new()
            .set("max_wal_size", "32GB")
            .set("checkpoint_timeout", "1h")
            .set("shared_buffers", "512MB")
            .set("autovacuum", "off")
            .set("jit", "off");
        let postgres = settings.iter().fold(postgres, |postgres, (name, value)| {
            postgres.set(*name, *value)
        });
        let kafka = KafkaOptions::new()
            .jvm("-Xmx1g")
            .jvm("-Xms1g")
            .jvm("-XX:TieredStopAtLevel=4")
            .set("log.segment.bytes", "1073741824");
        Ok(Self {
            postgres: Postgres::start(postgres)?,
            kafka: Kafka::start(kafka)?,
        })
    }

    /// Returns the URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        let url = self.postgres.url();
        let (server, _) = url.rsplit_once('/').expect("the URL has a database name");
        format!("{server}/{database}")
    }

    /// Describes both servers, one per line.
    pub(crate) fn describe(&self) -> String {
        format!("{}\n{}", self.postgres.describe(), self.kafka.describe())
    }
}
