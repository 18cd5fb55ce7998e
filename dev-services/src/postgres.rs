mod binaries;
mod probe;
mod session;
mod standby;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::keeper::{Keeper, new_folder};
use crate::port::free_port;
use crate::proxy::local;
use crate::user::User;
use crate::{Error, programs};

use self::binaries::Binaries;

const SERVICE: &str = "Postgres";

/// `initdb` takes 2 s on two busy cores. Recovery after a kill may take longer.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Settings of every server, which [`PostgresOptions::set`] can override. The limits leave room for
/// many concurrent tests with slots.
const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
wal_level = logical
max_replication_slots = 40
max_wal_senders = 40
max_connections = 200
max_prepared_transactions = 20
";

/// Creates the data folder if it does not exist, and runs the server. The settings are in a file,
/// so that `ALTER SYSTEM` overrides them.
const RUN: &str = r#"
data=$1/data new=$1/new
if [ ! -d "$data" ]; then
  rm -rf "$new"
  "$2/initdb" -D "$new" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync \
    --no-instructions || exit 1
  printf '%s\n' "$3" >>"$new/postgresql.conf" && mv "$new" "$data" || exit 1
fi
exec "$2/postgres" -D "$data"
"#;

/// Options of a private Postgres server.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    fsync: bool,
    unix_socket: bool,
    bin: Option<PathBuf>,
}

impl PostgresOptions {
    /// A server without fsync, on TCP only, with logical decoding and 40 slots.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line to `postgresql.conf`, which overrides the settings of this crate.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Sets whether commits wait for the disk. Off by default, which survives a killed server but
    /// not a power cut.
    #[must_use]
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// Sets whether to listen on a Unix socket too, in [`Postgres::socket_folder`].
    #[must_use]
    pub fn unix_socket(mut self, on: bool) -> Self {
        self.unix_socket = on;
        self
    }

    /// Sets the folder that contains `postgres` and `initdb`. Defaults to the newest installed
    /// version.
    #[must_use]
    pub fn bin(mut self, folder: impl Into<PathBuf>) -> Self {
        self.bin = Some(folder.into());
        self
    }

    fn file(&self, port: u16, socket_folder: &str) -> String {
        let socket_folder = if self.unix_socket { socket_folder } else { "" };
        let mut file = format!(
            "{SETTINGS}port = {port}\nfsync = {}\nunix_socket_directories = {}\n",
            self.fsync,
            quoted(socket_folder)
        );
        for (name, value) in &self.settings {
            file.push_str(&format!("{name} = {}\n", quoted(value)));
        }
        file
    }
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A private Postgres server that a test may kill, pause and restart. It is removed with its data
/// on drop and when the process ends.
#[derive(Debug)]
pub struct Postgres {
    keeper: Keeper,
    port: u16,
    socket: bool,
    bin: PathBuf,
    version: u32,
    description: String,
}

impl Postgres {
    /// Starts a server with its own data folder. Returns when it responds.
    ///
    /// # Errors
    ///
    /// Returns an error if Postgres is not available, or if it does not respond within a minute.
    pub fn start(options: PostgresOptions) -> Result<Self, Error> {
        let binaries = Binaries::find(options.bin.as_deref())?;
        crate::retry_if_port_is_taken(|| Self::launch(&binaries, &options))
    }

    fn launch(binaries: &Binaries, options: &PostgresOptions) -> Result<Self, Error> {
        let (user, port) = (User::to_become(), free_port());
        let folder = new_folder("postgres");
        let mut command: Vec<OsString> = ["sh", "-c", RUN, "postgres"].map(OsString::from).into();
        command.extend([
            folder.as_os_str().to_owned(),
            binaries.folder.as_os_str().to_owned(),
        ]);
        command.push(options.file(port, &folder.to_string_lossy()).into());
        // QUIT skips the checkpoint, because the data is not needed after the end.
        let keeper = Keeper::new(folder, user, "QUIT", 10, command)?;
        let (bin, version) = (binaries.folder.clone(), binaries.major());
        let mut server = Self {
            keeper,
            port,
            socket: options.unix_socket,
            bin,
            version,
            description: binaries.describe(),
        };
        server.start_again()?;
        Ok(server)
    }

