use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Error;
use crate::keeper::{Keeper, new_folder};
use crate::port::free_port;

const SERVICE: &str = "docker compose";

/// The containers. The crate contains the file, so that it can be used without the repository.
const FILE: &str = include_str!("../docker-compose.yml");

/// Long enough to pull images on the first start.
const START_LIMIT: Duration = Duration::from_secs(600);

/// Starts containers, waits for their health checks, creates the file `ready`, and removes the
/// containers on SIGTERM.
const RUN: &str = r#"
folder=$1 project=$2 file=$3
shift 3
down() {
  docker compose --project-name "$project" --file "$file" down --volumes --timeout 2
}
trap 'trap "" TERM; kill $up; down; exit 0' TERM
# In the background, because only `wait` can be interrupted by a signal.
docker compose --project-name "$project" --file "$file" up --detach --wait "$@" & up=$!
wait $up || { down; exit 1; }
echo >"$folder/ready"
while :; do sleep 3600 & wait $!; done
"#;

/// Containers of this process only: their ports and the project name are unique.
#[derive(Debug)]
pub(crate) struct Compose {
    keeper: Keeper,
    postgres_port: u16,
    kafka_port: u16,
}

/// Returns `true` if a Docker engine responds. A client without an engine is common.
pub(crate) fn answers() -> bool {
    let succeeds = |arguments: &[&str]| {
        let mut docker = Command::new("docker");
        docker
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        docker.status().is_ok_and(|status| status.success())
    };
    succeeds(&["info"]) && succeeds(&["compose", "version"])
}

impl Compose {
    /// Returns `None` if neither service is wanted.
    pub(crate) fn start(postgres: bool, kafka: bool) -> Result<Option<Self>, Error> {
        let wanted: Vec<_> = [("postgres", postgres), ("kafka", kafka)]
            .iter()
            .filter(|(_, wanted)| *wanted)
            .map(|(name, _)| *name)
            .collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let (postgres_port, kafka_port) = (free_port(), free_port());
        let folder = new_folder("compose");
        let (ready, file) = (folder.join("ready"), folder.join("docker-compose.yml"));
        let ports = [
            format!("POSTGRES_PORT={postgres_port}"),
            format!("KAFKA_PORT={kafka_port}"),
        ];
        let project = format!("tidings-{}-{postgres_port}", std::process::id());
        let mut command: Vec<OsString> = vec!["env".into()];
        command.extend(ports.map(OsString::from));
        command.extend(["sh", "-c", RUN, "compose"].map(OsString::from));
        command.extend([
            folder.clone().into_os_string(),
            project.into(),
            file.clone().into_os_string(),
        ]);
        command.extend(wanted.iter().map(OsString::from));

        // Two minutes, because containers would remain if their removal were interrupted.
        let mut keeper = Keeper::new(folder, None, "TERM", 120, command)?;
        std::fs::write(&file, FILE).map_err(Error::system(format!("write {}", file.display())))?;
        eprintln!("starting {} with docker compose", wanted.join(" and "));
        keeper.start_until(SERVICE, START_LIMIT, || ready.exists())?;
        Ok(Some(Self {
            keeper,
            postgres_port,
            kafka_port,
        }))
    }

    pub(crate) fn database_url(&self) -> String {
        format!(
            "postgres://postgres:postgres@127.0.0.1:{}/postgres",
            self.postgres_port
        )
    }

    pub(crate) fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.kafka_port)
    }

    pub(crate) fn keeper(&mut self) -> &mut Keeper {
        &mut self.keeper
    }
}
