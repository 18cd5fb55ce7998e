//! Kafka's jars, and the class archive that halves the start-up time of the JVM.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::java::{self, Java};
use crate::{Error, cache, programs};

use super::{Kafka, KafkaOptions, Parts, SERVICE};

const POM: &str = include_str!("../../kafka/pom.xml");

/// Returns the version in `kafka/pom.xml`.
pub(super) fn version() -> &'static str {
    let (_, rest) = POM
        .split_once("<kafka.version>")
        .expect("the pom contains Kafka's version");
    rest.split_once('<').expect("the pom is well-formed").0
}

/// Returns the folder with Kafka's jars, which take 44 MB and are downloaded once.
pub(super) fn fetch() -> Result<PathBuf, Error> {
    java::jars(&format!("kafka-{}", version()), POM)
}

/// Returns the archive of the parsed classes that a broker loads (JEP 350). The first broker that
/// runs on this machine creates it.
///
/// Returns `None` if that fails, because a broker without the archive only starts more slowly.
pub(super) fn class_archive(jars: &Path, java: &Java) -> Result<Option<PathBuf>, Error> {
    let name = format!(
        "kafka-{}-java-{}.jsa",
        version(),
        programs::dotted(&java.version)
    );
    let made = cache::entry(&name, |part| {
        let record = format!("-XX:ArchiveClassesAtExit={}", part.display());
        let parts = Parts {
            java: java.clone(),
            jars: jars.to_owned(),
            archive: Some(record),
        };
        let launch = || Kafka::launch(&parts, &KafkaOptions::new());
        let broker = crate::retry_if_port_is_taken(launch)?;
        broker
            .keeper
            .end_by("TERM", Duration::from_secs(120), SERVICE)
    });
    match made {
        Ok(archive) => Ok(Some(archive)),
        Err(error @ Error::Start { .. }) => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_compose_runs_the_same_kafka() {
        let compose = include_str!("../../../docker-compose.yml");
        assert!(
            compose.contains(&format!("image: apache/kafka:{}\n", version())),
            "{} is not in docker-compose.yml",
            version()
        );
    }
}
