//! Time limits of commands. A server that accepts a connection but never responds must not block a
//! script silently.

use std::time::Duration;

use tokio::time::{Instant, interval_at, timeout};

use super::{exit::Failure, stderr};
use crate::postgres::Settings;

/// Longer than the four statements of the longest command, each of which may take 30 s.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a command that queries the database, with a time limit.
///
/// # Errors
///
/// Returns the error of the command, or an error if the database does not respond in time.
pub(super) async fn within<T>(
    settings: &Settings,
    command: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(LIMIT, command).await.unwrap_or_else(|_| {
        let (server, seconds) = (settings.redacted(), LIMIT.as_secs());
        Err(Failure::Failed(format!(
            "{server} accepts connections but did not respond within {seconds} s\n  \
             -> check whether the server or a proxy in between hangs"
        )))
    })
}

/// Interval between reports of a command without a time limit that is still running.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// Runs a command without a time limit, and reports every 15 s that it is still running.
pub(super) async fn reported<T>(
    settings: Option<&Settings>,
    command: impl Future<Output = T>,
) -> T {
    let began = Instant::now();
    let mut reports = interval_at(began + REPORT_EVERY, REPORT_EVERY);
    let mut command = std::pin::pin!(command);
    loop {
        tokio::select! {
            done = &mut command => return done,
            _ = reports.tick() => {
                let server = settings
                    .map_or_else(String::new, |settings| format!(" on {}", settings.redacted()));
                let seconds = began.elapsed().as_secs();
                stderr::lines(&format!("still running{server} after {seconds} s; Ctrl-C ends it"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command whose query hangs.
    #[tokio::test(start_paused = true)]
    async fn a_database_that_never_answers_ends_a_command_with_a_remedy() {
        let settings = Settings::parse("postgres://a:secret@localhost/b").expect("a URL");
        let ended = within(&settings, std::future::pending::<Result<(), Failure>>()).await;
        let text = ended.expect_err("no answer").to_string();
        assert!(
            text.contains("within 120 s\n  ->") && !text.contains("secret"),
            "{text}"
        );
        assert!(
            within(&settings, async { Ok(7) })
                .await
                .is_ok_and(|seven| seven == 7)
        );
    }

    /// A command without a time limit.
    #[tokio::test(start_paused = true)]
    async fn a_command_without_a_time_limit_ends_with_its_work() {
        let work = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            7
        };
        assert_eq!(reported(None, work).await, 7);
    }
}
