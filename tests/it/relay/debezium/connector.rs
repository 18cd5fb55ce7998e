//! The real Debezium in standalone Kafka Connect. Maven downloads its jars once.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use dev_services::java::{self, Java};

use crate::support::eventually::PATIENCE;

const POM: &str = include_str!("../../../../benches/peers/debezium/pom.xml");
const LOG: &str = "rootLogger.level=warn\nrootLogger.appenderRef.c.ref=c\nappender.c.type=Console\n\
    appender.c.name=c\n\
                   appender.c.layout.type=PatternLayout\n\
                   appender.c.layout.pattern=%d %-5p %c{1}: %m%n\n";

/// Starts the program, prints its process id, and kills it when standard input ends, even if the
/// test was killed.
const KEEPER: &str = r#""$@" </dev/null >&2 & child=$!; echo $child
    read -r _; kill -KILL $child 2>/dev/null; wait"#;

/// An installation of Debezium: a Java runtime and the jars.
pub(super) struct Debezium {
    java: Java,
    jars: PathBuf,
}

/// A Connect worker with its connectors.
pub(super) struct Worker {
    keeper: Child,
    leash: Option<ChildStdin>,
    port: u16,
    folder: PathBuf,
}

/// Returns the installation of Debezium. Returns `None` if there is none, and reports why the test
/// is skipped.
pub(super) async fn debezium() -> Option<Debezium> {
    let found = tokio::task::spawn_blocking(|| {
        let java = Java::newest().map_err(|error| error.to_string())?;
        let (_, rest) = POM
            .split_once("debezium-connector-postgres</artifactId><version>")
            .expect("the pom names Debezium");
        let version = rest.split('<').next().unwrap_or_default();
        let jars =
            java::jars(&format!("debezium-{version}"), POM).map_err(|error| error.to_string())?;
        Ok::<_, String>(Debezium { java, jars })
    });
    match found.await.expect("the task does not panic") {
        Ok(debezium) => Some(debezium),
        Err(error) => {
            eprintln!("SKIPPED, the real Debezium is not available: {error}");
            None
        }
    }
}

impl Debezium {
    /// Starts a worker with these connectors, given as names and properties.
    pub(super) async fn start(
        &self,
        brokers: &str,
        connectors: Vec<(String, Vec<(String, String)>)>,
    ) -> Worker {
        let (java, jars, brokers) = (
            self.java.program.clone(),
            self.jars.clone(),
            brokers.to_owned(),
        );
        let started = tokio::task::spawn_blocking(move || {
            let folder = std::env::temp_dir().join(format!(
                "tidings-it-debezium-{}",
                uuid::Uuid::now_v7().simple()
            ));
            fs::create_dir(&folder).expect("a folder");
            let port = TcpListener::bind(("127.0.0.1", 0))
                .and_then(|listener| listener.local_addr())
                .expect("a port")
                .port();
            let worker = format!(
                "bootstrap.servers={brokers}\nlisteners=http://127.0.0.1:{port}\n\
                 plugin.discovery=service_load\ntopic.creation.enable=false\n\
                 offset.storage.file.filename={}/offsets\noffset.flush.interval.ms=500\n\
                 key.converter=org.apache.kafka.connect.storage.StringConverter\n\
                 value.converter=org.apache.kafka.connect.storage.StringConverter\n\
                 header.converter=org.apache.kafka.connect.storage.StringConverter\n\
                 producer.linger.ms=0\n",
                folder.display()
            );
            fs::write(folder.join("worker.properties"), worker).expect("the write succeeds");
            fs::write(folder.join("log4j2.properties"), LOG).expect("the write succeeds");
            let mut arguments = vec![
                "-Xmx512m".to_owned(),
                format!(
                    "-Dlog4j2.configurationFile={}/log4j2.properties",
                    folder.display()
                ),
                "-cp".to_owned(),
                java::class_path(&jars)
                    .expect("a class path")
                    .into_string()
                    .expect("UTF-8"),
                "org.apache.kafka.connect.cli.ConnectStandalone".to_owned(),
                folder.join("worker.properties").display().to_string(),
            ];
            for (name, properties) in connectors {
                let mut text = format!("name={name}\n");
                properties.iter().for_each(|(key, value)| {
                    writeln!(text, "{key}={value}").expect("a string accepts any text")
                });
                let file = folder.join(format!("{name}.properties"));
                fs::write(&file, text).expect("the write succeeds");
                arguments.push(file.display().to_string());
            }
            let log = fs::File::create(folder.join("log")).expect("a log");
            let mut keeper = Command::new("sh");
            keeper
                .args(["-c", KEEPER, "keeper"])
                .arg(java)
                .args(arguments);
            let mut keeper = keeper
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log)
                .spawn()
                .expect("sh starts");
            let leash = keeper.stdin.take();
            let mut pid = String::new();
            BufReader::new(keeper.stdout.take().expect("the input is piped"))
                .read_line(&mut pid)
                .expect("the process id");
            Worker {
                keeper,
                leash,
                port,
                folder,
            }
        });
        started.await.expect("the task does not panic")
    }
}

impl Worker {
    /// Repeats a request to the REST interface until `fits` accepts the answer.
    async fn ask(&self, method: &'static str, path: &str, fits: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let (port, request) = (
                self.port,
                format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"),
            );
            let asked = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
                let mut socket = TcpStream::connect(("127.0.0.1", port))?;
                socket.set_read_timeout(Some(Duration::from_secs(20)))?;
                socket.write_all(request.as_bytes())?;
                let mut answer = String::new();
                socket.read_to_string(&mut answer)?;
                Ok(answer)
            });
            let answer = asked
                .await
                .expect("the task does not panic")
                .unwrap_or_default();
            if fits(&answer) {
                return answer
                    .split_once("\r\n\r\n")
                    .map_or(String::new(), |(_, body)| body.to_owned());
            }
            assert!(
                Instant::now() < until,
                "{method} {path} answers {answer}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops a connector as an operator does and returns its stored offset.
    pub(super) async fn stop(&self, connector: &str) -> String {
        self.ask("PUT", &format!("/connectors/{connector}/stop"), |answer| {
            answer.contains(" 20")
        })
        .await;
        self.ask(
            "GET",
            &format!("/connectors/{connector}/status"),
            |answer| answer.contains("STOPPED"),
        )
        .await;
        self.ask(
            "GET",
            &format!("/connectors/{connector}/offsets"),
            |answer| answer.contains("\"lsn\""),
        )
        .await
    }

    /// Returns the state of a connector and of its task.
    pub(super) async fn status(&self, connector: &str) -> String {
        let path = format!("/connectors/{connector}/status");
        self.ask("GET", &path, |answer| answer.contains(" 200 "))
            .await
    }

    /// Deletes the offset of a stopped connector, so that it continues from the position of its
    /// slot.
    pub(super) async fn resume_from_the_slot(&self, connector: &str) {
        self.ask(
            "DELETE",
            &format!("/connectors/{connector}/offsets"),
            |answer| answer.contains(" 200 "),
        )
        .await;
        self.ask(
            "PUT",
            &format!("/connectors/{connector}/resume"),
            |answer| answer.contains(" 20"),
        )
        .await;
    }

    /// Returns the last lines of the worker's log.
    pub(super) fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.leash.take());
        let _ = self.keeper.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
