//! Supervision of a session from outside: reports stalls, and drops a session that hangs.
//!
//! A session limits each of its waits and reports signs of life, also while it waits for a broker,
//! a topic or a foreign transaction. A session without a sign of life for [`hang_limit`] therefore
//! hangs in an unexpected place, for instance in a library call whose wait depends on a clock that
//! was set back. Each session runs in its own task. If it hangs, the task is abandoned, and its
//! resources are released without its help: the lease by a token, Kafka's transactional ids and the
//! epoch by the next session.

use std::time::Duration;

use tokio::{
    task::JoinError,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    relay::{RelayMetrics, RelayOptions},
    task::OwnedTask,
};

/// Interval between checks for signs of life.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Interval between log lines about a stall.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Time for an aborted session to end before it is abandoned.
const ABORT_WITHIN: Duration = Duration::from_secs(5);

/// Lower bound of the hang limit, without the time for a connection. It allows for a few statements
/// and requests to Kafka in a row. Each may take 10 to 20 s.
const LEAST_HANG: Duration = Duration::from_secs(60);

/// Time beyond the grace for a session to stop. It stops by itself at the grace.
const BEYOND_GRACE: Duration = Duration::from_secs(1);

/// Returns the time without a sign of life after which a session is dropped.
pub(crate) fn hang_limit(options: &RelayOptions) -> Duration {
    LEAST_HANG.max(options.stall_after * 4) + options.database.connect_timeout()
}

/// Outcome of a supervised session.
#[derive(Debug)]
pub(crate) enum Supervised<T> {
    Ended(T),
    /// It showed no sign of life for longer than the limit and was dropped. Contains its last step.
    Hung(String),
    /// It did not stop within the grace.
    Overdue,
}

/// Watches the sessions of a relay, one after the other.
pub(crate) struct Watchdog {
    observer: RelayMetrics,
    limit: Duration,
    grace: Duration,
    warned: Option<Instant>,
}

impl Watchdog {
    pub(crate) fn new(observer: &RelayMetrics, limit: Duration, grace: Duration) -> Self {
        Self {
            observer: observer.clone(),
            limit,
            grace,
            warned: None,
        }
    }

    /// Runs a session to its end, unless it hangs or does not stop in time. Cancels `dropped` for
    /// everything that outlives a dropped session.
    ///
    /// # Panics
    ///
    /// Panics if the session panics.
    pub(crate) async fn supervise<T: Send + 'static>(
        &mut self,
        session: impl Future<Output = T> + Send + 'static,
        dropped: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Supervised<T> {
        self.observer.pulse().moved();
        let mut session = OwnedTask::spawn(session);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let grace = self.grace + BEYOND_GRACE;
        let mut overdue = std::pin::pin!(async {
            shutdown.cancelled().await;
            tokio::time::sleep(grace).await;
        });
        loop {
            tokio::select! {
                biased;
                ended = &mut session => return Supervised::Ended(unwind(ended)),
                () = &mut overdue => {
                    dropped.cancel();
                    return Supervised::Overdue;
                }
                _ = looks.tick() => {}
            }
            self.report_stall();
            let Some(step) = self.observer.pulse().hung_in(self.limit) else {
                continue;
            };
            tracing::error!(
                step,
                limit = ?self.limit,
                "the session shows no sign of life: it is dropped and started again"
            );
            dropped.cancel();
            session.abort();
            match timeout(ABORT_WITHIN, &mut session).await {
                Ok(Ok(ended)) => return Supervised::Ended(ended),
                Ok(Err(_)) => {}
                Err(_) => {
                    tracing::error!(step, "the aborted session does not end: it is abandoned")
                }
            }
            return Supervised::Hung(step);
        }
    }