    /// Returns the URL of the superuser `postgres`, who needs no password.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Returns the port on 127.0.0.1. It does not change in [`start_again`](Self::start_again).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address, for a [`Proxy`](crate::Proxy).
    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// Returns the folder of the Unix socket, which is the `host` of a connection. `None` unless
    /// [`PostgresOptions::unix_socket`] is set.
    pub fn socket_folder(&self) -> Option<&std::path::Path> {
        self.socket.then(|| self.keeper.folder())
    }

    /// Returns the folder with the server's data.
    pub fn data_folder(&self) -> PathBuf {
        self.keeper.folder().join("data")
    }

    /// Returns the last lines of the server's log.
    pub fn log_end(&self) -> String {
        self.keeper.log_end()
    }

    /// Returns the process id of the postmaster. After it has exited, it is that of the last run.
    pub fn pid(&self) -> u32 {
        self.keeper
            .pid()
            .expect("a server that was started has a process id")
    }

    /// Returns the major version, for example 15.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Returns version and origin, for example
    /// `Postgres 15.18 (installed, /usr/lib/postgresql/15/bin)`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Shuts the server down gracefully: it ends connections and writes a checkpoint.
    ///
    /// # Errors
    ///
    /// Returns an error if the server has not exited after 30 s.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.keeper.end_by("INT", STOP_LIMIT, SERVICE)
    }

    /// Kills the postmaster and every backend with SIGKILL. Returns when all of them have exited.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system refuses.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.keeper.kill(SERVICE)
    }

    /// Pauses every process of the server with SIGSTOP. Connections stay open but receive no data.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system refuses.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.keeper.pause()
    }

    /// Resumes a server after [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system refuses.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.keeper.resume()
    }

    /// Starts a stopped or killed server again with the same port and data. Returns when it
    /// responds.
    ///
    /// # Errors
    ///
    /// Returns an error if it does not respond within a minute.
    pub fn start_again(&mut self) -> Result<(), Error> {
        let (port, data) = (self.port, self.data_folder());
        self.keeper
            .start_until(SERVICE, START_LIMIT, || probe::answers(port, &data))
    }

    /// Returns `true` if this server opens sessions on its port.
    fn answers(&self) -> bool {
        probe::answers(self.port, &self.data_folder())
    }

    pub(crate) fn keeper(&mut self) -> &mut Keeper {
        &mut self.keeper
    }
}

/// Tidings requires 15, the first version with row filters and column lists in publications.
fn usable(version: &[u32]) -> bool {
    version >= [15].as_slice()
}

fn installed_version(folder: &std::path::Path) -> Option<Vec<u32>> {
    if !folder.join("initdb").is_file() {
        return None;
    }
    let version = programs::version(&programs::ask(&folder.join("postgres"), &["--version"])?);
    usable(&version).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_the_caller_comes_last_and_is_quoted() {
        let options = PostgresOptions::new()
            .set("wal_level", "replica")
            .set("log_line_prefix", "it's");
        let file = options.file(5432, "/tmp/x");
        assert!(
            file.contains("port = 5432\nfsync = false\nunix_socket_directories = ''\n"),
            "{file}"
        );
        assert!(
            file.ends_with("wal_level = 'replica'\nlog_line_prefix = 'it''s'\n"),
            "{file}"
        );
        assert!(
            options
                .unix_socket(true)
                .file(1, "/tmp/x")
                .contains("unix_socket_directories = '/tmp/x'")
        );
    }

    #[test]
    fn postgres_15_is_new_enough_and_14_is_not() {
        assert!(usable(&[15, 0]) && usable(&[18]));
        assert!(!usable(&[14, 19]) && !usable(&[]));
    }
}
