//! A member in a process of its own, to be killed.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::PgPool;
use tidings::subscriber::{Event, HandlerError, Meta, Tx};
use tidings::{Bus, Subscriber, kafka};

use super::place::{Changed, Place, effect, until};
use crate::services::TestDatabase;

/// Slow enough that a member is at work whenever it is told to go.
pub(crate) async fn slowly(Event(changed): Event<Changed>, meta: Meta, mut tx: Tx) -> Result<(), HandlerError> {
    effect(&mut tx, &changed, &meta).await?;
    tokio::time::sleep(Duration::from_millis(3)).await;
    Ok(())
}

/// A member in a process of its own.
pub(crate) struct Process(std::sync::Mutex<Child>);

impl Process {
    pub(crate) fn start(place: &Place, database: &TestDatabase) -> Self {
        Self::start_with(place, database, None)
    }

    /// One that ends at a step as by kill -9.
    pub(crate) fn start_to_die_at(place: &Place, database: &TestDatabase, step: &str) -> Self {
        Self::start_with(place, database, Some(step))
    }

    fn start_with(place: &Place, database: &TestDatabase, step: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this test's binary"));
        command
            .args(["--exact", "subscriber::process::a_member_in_its_own_process", "--ignored", "--nocapture"])
            .env("MEMBER", format!("{} {} {} {}", place.brokers, place.topic, place.group, database.url))
            .envs(step.map(|step| ("TIDINGS_TEST_DIE_AT", step)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().expect("it starts").into())
    }

    pub(crate) fn kill(self) {
        let mut child = self.0.lock().expect("nobody panicked");
        // SIGKILL on Unix.
        child.kill().expect("killed");
        child.wait().expect("waited for");
    }

    /// Waits until it has died as it was told to.
    pub(crate) async fn until_it_dies(self) {
        let status = until("the member dies", async || self.0.lock().expect("nobody panicked").try_wait().expect("asked")).await;
        assert!(status.signal().is_some(), "it ended by itself: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.0.get_mut().expect("nobody panicked");
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: the process that other tests kill"]
async fn a_member_in_its_own_process() {
    let Ok(member) = std::env::var("MEMBER") else { return };
    let parts: Vec<&str> = member.split(' ').collect();
    let [brokers, topic, group, url] = parts[..] else { panic!("four parts") };
    // The coordinator notices within six seconds that it is dead.
    let properties = [("session.timeout.ms".to_owned(), "6000".to_owned()), ("heartbeat.interval.ms".to_owned(), "500".to_owned())];
    let bus = Bus::new(kafka::Settings { brokers: brokers.into(), properties: properties.into() });
    let pool = PgPool::connect(url).await.expect("connected");
    let subscriber: Subscriber<()> = bus.subscriber(group).topic::<Changed>(topic);
    let _ = subscriber.on(slowly).inbox(pool).run(tokio_util::sync::CancellationToken::new()).await;
}
