//! A member in a separate process, which a test can kill.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tidings::subscriber::{Event, HandlerError, Meta, Tx};
use tidings::{Bus, DomainEvent, Subscriber, kafka};

use crate::support::place::{Changed, Place, effect, until};
use crate::support::services::{TestDatabase, signal};

/// A handler that is slow enough to be running whenever its member is stopped.
pub(crate) async fn slowly(
    Event(changed): Event<Changed>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    effect(&mut tx, &changed, &meta).await?;
    tokio::time::sleep(Duration::from_millis(3)).await;
    Ok(())
}

/// An event type that only a newer version of the member handles.
#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "account", id = "account")]
pub(crate) struct Renewed {
    pub(crate) account: String,
    pub(crate) version: i32,
}

async fn newly(Event(renewed): Event<Renewed>, meta: Meta, tx: Tx) -> Result<(), HandlerError> {
    slowly(
        Event(Changed {
            account: renewed.account,
            version: renewed.version,
        }),
        meta,
        tx,
    )
    .await
}

/// A member in a separate process.
pub(crate) struct Process(std::sync::Mutex<Child>);

impl Process {
    pub(crate) fn start(place: &Place, database: &TestDatabase) -> Self {
        Self::start_with(place, database, None)
    }

    /// Starts a member that dies at a step as by `kill -9`.
    pub(crate) fn start_to_die_at(place: &Place, database: &TestDatabase, step: &str) -> Self {
        Self::start_with(place, database, Some(step))
    }

    /// Starts a member with these variables, which [`a_member_in_its_own_process`] and failpoints
    /// read.
    pub(crate) fn start_as(
        place: &Place,
        database: &TestDatabase,
        variables: &[(&str, &str)],
    ) -> Self {
        Self::spawn(place, database, variables, Stdio::null())
    }

    /// One that writes its stderr to this file. Its panics have no backtraces, which would take a
    /// hundred megabytes.
    pub(crate) fn start_reporting(place: &Place, database: &TestDatabase, report: &Path) -> Self {
        Self::spawn(
            place,
            database,
            &[("RUST_BACKTRACE", "0")],
            File::create(report).expect("created").into(),
        )
    }

    /// The most memory that it has had at once, in bytes. `None` where the system does not report
    /// it.
    pub(crate) fn memory_max(&self) -> Option<u64> {
        let id = self.0.lock().expect("no panic").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        kilobytes
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
            .map(|kilobytes| kilobytes * 1024)
    }

    fn start_with(place: &Place, database: &TestDatabase, step: Option<&str>) -> Self {
        let variables: Vec<(&str, &str)> = step
            .map(|step| ("TIDINGS_TEST_DIE_AT", step))
            .into_iter()
            .collect();
        Self::spawn(place, database, &variables, Stdio::null())
    }

    fn spawn(
        place: &Place,
        database: &TestDatabase,
        variables: &[(&str, &str)],
        stderr: Stdio,
    ) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this test's binary"));
        command
            .args([
                "--exact",
                "subscriber::process::a_member_in_its_own_process",
                "--ignored",
                "--nocapture",
            ])
            .env(
                "MEMBER",
                format!(
                    "{} {} {} {}",
                    place.brokers, place.topic, place.group, database.url
                ),
            )
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(stderr);
        Self(command.spawn().expect("the program starts").into())
    }

    pub(crate) fn kill(self) {
        let mut child = self.0.lock().expect("the lock is not poisoned");
        // This sends SIGKILL on Unix.
        child.kill().expect("the kill succeeds");
        child.wait().expect("the process ends");
    }

    /// Sends SIGTERM and waits until the member has ended cleanly.
    pub(crate) async fn stop(self) {
        let id = self.0.lock().expect("the lock is not poisoned").id();
        signal(id, "TERM");
        let status = until("the member ends", async || {
            self.0
                .lock()
                .expect("the lock is not poisoned")
                .try_wait()
                .expect("the process can be polled")
        })
        .await;
        assert!(status.success(), "{status}");
    }

    /// Waits until the member has died at its failpoint.
    pub(crate) async fn until_it_dies(self) {
        let status = until("the member dies", async || {
            self.0
                .lock()
                .expect("the lock is not poisoned")
                .try_wait()
                .expect("the process can be polled")
        })
        .await;
        assert!(status.signal().is_some(), "it ended by itself: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.0.get_mut().expect("the lock is not poisoned");
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: the process that other tests kill"]
async fn a_member_in_its_own_process() {
    let Ok(member) = std::env::var("MEMBER") else {
        return;
    };
    let parts: Vec<&str> = member.split(' ').collect();
    let [brokers, topic, group, url] = parts[..] else {
        panic!("expected four parts")
    };
    let is_set = |name: &str| std::env::var_os(name).is_some();
    // Without the defaults, the coordinator notices within six seconds that the member is dead.
    let properties = match is_set("MEMBER_DEFAULTS") {
        true => Vec::new(),
        false => vec![
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "500"),
            ("max.poll.interval.ms", "15000"),
        ],
    };
    let properties = properties
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let bus = Bus::new(kafka::Settings {
        brokers: brokers.into(),
        properties,
    });
    let pool = PgPool::connect(url).await.expect("the connection succeeds");
    let mut subscriber: Subscriber<()> = bus
        .subscriber(group)
        .topic::<Changed>(topic)
        .drain_timeout(std::time::Duration::from_secs(5));
    if let Ok(id) = std::env::var("MEMBER_INSTANCE") {
        subscriber = subscriber.instance_id(id);
    }
    if is_set("MEMBER_BROKER_SIDE") {
        subscriber = subscriber.broker_side_rebalance();
    }
    let shutdown = tokio_util::sync::CancellationToken::new();
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("a handler");
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            terminated.recv().await;
            shutdown.cancel();
        }
    });
    let subscriber = subscriber.on(slowly).inbox(pool);
    match is_set("MEMBER_IS_NEWER") {
        true => subscriber.on(newly).run(shutdown).await,
        false => subscriber.run(shutdown).await,
    }
    .expect("the subscriber ends without an error");
}
