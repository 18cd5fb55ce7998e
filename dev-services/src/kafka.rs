mod acl;
mod cluster;
mod jars;
mod node;
mod probe;
mod topic;

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::java::{self, Java};
use crate::keeper::{Keeper, new_folder};
use crate::proxy::local;
use crate::{Error, Proxy, programs};

use self::node::Node;

pub use self::acl::{Acl, AclOperation, AclResource};
pub use self::cluster::KafkaCluster;
pub use self::topic::Topic;

const SERVICE: &str = "Kafka";
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Properties of every broker, which [`KafkaOptions::set`] can override.
///
/// - Topics are not created automatically. Eight partitions prevent accidental order across keys.
/// - Kafka's internal topics are small, and the first member of a group does not wait 3 s for
///   others.
/// - A killed broker can register again once its old session expires, after 3 s instead of 9 s.
/// - The cleaner's default buffer of 128 MB would be half of the heap.
const PROPERTIES: &str = "\
process.roles=broker,controller
controller.listener.names=CONTROLLER
auto.create.topics.enable=false
num.partitions=8
default.replication.factor=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
log.cleaner.dedupe.buffer.size=1048577
";

/// JVM settings for tests: the broker starts within a second and takes 150 MB. The C2 compiler and
/// a parallel collector would cost more than they gain.
const JVM: [&str; 5] = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
];

/// Options of a private Kafka broker.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    properties: Vec<(String, String)>,
    jvm: Vec<String>,
    environment: Vec<(String, OsString)>,
    proxied: bool,
}

impl KafkaOptions {
    /// A single broker that is its own controller, on 127.0.0.1, without automatic topic creation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line to `server.properties`, which overrides the settings of this crate.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// Adds an argument for the JVM, for example `-Xmx1g`, which overrides those of this crate.
    #[must_use]
    pub fn jvm(mut self, argument: impl Into<String>) -> Self {
        self.jvm.push(argument.into());
        self
    }

    /// Adds an environment variable for the broker's process.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets whether clients can also connect through a [`Proxy`]: [`Kafka::proxy`],
    /// [`Kafka::proxied_brokers`].
    #[must_use]
    pub fn proxied(mut self, on: bool) -> Self {
        self.proxied = on;
        self
    }

    fn file(&self, node: &Node, data: &Path) -> String {
        let mut file = format!(
            "{PROPERTIES}{}log.dirs={}\n",
            node.properties(),
            data.display()
        );
        for (name, value) in &self.properties {
            file.push_str(&format!("{name}={value}\n"));
        }
        file
    }
}

/// A private Kafka broker that a test may kill, pause and restart. It is removed with its data on
/// drop and when the process ends.
#[derive(Debug)]
pub struct Kafka {
    keeper: Keeper,
    port: u16,
    cluster: String,
    proxy: Option<Proxy>,
    description: String,
}

/// The programs of a broker, located once for several brokers.
#[derive(Debug)]
struct Parts {
    java: Java,
    jars: PathBuf,
    /// JVM argument for the archive of Kafka's classes.
    archive: Option<String>,
}

impl Parts {
    fn find() -> Result<Self, Error> {
        let java = Java::find()?;
        let jars = jars::fetch()?;
        let archive = jars::class_archive(&jars, &java)?;
        let archive = archive.map(|archive| format!("-XX:SharedArchiveFile={}", archive.display()));
        Ok(Self {
            java,
            jars,
            archive,
        })
    }
}

impl Kafka {
    /// Starts a broker with its own data folder. Returns when it responds and its internal topics
    /// exist.
    ///
    /// # Errors
    ///
    /// Returns an error if Java or Kafka is not available, or if the broker does not respond within
    /// a minute.
    pub fn start(options: KafkaOptions) -> Result<Self, Error> {
        let parts = Parts::find()?;
        crate::retry_if_port_is_taken(|| Self::launch(&parts, &options))
    }

    fn launch(parts: &Parts, options: &KafkaOptions) -> Result<Self, Error> {
        let proxy = options.proxied.then(node::proxy).transpose()?;
        let mut broker = Self::prepare(parts, options, &Node::alone(proxy.as_ref()), proxy)?;
        broker.start_again()?;
        Ok(broker)
    }

