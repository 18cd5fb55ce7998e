//! Java programs: the JVM that runs them, and the jars that Maven downloads for them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::{Error, cache, maven, programs};

/// Locations of Java installations, the newest version first.
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

const REMEDY: &str = "apt-get install default-jre-headless (Debian, Ubuntu), \
    brew install openjdk (macOS), start Docker, \
    or set KAFKA_BROKERS to the address of a running broker";

/// A Java installation that can run Kafka 4, version 17 or newer.
#[derive(Clone, Debug)]
pub struct Java {
    /// The program `java`.
    pub program: PathBuf,
    /// Its version, for example `[17, 0, 15]`.
    pub version: Vec<u32>,
}

impl Java {
    /// Returns the first suitable installation in JAVA_HOME, in PATH or in the usual locations.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Missing`] with installation instructions if there is none.
    pub fn find() -> Result<Self, Error> {
        Self::all()
            .next()
            .ok_or_else(|| Error::missing("Java 17 or newer", REMEDY))
    }

    /// Returns the newest suitable installation.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Missing`] with installation instructions if there is none.
    pub fn newest() -> Result<Self, Error> {
        Self::all()
            .max_by(|a, b| a.version.cmp(&b.version))
            .ok_or_else(|| Error::missing("Java 17 or newer", REMEDY))
    }

    fn all() -> impl Iterator<Item = Self> {
        let home = env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin"));
        let installed = HOMES
            .iter()
            .flat_map(|pattern| programs::folders(pattern))
            .map(|home| home.join("bin"));
        home.into_iter()
            .chain(programs::path())
            .chain(installed)
            .filter_map(|folder| Self::at(&folder.join("java")))
    }

    fn at(program: &Path) -> Option<Self> {
        let program = program.canonicalize().ok()?;
        // Reading the file `release` is fast; running `java -version` takes 50 ms.
        let release = program
            .ancestors()
            .nth(2)
            .and_then(|home| fs::read_to_string(home.join("release")).ok());
        let line = release.and_then(|release| {
            release
                .lines()
                .find(|line| line.starts_with("JAVA_VERSION="))
                .map(str::to_owned)
        });
        let version = programs::version(&line.or_else(|| programs::ask(&program, &["-version"]))?);
        usable(&version).then_some(Self { program, version })
    }
}

/// Returns the folder with the jars that `pom` depends on. Maven downloads them once into the cache
/// entry `name`.
///
/// # Errors
///
/// Returns an error if `mvn` is missing or the download fails.
pub fn jars(name: &str, pom: &str) -> Result<PathBuf, Error> {
    cache::entry(name, |part| {
        fs::create_dir_all(part).map_err(Error::system(format!("create {}", part.display())))?;
        let file = part.join("pom.xml");
        fs::write(&file, pom).map_err(Error::system(format!("write {}", file.display())))?;
        let out = format!("-DoutputDirectory={}", part.display());
        let arguments = [
            "--file".to_owned(),
            file.display().to_string(),
            "-DincludeScope=runtime".to_owned(),
            out,
        ];
        maven::run(name, part, "copy-dependencies", &arguments)
    })
}

/// Returns a class path with all jars of a folder in a stable order. The JVM uses a class archive
/// only with the class path with which it was created.
///
/// # Errors
///
/// Returns an error if the folder cannot be read, or if its name cannot be part of a class path.
pub fn class_path(jars: &Path) -> Result<OsString, Error> {
    let files = fs::read_dir(jars).map_err(Error::system(format!("read {}", jars.display())))?;
    let mut paths: Vec<_> = files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "jar"))
        .collect();
    paths.sort();
    env::join_paths(paths).map_err(|error| {
        Error::missing(
            "a cache folder without `:` in its name",
            format!("set TIDINGS_CACHE ({error})"),
        )
    })
}

/// Kafka 4 brokers require Java 17.
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
