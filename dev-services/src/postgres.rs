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

/// `initdb` on two busy cores takes 2 s; recovery after a kill may take longer.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What every server is given, before [`PostgresOptions::set`]. The counts leave room for many tests at once, each with slots.
const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
wal_level = logical
max_replication_slots = 40
max_wal_senders = 40
max_connections = 200
max_prepared_transactions = 20
";

/// Makes the data folder when there is none, and becomes the server. Settings are in the file, so that `ALTER SYSTEM` overrides them.
const RUN: &str = r#"
data=$1/data new=$1/new
if [ ! -d "$data" ]; then
  rm -rf "$new"
  "$2/initdb" -D "$new" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync --no-instructions || exit 1
  printf '%s\n' "$3" >>"$new/postgresql.conf" && mv "$new" "$data" || exit 1
fi
exec "$2/postgres" -D "$data"
"#;

/// How to run a private Postgres.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    fsync: bool,
    unix_socket: bool,
    bin: Option<PathBuf>,
}

impl PostgresOptions {
    /// Without fsync, on TCP alone, with logical decoding and 40 slots.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line to `postgresql.conf`; it wins over what this crate sets.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Whether commits wait for the disk. Off, which is safe against a killed server and not against a power cut.
    #[must_use]
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// Whether to listen on a Unix socket too, in [`Postgres::socket_folder`].
    #[must_use]
    pub fn unix_socket(mut self, on: bool) -> Self {
        self.unix_socket = on;
        self
    }

    /// The folder that holds `postgres` and `initdb`, in place of the newest installed one.
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

/// A Postgres of one's own: what a test may kill, pause and start again. Gone, with its data, when dropped or when the process ends.
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
    /// Starts a server with a data folder of its own and returns once it answers.
    ///
    /// # Errors
    /// When no Postgres is to be had, or it does not answer within a minute.
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
        // At the end nobody needs the data any more: QUIT skips the checkpoint.
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

    /// The URL of the superuser `postgres`, who needs no password.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The port on 127.0.0.1; it stays the same over [`start_again`](Self::start_again).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, for a [`Proxy`](crate::Proxy).
    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// The folder of the Unix socket if [`PostgresOptions::unix_socket`] asked for one: the `host` of a connection.
    pub fn socket_folder(&self) -> Option<&std::path::Path> {
        self.socket.then(|| self.keeper.folder())
    }

    /// The folder with the server's data.
    pub fn data_folder(&self) -> PathBuf {
        self.keeper.folder().join("data")
    }

    /// The last lines of the server's log.
    pub fn log_end(&self) -> String {
        self.keeper.log_end()
    }

    /// The process id of the postmaster, also of the last one that ran.
    pub fn pid(&self) -> u32 {
        self.keeper
            .pid()
            .expect("a server that was started has a process id")
    }

    /// The major version, for example 15.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Version and origin, for example `Postgres 15.18 (installed, /usr/lib/postgresql/15/bin)`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Shuts down in order: connections are ended, a checkpoint is written.
    ///
    /// # Errors
    /// When the server has not ended after 30 s.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.keeper.end_by("INT", STOP_LIMIT, SERVICE)
    }

    /// Kills the postmaster and every backend with SIGKILL, and returns when all are gone.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.keeper.kill(SERVICE)
    }

    /// Stops every process of the server with SIGSTOP: connections stay open and silent.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.keeper.pause()
    }

    /// Ends a [`pause`](Self::pause).
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.keeper.resume()
    }

    /// Starts a server that was stopped or killed, with the same port and data, and returns once it answers.
    ///
    /// # Errors
    /// When it does not answer within a minute.
    pub fn start_again(&mut self) -> Result<(), Error> {
        let port = self.port;
        self.keeper
            .start_until(SERVICE, START_LIMIT, || probe::answers(port))
    }

    pub(crate) fn keeper(&mut self) -> &mut Keeper {
        &mut self.keeper
    }
}

/// The oldest release that Tidings works with: publications learnt row filters and column lists in 15.
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
