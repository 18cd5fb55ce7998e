//! Debezium in Kafka Connect standalone. Its tuned settings are the files in
//! `benches/peers/debezium/`.

use std::{fs, path::PathBuf};

use dev_services::java::{self, Java};

use super::{Outcome, outbox::Outbox, process::Process, servers::Servers};

/// The replication slot of Debezium.
pub(crate) const SLOT: &str = "bench_debezium";

const POM: &str = include_str!("../peers/debezium/pom.xml");
const LOG: &str = "rootLogger.level=warn\nrootLogger.appenderRef.c.ref=c\n\
                   appender.c.type=Console\nappender.c.name=c\n\
                   appender.c.layout.type=PatternLayout\n\
                   appender.c.layout.pattern=%d %-5p %c{1}: %m%n\n";

/// The goal of the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tuning {
    Drain,
    Latency,
}

impl Tuning {
    fn worker(self) -> &'static str {
        match self {
            Self::Drain => include_str!("../peers/debezium/tuned.worker.properties"),
            Self::Latency => include_str!("../peers/debezium/latency.worker.properties"),
        }
    }

    fn connector(self) -> &'static str {
        match self {
            Self::Drain => include_str!("../peers/debezium/tuned.connector.properties"),
            Self::Latency => include_str!("../peers/debezium/latency.connector.properties"),
        }
    }

    fn heap(self) -> &'static str {
        match self {
            Self::Drain => "4g",
            Self::Latency => "1g",
        }
    }
}

/// A Java installation and the jars of Debezium.
pub(crate) struct Debezium {
    java: Java,
    jars: PathBuf,
    brokers: String,
    port: u16,
}

impl Debezium {
    /// Finds Debezium for these servers. Returns `None` and prints the reason if it is not
    /// available.
    pub(crate) fn of(servers: &Servers) -> Option<Self> {
        match Self::find(servers.kafka.brokers(), servers.postgres.port()) {
            Ok(debezium) => {
                println!("{}", debezium.describe());
                Some(debezium)
            }
            Err(error) => {
                println!("Debezium skipped: {error}");
                None
            }
        }
    }

    /// Finds the newest Java and the jars of Debezium, which Maven downloads once.
    fn find(brokers: String, port: u16) -> Outcome<Self> {
        let java = Java::newest()?;
        let (_, rest) = POM
            .split_once("debezium-connector-postgres</artifactId><version>")
            .ok_or("the pom contains no Debezium")?;
        let version = rest.split('<').next().unwrap_or_default();
        let jars = java::jars(&format!("debezium-{version}"), POM)?;
        Ok(Self {
            java,
            jars,
            brokers,
            port,
        })
    }

    /// Describes the versions in one line.
    fn describe(&self) -> String {
        let version: Vec<String> = self.java.version.iter().map(u32::to_string).collect();
        format!(
            "{} (Java {})",
            self.jars.file_name().unwrap_or_default().display(),
            version.join(".")
        )
    }

    /// Starts Debezium on the slot [`SLOT`] of `outbox`. All events are published to `topic`.
    pub(crate) fn start(&self, outbox: &Outbox, topic: &str, tuning: Tuning) -> Outcome<Process> {
        let folder =
            std::env::temp_dir().join(format!("tidings-bench-debezium-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder)?;
        let folder_text = folder.display().to_string();
        let fill = |text: &str| {
            let (port, rest) = (self.port.to_string(), free_port());
            let values = [
                ("BROKERS", self.brokers.as_str()),
                ("PGPORT", &port),
                ("PGDATABASE", &outbox.database),
                ("SLOT", SLOT),
                ("TOPIC", topic),
                ("STATE", &folder_text),
                ("REST_PORT", &rest),
            ];
            values.iter().fold(text.to_owned(), |text, (name, value)| {
                text.replace(&format!("${{{name}}}"), value)
            })
        };
        for (name, text) in [
            ("worker", fill(tuning.worker())),
            ("connector", fill(tuning.connector())),
            ("log4j2", LOG.to_owned()),
        ] {
            fs::write(folder.join(format!("{name}.properties")), text)?;
        }
        let heap = tuning.heap();
        let arguments = [
            format!("-Xms{heap}"),
            format!("-Xmx{heap}"),
            "-XX:+UseParallelGC".to_owned(),
            format!("-Dlog4j2.configurationFile={folder_text}/log4j2.properties"),
            "-cp".to_owned(),
            java::class_path(&self.jars)?
                .into_string()
                .map_err(|_| "the path of the cache folder is not UTF-8")?,
            "org.apache.kafka.connect.cli.ConnectStandalone".to_owned(),
            format!("{folder_text}/worker.properties"),
            format!("{folder_text}/connector.properties"),
        ];
        Process::start(&self.java.program, &arguments, &folder.join("log"))
    }
}

/// Returns a free port for the REST interface of Kafka Connect, which the benchmark does not use.
fn free_port() -> String {
    let port =
        std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    port.map_or_else(|_| "18083".to_owned(), |address| address.port().to_string())
}
