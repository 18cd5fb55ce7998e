//! Kafka's jars, and the archive of its classes that makes the JVM start in half the time.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use crate::{Error, cache, maven, programs};

use super::java::Java;
use super::{Kafka, KafkaOptions, SERVICE};

const POM: &str = include_str!("../../kafka/pom.xml");

/// The version that `kafka/pom.xml` names.
pub(super) fn version() -> &'static str {
    let (_, rest) = POM.split_once("<kafka.version>").expect("the pom names Kafka's version");
    rest.split_once('<').expect("the pom is well-formed").0
}

/// The folder with Kafka's jars: 44 MB, fetched once.
pub(super) fn fetch() -> Result<PathBuf, Error> {
    cache::entry(&format!("kafka-{}", version()), |part| {
        fs::create_dir_all(part).map_err(Error::system(format!("create {}", part.display())))?;
        let pom = part.join("pom.xml");
        fs::write(&pom, POM).map_err(Error::system(format!("write {}", pom.display())))?;
        let out = format!("-DoutputDirectory={}", part.display());
        let arguments = ["--file".to_owned(), pom.display().to_string(), "-DincludeScope=runtime".to_owned(), out];
        maven::run(&format!("Kafka {}", version()), "copy-dependencies", &arguments)
    })
}

/// All jars, in an order that stays the same: the archive of classes is only used with the class path it was made with.
pub(super) fn class_path(jars: &Path) -> Result<OsString, Error> {
    let files = fs::read_dir(jars).map_err(Error::system(format!("read {}", jars.display())))?;
    let mut paths: Vec<_> =
        files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "jar")).collect();
    paths.sort();
    env::join_paths(paths).map_err(|error| Error::missing("a cache folder without `:` in its name", format!("set TIDINGS_CACHE ({error})")))
}

/// The classes that a broker loads, parsed once (JEP 350). Made by the first broker that ever runs; `None` when that fails, as a broker
/// without it is slower and nothing else.
pub(super) fn class_archive(jars: &Path, java: &Java) -> Result<Option<PathBuf>, Error> {
    let name = format!("kafka-{}-java-{}.jsa", version(), programs::dotted(&java.version));
    let made = cache::entry(&name, |part| {
        let record = format!("-XX:ArchiveClassesAtExit={}", part.display());
        let launch = || Kafka::launch(java, jars, Some(&record), &KafkaOptions::new());
        let broker = crate::retry_if_port_is_taken(launch)?;
        broker.keeper.end_by("TERM", Duration::from_secs(120), SERVICE)
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
        assert!(compose.contains(&format!("image: apache/kafka:{}\n", version())), "{} is not in docker-compose.yml", version());
    }
}