    /// Creates the folder and the configuration of a broker without starting it.
    fn prepare(
        parts: &Parts,
        options: &KafkaOptions,
        node: &Node,
        proxy: Option<Proxy>,
    ) -> Result<Self, Error> {
        let Parts {
            java,
            jars,
            archive,
        } = parts;
        let folder = new_folder("kafka");
        let (data, properties) = (folder.join("data"), folder.join("server.properties"));
        let mut command = Vec::new();
        if !options.environment.is_empty() {
            // `env` replaces itself with the broker, so the process id stays.
            command.push("env".into());
            for (name, value) in &options.environment {
                let mut variable = OsString::from(format!("{name}="));
                variable.push(value);
                command.push(variable);
            }
        }
        command.push(java.program.as_os_str().to_owned());
        command.extend(
            JVM.iter()
                .copied()
                .chain(archive.as_deref())
                .chain(options.jvm.iter().map(String::as_str))
                .map(OsString::from),
        );
        command.extend([
            "-cp".into(),
            java::class_path(jars)?,
            "kafka.Kafka".into(),
            properties.clone().into_os_string(),
        ]);
        // SIGKILL, because the data is not needed after the end.
        let keeper = Keeper::new(folder, None, "KILL", 10, command)?;
        fs::create_dir(&data)
            .and_then(|()| fs::write(data.join("meta.properties"), node.identity()))
            .and_then(|()| fs::write(properties, options.file(node, &data)))
            .map_err(Error::system("write the broker's configuration"))?;
        let description = format!(
            "Kafka {} (fetched by mvn, Java {})",
            jars::version(),
            programs::dotted(&java.version)
        );
        Ok(Self {
            keeper,
            port: node.port,
            cluster: node.cluster.clone(),
            proxy,
            description,
        })
    }

    /// Returns the address for `bootstrap.servers`.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the port on 127.0.0.1. It does not change in [`start_again`](Self::start_again).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address for clients that take a single address.
    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// Returns the proxy between the broker and the clients of
    /// [`proxied_brokers`](Self::proxied_brokers).
    ///
    /// # Panics
    ///
    /// Panics if [`KafkaOptions::proxied`] is not set.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("KafkaOptions::proxied is set")
    }

    /// Returns the address for `bootstrap.servers` of clients that connect through
    /// [`proxy`](Self::proxy). The broker advertises the same address, so that they never bypass
    /// the proxy.
    ///
    /// # Panics
    ///
    /// Panics if [`KafkaOptions::proxied`] is not set.
    pub fn proxied_brokers(&self) -> String {
        self.proxy().address().to_string()
    }

    /// Returns the last lines of the broker's log, which contains only errors.
    pub fn log_end(&self) -> String {
        self.keeper.log_end()
    }

    /// Returns the process id of the broker. After it has exited, it is that of the last run.
    pub fn pid(&self) -> u32 {
        self.keeper
            .pid()
            .expect("a server that was started has a process id")
    }

    /// Returns version and origin, for example `Kafka 4.2.2 (fetched by mvn, Java 17.0.15)`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Adds an access-control entry. The broker's authorizer must allow anonymous clients to do so.
    ///
    /// # Errors
    ///
    /// Returns an error if the broker does not respond or refuses.
    pub fn create_acl(&self, acl: &Acl) -> Result<(), Error> {
        acl.create(self.address())
    }

    /// Removes an access-control entry.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`create_acl`](Self::create_acl).
    pub fn delete_acl(&self, acl: &Acl) -> Result<(), Error> {
        acl.delete(self.address())
    }

    /// Shuts the broker down gracefully.
    ///
    /// # Errors
    ///
    /// Returns an error if the broker has not exited after a minute.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.keeper.end_by("TERM", STOP_LIMIT, SERVICE)
    }

    /// Kills the broker with SIGKILL.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system refuses.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.keeper.kill(SERVICE)
    }

    /// Pauses the broker with SIGSTOP. Connections stay open but receive no data.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system refuses.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.keeper.pause()
    }

    /// Resumes a broker after [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system refuses.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.keeper.resume()
    }

    /// Starts a stopped or killed broker again with the same port and data. Returns when it
    /// responds.
    ///
    /// # Errors
    ///
    /// Returns an error if it does not respond within a minute.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.keeper.start_until(SERVICE, START_LIMIT, || {
            probe::answers(self.port, &self.cluster)
        })
    }

    /// Returns `true` if this broker responds on its port.
    fn answers(&self) -> bool {
        probe::answers(self.port, &self.cluster)
    }

    /// Returns `true` if the broker's process is running.
    pub fn is_running(&self) -> bool {
        self.keeper.pid().is_some() && self.keeper.ended().is_none()
    }

    pub(crate) fn keeper(&mut self) -> &mut Keeper {
        &mut self.keeper
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_of_the_caller_comes_last() {
        let node = Node::alone(None);
        let file = KafkaOptions::new()
            .set("num.partitions", "1")
            .file(&node, Path::new("/data"));
        assert!(
            file.contains("num.partitions=8\n")
                && file.ends_with("log.dirs=/data\nnum.partitions=1\n"),
            "{file}"
        );
    }
}
