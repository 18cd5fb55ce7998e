//! Servers of `tidings try`: those of the configuration, or ones that end with the command.

use std::mem::ManuallyDrop;

use dev_services::{Error, Services};

use crate::cli::config::Config;
use crate::cli::escape::escaped_lines;
use crate::cli::exit::Failure;
use crate::cli::time_limit::reported;
use crate::kafka;
use crate::postgres::DatabaseSettings;

/// Remedy for a machine on which no server can be started.
const REMEDY: &str = "start Docker, or install Postgres 15, Java 17 and Maven, or set DATABASE_URL \
                      and KAFKA_BROKERS";

/// The servers, and those of them that this process has started.
pub(super) struct Servers {
    /// Never dropped: they end with the process, because clients of the relay still close their
    /// connections after its end.
    services: ManuallyDrop<Services>,
    pub(super) database: DatabaseSettings,
    pub(super) kafka: kafka::Settings,
    /// URL of a database that this process has started. It contains no secret.
    pub(super) own_url: Option<String>,
}

impl Servers {
    /// Starts the servers that are not configured. Each has a time limit for its start.
    ///
    /// # Errors
    ///
    /// Returns a failure with a remedy if a server cannot be started.
    pub(super) async fn start(config: &Config) -> Result<Self, Failure> {
        let given = config.database.as_ref().map(DatabaseSettings::redacted);
        let brokers = config.kafka.as_ref().map(|kafka| kafka.brokers.clone());
        let is_own = given.is_none();
        let starting = tokio::task::spawn_blocking(move || Services::start_missing(given, brokers));
        let services = reported(None, starting)
            .await
            .map_err(|error| Failure::failed("cannot start the servers", &error))?
            .map_err(|error| failure(&error))?;
        let database = match &config.database {
            Some(database) => database.clone(),
            None => DatabaseSettings::parse(&services.database_url())
                .map_err(|error| Failure::failed("the URL of the started Postgres", &error))?,
        };
        let kafka = config.kafka.clone().unwrap_or_else(|| kafka::Settings {
            brokers: services.brokers(),
            ..kafka::Settings::default()
        });
        Ok(Self {
            own_url: is_own.then(|| services.database_url()),
            services: ManuallyDrop::new(services),
            database,
            kafka,
        })
    }

    /// Describes the servers, one per line.
    pub(super) fn describe(&self) -> String {
        self.services.describe() + "\n"
    }
}

/// Maps an error to a failure with its remedy.
fn failure(error: &Error) -> Failure {
    let text = error.to_string();
    let text = escaped_lines(&text);
    match error {
        Error::Missing { .. } | Error::Fetch { .. } => {
            Failure::Refused(format!("{text}\n  -> {REMEDY}"))
        }
        _ => Failure::Failed(text.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_one_line_about_the_ways_to_get_servers() {
        let missing = Error::Missing {
            what: "Java 17 or newer".into(),
            remedy: "apt-get install default-jre-headless".into(),
        };
        let Failure::Refused(text) = failure(&missing) else {
            panic!("trying again does not help");
        };
        assert!(text.starts_with("Java 17 or newer is missing"), "{text}");
        let last = text.lines().last().expect("a line");
        assert!(
            last.contains("Docker") && last.contains("DATABASE_URL") && last.contains("Maven"),
            "{text}"
        );
    }
}
