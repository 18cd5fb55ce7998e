//! Peers: JVM consumers that do the same work.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

use dev_services::java::{self, Java};

use crate::harness::{Outcome, process::Process};
use crate::options::Scenario;
use crate::report::Measured;

/// Time limit for all rounds of a peer. A peer that needs longer is skipped.
const PATIENCE: Duration = Duration::from_secs(180);

/// The last round counts, because the JVM is cold in the first one.
const ROUNDS: usize = 2;

/// A JVM consumer. Its program and dependencies are the files in `benches/peers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    ParallelConsumer,
    SpringKafka,
}

impl Peer {
    pub(crate) const ALL: [Self; 2] = [Self::ParallelConsumer, Self::SpringKafka];

    /// Returns the name of its jars in the cache, its Maven POM and its program.
    fn files(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::ParallelConsumer => (
                "parallel-consumer-0.5.3.3",
                include_str!("../peers/parallel-consumer/pom.xml"),
                include_str!("../peers/parallel-consumer/Peer.java"),
            ),
            Self::SpringKafka => (
                "spring-kafka-4.1.0",
                include_str!("../peers/spring-kafka/pom.xml"),
                include_str!("../peers/spring-kafka/Peer.java"),
            ),
        }
    }

    /// Reads the whole topic. Returns `None` if the scenario does not apply to this peer.
    ///
    /// # Errors
    ///
    /// Returns an error if the peer is not available or exceeds [`PATIENCE`].
    pub(crate) fn run(
        self,
        scenario: Scenario,
        brokers: &str,
        topic: &str,
        records: u64,
    ) -> Outcome<Option<Measured>> {
        let Some((wait_micros, concurrency)) = scenario.waits() else {
            return Ok(None);
        };
        // One thread per partition handles one record at a time: at most 8,000 records/s, which
        // would take too long.
        if self == Self::SpringKafka && wait_micros > 0 {
            return Ok(None);
        }
        let (name, pom, program) = self.files();
        let (java, jars) = (Java::newest()?, java::jars(name, pom)?);
        let folder =
            std::env::temp_dir().join(format!("tidings-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let source = folder.join("Peer.java");
        fs::write(&source, program)?;
        let arguments = [
            "-Xmx1g".to_owned(),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=error".to_owned(),
            "-cp".to_owned(),
            java::class_path(&jars)?
                .into_string()
                .map_err(|_| "the path of the cache folder is not UTF-8")?,
            // Java compiles and runs a single source file, which requires a JDK.
            source.display().to_string(),
            brokers.to_owned(),
            topic.to_owned(),
            records.to_string(),
            wait_micros.to_string(),
            concurrency.to_string(),
            ROUNDS.to_string(),
        ];
        let log = folder.join("log");
        let process = Process::start(&java.program, &arguments, &log)?;
        let measured = until_done(&process, &log, records);
        drop(process);
        let _ = fs::remove_dir_all(&folder);
        measured.map(Some)
    }
}

/// Waits for the program's last round and returns its figures.
fn until_done(process: &Process, log: &PathBuf, records: u64) -> Outcome<Measured> {
    let (until, mut cpu_before) = (Instant::now() + PATIENCE, 0.0);
    loop {
        let text = fs::read_to_string(log)?;
        let rounds: Vec<f64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("seconds ")?.trim().parse().ok())
            .collect();
        let cost = process.cost();
        if rounds.len() < ROUNDS {
            process.still_runs()?;
            if rounds.len() < ROUNDS - 1 || cpu_before == 0.0 {
                cpu_before = cost.cpu_seconds;
            }
            if Instant::now() > until {
                return Err(format!("not done within {PATIENCE:?}").into());
            }
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        let seconds = rounds[ROUNDS - 1];
        return Ok(Measured {
            records,
            seconds,
            cpu_seconds: cost.cpu_seconds - cpu_before,
            peak_megabytes: cost.peak_megabytes,
        });
    }
}
