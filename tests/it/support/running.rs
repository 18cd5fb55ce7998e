//! A relay for a test: in this process, or as the binary.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use sqlx::PgPool;
use tidings::{
    kafka, postgres,
    relay::{CheckState, Relay, RelayError, RelayMetrics, RelayOptions, TopicOptions},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    history::{Verdict, committed, expected, judge},
    records::Reader,
};
use crate::support::services::TestDatabase;

/// Returns a topic name that no other test uses.
pub(crate) fn new_topic() -> String {
    format!("test-{}", Uuid::now_v7().simple())
}

/// The database, topic and names of a test's relay.
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) brokers: String,
    pub(crate) topic: String,
    /// The relay's name, which is part of the slot's name because all databases of a server share
    /// slots.
    pub(crate) name: String,
    /// The mark of the database, which is the other part of the slot's name.
    pub(crate) mark: String,
}

impl Place {
    /// Creates a place with a new relay name and topic for this database, on the shared broker.
    pub(crate) fn new(database: &TestDatabase) -> Self {
        let name = format!("t{}", Uuid::now_v7().simple());
        Self {
            url: database.url.clone(),
            brokers: crate::support::services::brokers(),
            topic: new_topic(),
            name,
            mark: database.mark.clone(),
        }
    }

    /// Returns the name of the slot.
    pub(crate) fn slot(&self) -> String {
        format!("tidings_{}_{}", self.name, self.mark)
    }

    /// Returns the options of a relay that creates its topic with four partitions.
    pub(crate) fn options(&self) -> RelayOptions {
        let database = postgres::DatabaseSettings::parse(&self.url).expect("a URL");
        let kafka = kafka::Settings {
            brokers: self.brokers.clone(),
            ..kafka::Settings::default()
        };
        let mut options = RelayOptions::new(database, kafka);
        options.name.clone_from(&self.name);
        options.topic.clone_from(&self.topic);
        options.topics = TopicOptions {
            create: true,
            partitions: Some(4),
            replication: None,
        };
        options
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader::new(&self.brokers, &self.topic)
    }

    pub(crate) fn start(&self) -> Running {
        Running::start(self.options())
    }

    /// Starts the binary with the same settings.
    pub(crate) fn spawn(&self) -> Killed {
        self.spawn_with(&[])
    }

    /// Starts the binary with the same settings and these environment variables.
    pub(crate) fn spawn_with(&self, variables: &[(&str, &str)]) -> Killed {
        let child = Command::new(env!("CARGO_BIN_EXE_tidings"))
            .args(["relay", "--listen", "off", "--log-level", "warn"])
            .env("DATABASE_URL", &self.url)
            .env("KAFKA_BROKERS", &self.brokers)
            .env("TIDINGS_NAME", &self.name)
            .env("TIDINGS_ROUTING_TOPIC", &self.topic)
            .env("TIDINGS_TOPICS_CREATE", "true")
            .env("TIDINGS_TOPICS_PARTITIONS", "4")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .expect("the binary starts");
        Killed(child)
    }
}

/// A relay in this process.
pub(crate) struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RelayError>>,
    pub(crate) observer: Observer,
}

/// What a relay reports. A test that fails shows it.
pub(crate) struct Observer(RelayMetrics);

impl std::ops::Deref for Observer {
    type Target = RelayMetrics;

    fn deref(&self) -> &RelayMetrics {
        &self.0
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?}\n{}", self.checks(), self.metrics_text());
        }
    }
}

impl Running {
    pub(crate) fn start(options: RelayOptions) -> Self {
        let relay = Relay::new(options).expect("the options are valid");
        let (shutdown, observer) = (CancellationToken::new(), Observer(relay.observer()));
        let task = tokio::spawn(relay.run(shutdown.clone()));
        Self {
            shutdown,
            task,
            observer,
        }
    }

    /// Drains and ends the relay.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task
            .await
            .expect("the task does not panic")
            .expect("the relay ends without an error");
    }

    /// Drains and ends the relay. Returns the text of its error, if any.
    pub(crate) async fn stopped(self) -> Option<String> {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(120), self.task)
            .await
            .expect("the relay ends");
        ended
            .expect("the task does not panic")
            .err()
            .map(|error| error.to_string())
    }

    /// Waits until everything committed is delivered, ends the relay, and checks all records of the
    /// topic.
    pub(crate) async fn verdict(self, pool: &PgPool, reader: &mut Reader) -> Verdict {
        let committed = committed(pool).await;
        reader.until_distinct(expected(&committed));
        self.stop().await;
        judge(&committed, reader.read_to_the_end())
    }

    /// Waits until the relay ends by itself. Returns its error.
    pub(crate) async fn refusal(self) -> String {
        let ended = tokio::time::timeout(Duration::from_secs(120), self.task)
            .await
            .expect("the relay ends by itself");
        ended
            .expect("the task does not panic")
            .expect_err("a refusal")
            .to_string()
    }

    /// Waits until the text of a check contains `text`.
    pub(crate) async fn says(&self, check: &str, text: &str) {
        for _ in 0..6_000 {
            let checks = self.observer.checks();
            let state = checks
                .iter()
                .find(|one| one.name == check)
                .map(|one| one.state.clone());
            if let Some(CheckState::Ok(said) | CheckState::Failing(said)) = state
                && said.contains(text)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "check {check} never says {text:?}: {:?}",
            self.observer.checks()
        );
    }
}

/// The binary in a process that is killed on drop.
pub(crate) struct Killed(Child);

impl Killed {
    /// Returns `true` if the process has died at the step that its failpoint names.
    ///
    /// # Panics
    ///
    /// Panics if the process has ended in any other way, because then it never reached the step.
    pub(crate) fn has_died(&mut self) -> bool {
        const ABORTED: i32 = 6;
        let ended = self.0.try_wait().expect("the process can be polled");
        assert!(
            ended.is_none_or(|status| status.signal() == Some(ABORTED)),
            "the process ended in another way: {ended:?}"
        );
        ended.is_some()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("the kill succeeds");
        self.0.wait().expect("the process ends");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