    /// Reports a stall when it starts and once a minute, and its end.
    fn report_stall(&mut self) {
        let stall = self.observer.pulse().stall();
        match (stall, self.warned) {
            (Some(stall), warned) if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) => {
                tracing::warn!("delivery has stalled: {}", stall.text);
                self.warned = Some(Instant::now());
            }
            (None, Some(_)) => {
                tracing::info!("delivery no longer stalls");
                self.warned = None;
            }
            _ => {}
        }
    }
}

/// Returns the session's result, or resumes its panic.
fn unwind<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => unreachable!("only the watchdog aborts the session"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    fn watchdog(limit: Duration) -> (Watchdog, RelayMetrics) {
        let observer = RelayMetrics::new(Duration::from_secs(60));
        (Watchdog::new(&observer, limit, Duration::ZERO), observer)
    }

    /// A session that waits forever without a sign of life.
    #[tokio::test]
    async fn a_session_that_does_not_move_is_dropped_with_its_last_step() {
        let (mut watchdog, observer) = watchdog(LIMIT);
        observer.pulse().step("fencing the producers");
        let (dropped, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let ended = watchdog
            .supervise(std::future::pending::<()>(), &dropped, &shutdown)
            .await;
        assert!(matches!(ended, Supervised::Hung(step) if step == "fencing the producers"));
        assert!(dropped.is_cancelled());
    }

    /// A session that blocks its thread cannot be dropped and is abandoned.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_session_that_blocks_its_thread_is_left_behind() {
        let (mut watchdog, _observer) = watchdog(LIMIT);
        let (free, blocked) = std::sync::mpsc::channel::<()>();
        let session = async move {
            let _ = blocked.recv();
        };
        let (dropped, shutdown) = (CancellationToken::new(), CancellationToken::new());
        // In a task, so that the session runs on the other thread.
        let supervised =
            tokio::spawn(async move { watchdog.supervise(session, &dropped, &shutdown).await });
        assert!(matches!(
            supervised.await.expect("no panic"),
            Supervised::Hung(_)
        ));
        drop(free);
    }

    #[tokio::test]
    async fn a_session_that_moves_is_left_alone_however_long_it_waits() {
        let (mut watchdog, observer) = watchdog(LIMIT);
        let session = async move {
            for _ in 0..30 {
                observer.pulse().moved();
                tokio::time::sleep(LIMIT / 10).await;
            }
            7
        };
        let (dropped, shutdown) = (CancellationToken::new(), CancellationToken::new());
        assert!(matches!(
            watchdog.supervise(session, &dropped, &shutdown).await,
            Supervised::Ended(7)
        ));
        assert!(!dropped.is_cancelled());
    }

    #[tokio::test]
    async fn a_session_that_does_not_stop_within_the_grace_is_overdue() {
        let (mut watchdog, _observer) = watchdog(Duration::from_secs(60));
        let (dropped, shutdown) = (CancellationToken::new(), CancellationToken::new());
        shutdown.cancel();
        assert!(matches!(
            watchdog
                .supervise(std::future::pending::<()>(), &dropped, &shutdown)
                .await,
            Supervised::Overdue
        ));
    }

    #[tokio::test]
    #[should_panic(expected = "the session panics")]
    async fn a_panic_of_the_session_goes_on() {
        let (mut watchdog, _observer) = watchdog(Duration::from_secs(60));
        let (dropped, shutdown) = (CancellationToken::new(), CancellationToken::new());
        watchdog
            .supervise(async { panic!("the session panics") }, &dropped, &shutdown)
            .await;
    }

    #[test]
    fn the_limit_leaves_time_for_a_connection_and_for_several_stalls() {
        let database = |url| crate::postgres::DatabaseSettings::parse(url).expect("a URL");
        let mut options = RelayOptions::new(
            database("postgres://a@b/c?connect_timeout=7"),
            crate::kafka::Settings::default(),
        );
        assert_eq!(hang_limit(&options), Duration::from_secs(67));
        options.stall_after = Duration::from_secs(100);
        assert_eq!(hang_limit(&options), Duration::from_secs(407));
    }
}
