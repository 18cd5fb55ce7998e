//! Named health checks of a service, run concurrently.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Check, Checked, Report, Status};

/// Default time limit of a check. An orchestrator's probe usually gives up after 1 s, so the
/// response arrives before.
const WITHIN: Duration = Duration::from_millis(900);

/// Named health checks of a service. Cheap to clone once built.
#[derive(Clone, Default)]
pub struct Health {
    checks: Vec<Named>,
    /// End and result of the last run. The lock is held during a run, so only one run is active.
    last: Arc<Mutex<Option<(Instant, Report)>>>,
}

#[derive(Clone)]
struct Named {
    name: Arc<str>,
    within: Duration,
    check: Arc<dyn Check>,
}

impl Health {
    /// Creates a set without checks, which is always ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check with a time limit of 900 ms.
    #[must_use]
    pub fn check(self, name: impl Into<Arc<str>>, check: impl Check) -> Self {
        self.check_within(WITHIN, name, check)
    }

    /// Adds a check with its own time limit. Keep the limit below that of the prober.
    #[must_use]
    pub fn check_within(
        mut self,
        within: Duration,
        name: impl Into<Arc<str>>,
        check: impl Check,
    ) -> Self {
        self.checks.push(Named {
            name: name.into(),
            within,
            check: Arc::new(check),
        });
        // The result of the previous set of checks is invalid for this one.
        self.last = Arc::default();
        self
    }

    /// Runs all checks concurrently. A caller that arrives during a run receives the result of that
    /// run.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, its checks are dropped too. The next caller that waits for the
    /// result starts a new run.
    pub async fn report(&self) -> Report {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        match &*last {
            Some((ended, report)) if *ended > asked => report.clone(),
            _ => {
                let report = self.run().await;
                *last = Some((Instant::now(), report.clone()));
                report
            }
        }
    }

    async fn run(&self) -> Report {
        let mut checks = self
            .checks
            .iter()
            .map(|named| Checked {
                name: named.name.clone(),
                status: Status::Failing(PANICKED.into()),
            })
            .collect::<Vec<_>>();
        let mut running = JoinSet::new();
        for (at, Named { within, check, .. }) in self.checks.iter().cloned().enumerate() {
            running.spawn(async move {
                (
                    at,
                    timeout(within, check.check())
                        .await
                        .unwrap_or_else(|_| late(within)),
                )
            });
        }
        while let Some(ended) = running.join_next().await {
            if let Ok((at, status)) = ended {
                checks[at].status = status;
            }
        }
        Report { checks }
    }
}

/// Status text of a check that ended without a result.
const PANICKED: &str = "the check panicked";

fn late(within: Duration) -> Status {
    Status::Failing(format!("no answer within {within:?}"))
}

// === impl Debug ===

impl fmt::Debug for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_list()
            .entries(self.checks.iter().map(|named| &named.name))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn checks_run_at_once_and_each_has_its_time() {
        let slow = |millis| {
            move || async move {
                sleep(Duration::from_millis(millis)).await;
                Ok::<_, Infallible>("slow")
            }
        };
        let health = Health::new()
            .check("a", slow(800))
            .check("b", slow(800))
            .check("hangs", std::future::pending::<Status>)
            .check_within(Duration::from_secs(2), "patient", slow(1_000));
        let began = Instant::now();
        let statuses: Vec<_> = health
            .report()
            .await
            .checks
            .into_iter()
            .map(|check| check.status)
            .collect();
        assert_eq!(began.elapsed().as_millis(), 1_000);
        let ok = Status::Ok("slow".into());
        assert_eq!(
            statuses,
            [
                ok.clone(),
                ok.clone(),
                Status::Failing("no answer within 900ms".into()),
                ok
            ]
        );
    }

    #[tokio::test]
    async fn a_check_that_panics_fails_and_the_others_are_told() {
        let panics = || async {
            assert!(std::hint::black_box(false), "this panic is intended");
            Status::Ok("never".into())
        };
        let report = Health::new()
            .check("panics", panics)
            .check("fine", || async { Status::Ok(String::new()) })
            .report()
            .await;
        assert_eq!(report.checks[0].status, Status::Failing(PANICKED.into()));
        assert_eq!(report.checks[1].status, Status::Ok(String::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_while_the_checks_run_gets_the_same_answer() {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let health = Health::new().check("counted", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async {
                sleep(Duration::from_millis(100)).await;
                Status::Ok(String::new())
            }
        });
        let mut askers = JoinSet::new();
        for _ in 0..50 {
            let health = health.clone();
            askers.spawn(async move { health.report().await.is_ready() });
        }
        assert!(askers.join_all().await.into_iter().all(|ready| ready));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        health.report().await;
        assert_eq!(
            runs.load(Ordering::Relaxed),
            2,
            "a later caller starts a new run"
        );
    }
}
