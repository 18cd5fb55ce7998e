//! One Postgres and one Kafka for a whole run.

use dev_services::{Kafka, KafkaOptions, Postgres, PostgresOptions};

use super::Outcome;

/// The pair, with room to work: no checkpoint and no JVM in its first tier shall decide a comparison.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) kafka: Kafka,
}

impl Servers {
    /// Starts both.
    pub(crate) fn start() -> Outcome<Self> {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with more settings for Postgres.
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

    /// The URL of one database.
    pub(crate) fn url(&self, database: &str) -> String {
        let url = self.postgres.url();
        let (server, _) = url.rsplit_once('/').expect("a URL names a database");
        format!("{server}/{database}")
    }

    /// What was measured on, one line a server.
    pub(crate) fn describe(&self) -> String {
        format!("{}\n{}", self.postgres.describe(), self.kafka.describe())
    }
}
