mod acl;
mod cluster;
mod jars;
mod node;
mod probe;

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

const SERVICE: &str = "Kafka";
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What every broker is given, before [`KafkaOptions::set`].
/// - Topics are never created by accident, and have 8 partitions so that order across keys is not there by accident either.
/// - Kafka's own topics are small, and a group's first member does not wait 3 s for others.
/// - A broker that was killed is let in again when its old session has ended: after 3 s, not 9.
/// - The cleaner's default buffer is 128 MB, half of the heap.
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

/// A broker for tests: up in a second and 150 MB. The second compiler and a parallel collector cost more than they give here.
const JVM: [&str; 5] = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
];

/// How to run a private Kafka broker.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    properties: Vec<(String, String)>,
    jvm: Vec<String>,
    proxied: bool,
}

impl KafkaOptions {
    /// One broker that is its own controller, on 127.0.0.1, without automatic topics.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line to `server.properties`; it wins over what this crate sets.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// Adds an argument for the JVM; it wins over what this crate sets, for example `-Xmx1g`.
    #[must_use]
    pub fn jvm(mut self, argument: impl Into<String>) -> Self {
        self.jvm.push(argument.into());
        self
    }

    /// Whether clients may come through a [`Proxy`] too: [`Kafka::proxy`], [`Kafka::proxied_brokers`].
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

/// A Kafka broker of one's own: what a test may kill, pause and start again. Gone, with its data, when dropped or when the process ends.
#[derive(Debug)]
pub struct Kafka {
    keeper: Keeper,
    port: u16,
    proxy: Option<Proxy>,
    description: String,
}

/// The programs that a broker is made of, found once for several.
#[derive(Debug)]
struct Parts {
    java: Java,
    jars: PathBuf,
    /// The JVM's argument for the archive of Kafka's classes.
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
    /// Starts a broker with a data folder of its own and returns once it answers and its own topics are there.
    ///
    /// # Errors
    /// When Java or Kafka is not to be had, or the broker does not answer within a minute.
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

    /// A broker with its folder and configuration, not started.
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
        let mut command = vec![java.program.as_os_str().to_owned()];
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
        // At the end nobody needs the data any more.
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
            proxy,
            description,
        })
    }

    /// The address for `bootstrap.servers`.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1; it stays the same over [`start_again`](Self::start_again).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, for a client that is given one at a time.
    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// The wire between the broker and clients that were given [`proxied_brokers`](Self::proxied_brokers).
    ///
    /// # Panics
    /// If [`KafkaOptions::proxied`] did not ask for it.
    pub fn proxy(&self) -> &Proxy {
        self.proxy
            .as_ref()
            .expect("KafkaOptions::proxied asks for a proxy")
    }

    /// The address for `bootstrap.servers` of clients that come through [`proxy`](Self::proxy), always: it is also what the broker
    /// tells them to be its own.
    ///
    /// # Panics
    /// If [`KafkaOptions::proxied`] did not ask for a proxy.
    pub fn proxied_brokers(&self) -> String {
        self.proxy().address().to_string()
    }

    /// The last lines of the broker's log: errors only.
    pub fn log_end(&self) -> String {
        self.keeper.log_end()
    }

    /// The process id of the broker, also of the last one that ran.
    pub fn pid(&self) -> u32 {
        self.keeper
            .pid()
            .expect("a server that was started has a process id")
    }

    /// Version and origin, for example `Kafka 4.2.2 (fetched by mvn, Java 17.0.15)`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Adds an access-control entry. The broker needs an authorizer that lets an anonymous client do so.
    ///
    /// # Errors
    /// When the broker does not answer or refuses.
    pub fn create_acl(&self, acl: &Acl) -> Result<(), Error> {
        acl.create(self.address())
    }

    /// Removes an access-control entry.
    ///
    /// # Errors
    /// As [`create_acl`](Self::create_acl).
    pub fn delete_acl(&self, acl: &Acl) -> Result<(), Error> {
        acl.delete(self.address())
    }

    /// Shuts down in order.
    ///
    /// # Errors
    /// When the broker has not ended after a minute.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.keeper.end_by("TERM", STOP_LIMIT, SERVICE)
    }

    /// Kills the broker with SIGKILL.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.keeper.kill(SERVICE)
    }

    /// Stops the broker with SIGSTOP: connections stay open and silent.
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

    /// Starts a broker that was stopped or killed, with the same port and data, and returns once it answers.
    ///
    /// # Errors
    /// When it does not answer within a minute.
    pub fn start_again(&mut self) -> Result<(), Error> {
        let port = self.port;
        self.keeper
            .start_until(SERVICE, START_LIMIT, || probe::answers(port))
    }

    /// Whether its process runs.
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
