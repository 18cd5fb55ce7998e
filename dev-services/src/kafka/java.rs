use std::path::{Path, PathBuf};

use crate::{Error, programs};

/// Where Java homes are, the newest version first.
const HOMES: [&str; 8] = [
    "/usr/lib/jvm/java-*",
    "/usr/lib/jvm/*",
    "/opt/homebrew/opt/openjdk",
    "/opt/homebrew/opt/openjdk@*",
    "/usr/local/opt/openjdk",
    "/usr/local/opt/openjdk@*",
    "/home/linuxbrew/.linuxbrew/opt/openjdk@*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
];

const REMEDY: &str = "apt-get install default-jre-headless (Debian, Ubuntu), brew install openjdk (macOS), start Docker, \
                      or set KAFKA_BROKERS to the address of a running broker";

/// A Java that can run Kafka 4.
#[derive(Debug)]
pub(super) struct Java {
    pub(super) program: PathBuf,
    pub(super) version: Vec<u32>,
}

impl Java {
    /// JAVA_HOME, PATH, the customary places.
    pub(super) fn find() -> Result<Self, Error> {
        let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin"));
        let installed = HOMES.iter().flat_map(|pattern| programs::folders(pattern)).map(|home| home.join("bin"));
        let folders = home.into_iter().chain(programs::path()).chain(installed);
        folders.into_iter().find_map(|folder| Self::at(&folder.join("java"))).ok_or_else(|| Error::missing("Java 17 or newer", REMEDY))
    }

    fn at(program: &Path) -> Option<Self> {
        let program = program.canonicalize().ok()?;
        // Reading the file `release` takes no time; asking takes a JVM 50 ms.
        let release = program.ancestors().nth(2).and_then(|home| std::fs::read_to_string(home.join("release")).ok());
        let line = release.and_then(|release| release.lines().find(|line| line.starts_with("JAVA_VERSION=")).map(str::to_owned));
        let version = programs::version(&line.or_else(|| programs::ask(&program, &["-version"]))?);
        usable(&version).then_some(Self { program, version })
    }
}

/// Kafka 4 brokers need Java 17.
fn usable(version: &[u32]) -> bool {
    version >= [17].as_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_17_is_new_enough_and_older_ones_are_not() {
        assert!(usable(&[17, 0, 15]) && usable(&[25]));
        assert!(!usable(&[11, 0, 2]) && !usable(&[1, 8, 0]) && !usable(&[]));
    }
}
