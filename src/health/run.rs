//! The named checks of a service, run at once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Check, Checked, Report, Status};

/// How long a check may take unless told otherwise. An orchestrator's probe gives up after 1 s by default; this answers before.
const WITHIN: Duration = Duration::from_millis(900);

/// The named checks of a service; cheap to clone once built.
#[derive(Clone, Default)]
pub struct Health {
    checks: Vec<Named>,
    /// When the last run ended and what came of it. Held while one is under way: only one is.
    last: Arc<Mutex<Option<(Instant, Report)>>>,
}

#[derive(Clone)]
struct Named {
    name: Arc<str>,
    within: Duration,
    check: Arc<dyn Check>,
}

impl Health {
    /// No checks: always ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check that has 900 ms to answer.
    #[must_use]
    pub fn check(self, name: impl Into<Arc<str>>, check: impl Check) -> Self {
        self.check_within(WITHIN, name, check)
    }

    /// Adds a check that has its own time to answer. Keep it below what the prober waits.
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
        // What another set of checks said is not this one's.
        self.last = Arc::default();
        self
    }

    /// Asks all checks at once. Whoever asks while they run gets what that run says.
    ///
    /// # Cancel safety
    ///
    /// The checks are dropped with the future; others who wait for them ask again.
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

/// What a check without an answer says.
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
            assert!(std::hint::black_box(false), "it is thought to");
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
        assert_eq!(runs.load(Ordering::Relaxed), 2, "who asks later asks anew");
    }
}
