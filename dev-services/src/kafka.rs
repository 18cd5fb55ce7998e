mod jars;
mod probe;

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs;
use std::hash::BuildHasher;
use std::path::Path;
use std::time::Duration;

use crate::java::{self, Java};
use crate::keeper::{Keeper, new_folder};
use crate::port::free_port;
use crate::{Error, programs};

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
const JVM: [&str; 5] =
    ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"];

/// How to run a private Kafka broker.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    properties: Vec<(String, String)>,
    jvm: Vec<String>,
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

    fn file(&self, port: u16, controller_port: u16, data: &Path) -> String {
        let (broker, controller) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{controller_port}"));
        let mut file = format!(
            "{PROPERTIES}node.id=1\ncontroller.quorum.voters=1@{controller}\nlisteners=PLAINTEXT://{broker},CONTROLLER://{controller}\n\
             advertised.listeners=PLAINTEXT://{broker}\nlog.dirs={}\n",
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
    description: String,
}

impl Kafka {
    /// Starts a broker with a data folder of its own and returns once it answers and its own topics are there.
    ///
    /// # Errors
    /// When Java or Kafka is not to be had, or the broker does not answer within a minute.
    pub fn start(options: KafkaOptions) -> Result<Self, Error> {
        let java = Java::find()?;
        let jars = jars::fetch()?;
        let archive = jars::class_archive(&jars, &java)?;
        let use_archive = archive.map(|archive| format!("-XX:SharedArchiveFile={}", archive.display()));
        let launch = || Self::launch(&java, &jars, use_archive.as_deref(), &options);
        crate::retry_if_port_is_taken(launch)
    }

    fn launch(java: &Java, jars: &Path, archive: Option<&str>, options: &KafkaOptions) -> Result<Self, Error> {
        let (port, controller_port) = (free_port(), free_port());
        let folder = new_folder("kafka");
        let (data, properties) = (folder.join("data"), folder.join("server.properties"));
        let mut command = vec![java.program.as_os_str().to_owned()];
        command.extend(JVM.iter().copied().chain(archive).chain(options.jvm.iter().map(String::as_str)).map(OsString::from));
        command.extend(["-cp".into(), java::class_path(jars)?, "kafka.Kafka".into(), properties.clone().into_os_string()]);
        // At the end nobody needs the data any more.
        let keeper = Keeper::new(folder, None, "KILL", 10, command)?;
        // What `kafka-storage.sh format` would write, without starting a JVM for it.
        let identity = format!("version=1\ncluster.id={}\nnode.id=1\ndirectory.id={}\n", random_id(), random_id());
        fs::create_dir(&data)
            .and_then(|()| fs::write(data.join("meta.properties"), identity))
            .and_then(|()| fs::write(properties, options.file(port, controller_port, &data)))
            .map_err(Error::system("write the broker's configuration"))?;
        let description = format!("Kafka {} (fetched by mvn, Java {})", jars::version(), programs::dotted(&java.version));
        let mut broker = Self { keeper, port, description };
        broker.start_again()?;
        Ok(broker)
    }

    /// The address for `bootstrap.servers`.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1; it stays the same over [`start_again`](Self::start_again).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The last lines of the broker's log: errors only.
    pub fn log_end(&self) -> String {
        self.keeper.log_end()
    }

    /// The process id of the broker, also of the last one that ran.
    pub fn pid(&self) -> u32 {
        self.keeper.pid().expect("a server that was started has a process id")
    }

    /// Version and origin, for example `Kafka 4.3.1 (fetched by mvn, Java 17.0.15)`.
    pub fn describe(&self) -> &str {
        &self.description
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
        self.keeper.start_until(SERVICE, START_LIMIT, || probe::answers(port))
    }

    pub(crate) fn keeper(&mut self) -> &mut Keeper {
        &mut self.keeper
    }
}

/// 16 bytes in Kafka's spelling of an id: 22 characters of base 64, of which the last holds two bits.
fn random_id() -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let random = RandomState::new();
    let digit = |n: u32| char::from(DIGITS[(random.hash_one((n, std::process::id())) % 32) as usize]);
    (0..21).map(digit).chain(['A']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_of_the_caller_comes_last() {
        let file = KafkaOptions::new().set("num.partitions", "1").file(9, 10, Path::new("/data"));
        assert!(file.contains("num.partitions=8\n") && file.ends_with("num.partitions=1\n"), "{file}");
        assert!(file.contains("listeners=PLAINTEXT://127.0.0.1:9,CONTROLLER://127.0.0.1:10\n"), "{file}");
        assert!(file.contains("controller.quorum.voters=1@127.0.0.1:10\n"), "{file}");
    }

    #[test]
    fn ids_have_22_characters_and_differ() {
        assert_eq!(random_id().len(), 22);
        assert_ne!(random_id(), random_id());
    }
}
