use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, cache, maven, programs};

/// Folders in which packages install `postgres` and `initdb`, which are seldom in PATH. One `*` per
/// line; the newest version comes first.
const FOLDERS: [&str; 7] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/local/pgsql/bin",
];

/// Release of Zonky's jars that is downloaded if no Postgres is installed.
const FETCHED: &str = "18.1.0";

const REMEDY: &str = "apt-get install postgresql (Debian, Ubuntu), \
    brew install postgresql@18 (macOS), start Docker, install Maven to download it, \
    or set DATABASE_URL to a server with wal_level=logical";

/// The programs of a Postgres installation.
#[derive(Debug)]
pub(super) struct Binaries {
    pub(super) folder: PathBuf,
    version: Vec<u32>,
    fetched: bool,
}

impl Binaries {
    /// Finds Postgres in `wish`, as set in the environment, installed, or downloaded, in this
    /// order.
    pub(super) fn find(wish: Option<&Path>) -> Result<Self, Error> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(folder) = wish
            .map(Path::to_owned)
            .or(set("TIDINGS_POSTGRES_BIN").map(PathBuf::from))
        {
            let what = format!("Postgres 15 or newer in {}", folder.display());
            return Self::in_folder(folder).ok_or_else(|| {
                Error::missing(what, "the folder must hold `postgres` and `initdb`")
            });
        }
        if let Some(release) = set("TIDINGS_POSTGRES_RELEASE") {
            return Self::fetch(&release.to_string_lossy());
        }
        let folders = FOLDERS
            .iter()
            .flat_map(|pattern| programs::folders(pattern))
            .chain(programs::path());
        match folders.into_iter().find_map(Self::in_folder) {
            Some(installed) => Ok(installed),
            None => Self::fetch(FETCHED),
        }
    }

    fn in_folder(folder: PathBuf) -> Option<Self> {
        super::installed_version(&folder).map(|version| Self {
            folder,
            version,
            fetched: false,
        })
    }

    /// Returns the major version.
    pub(super) fn major(&self) -> u32 {
        self.version.first().copied().unwrap_or_default()
    }

    pub(super) fn describe(&self) -> String {
        let origin = if self.fetched {
            "fetched by mvn".to_owned()
        } else {
            format!("installed, {}", self.folder.display())
        };
        format!("Postgres {} ({origin})", programs::dotted(&self.version))
    }

    /// Downloads the three programs and their libraries, which Zonky publishes as jars for every
    /// platform.
    fn fetch(release: &str) -> Result<Self, Error> {
        let missing = || Error::missing("Postgres 15 or newer", REMEDY);
        let platform = platform()
            .filter(|_| programs::is_installed("mvn") && programs::is_installed("tar"))
            .ok_or_else(missing)?;
        let root = cache::entry(&format!("postgres-{release}"), |part| {
            std::fs::create_dir_all(part)
                .map_err(Error::system(format!("create {}", part.display())))?;
            let artifact =
                format!("io.zonky.test.postgres:embedded-postgres-binaries-{platform}:{release}");
            let out = format!("-DoutputDirectory={}", part.display());
            maven::run(
                &format!("Postgres {release}"),
                part,
                "unpack",
                &[format!("-Dartifact={artifact}"), out],
            )?;
            unpack(part)
        })?;
        Self::in_folder(root.join("bin"))
            .map(|found| Self {
                fetched: true,
                ..found
            })
            .ok_or_else(missing)
    }
}

fn platform() -> Option<String> {
    let system = match std::env::consts::OS {
        "linux" => "linux",
        "macos" => "darwin",
        _ => return None,
    };
    let processor = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64v8",
        _ => return None,
    };
    let musl = if cfg!(target_env = "musl") {
        "-alpine"
    } else {
        ""
    };
    Some(format!("{system}-{processor}{musl}"))
}

/// Unpacks the single `*.txz` of the jar.
fn unpack(folder: &Path) -> Result<(), Error> {
    let files =
        std::fs::read_dir(folder).map_err(Error::system(format!("read {}", folder.display())))?;
    let archive = files
        .flatten()
        .map(|file| file.path())
        .find(|path| path.extension().is_some_and(|end| end == "txz"));
    let what = "Postgres".to_owned();
    let Some(archive) = archive else {
        return Err(Error::Fetch {
            what,
            output: "the jar contains no archive".to_owned(),
        });
    };
    let tar = Command::new("tar")
        .arg("-xJf")
        .arg(&archive)
        .arg("-C")
        .arg(folder)
        .output()
        .map_err(Error::system("run `tar`"))?;
    if !tar.status.success() {
        return Err(Error::Fetch {
            what,
            output: format!(
                "{} (is `xz` installed?)",
                String::from_utf8_lossy(&tar.stderr)
            ),
        });
    }
    let _ = std::fs::remove_file(archive);
    Ok(())
}
