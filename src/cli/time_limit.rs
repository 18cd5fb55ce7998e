//! Time limits of commands. A server that accepts a connection but never responds must not block a
//! script silently.

use std::time::Duration;

use tokio::time::{Instant, interval_at, timeout};

use super::progress::{self, Progress};
use super::{confirm, exit::Failure, stderr};
use crate::kafka;
use crate::postgres::DatabaseSettings;

/// Longer than the four statements of the longest command, each of which may take 30 s.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a command that queries the database, with a time limit.
///
/// # Errors
///
/// Returns the error of the command, or an error if the database does not respond in time.
pub(super) async fn within<T>(
    settings: &DatabaseSettings,
    command: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    limited(&settings.redacted(), command).await
}

/// Runs a command that queries brokers, with a time limit.
///
/// # Errors
///
/// Returns the error of the command, or an error if the brokers do not respond in time.
pub(super) async fn within_of_brokers<T>(
    settings: &kafka::Settings,
    command: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    limited(&settings.brokers, command).await
}

async fn limited<T>(
    server: &str,
    command: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut command = std::pin::pin!(with_a_line(String::new(), command));
    loop {
        let questions = confirm::questions();
        if let Ok(ended) = timeout(LIMIT, &mut command).await {
            return ended;
        }
        // The time in which an operator answers does not count.
        if confirm::is_asking() || confirm::questions() != questions {
            continue;
        }
        let seconds = LIMIT.as_secs();
        return Err(Failure::Failed(format!(
            "{server} accepts connections but did not respond within {seconds} s\n  \
             -> check whether the server or a proxy in between hangs"
        )));
    }
}

/// Interval between reports of a command without a time limit that is still running.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// Time after which a terminal shows that a command is still running.
const SHOW_AFTER: Duration = Duration::from_secs(1);

/// Runs a command without a time limit, and reports that it is still running: on a terminal by a
/// line that moves, elsewhere every 15 s.
pub(super) async fn reported<T>(
    settings: Option<&DatabaseSettings>,
    command: impl Future<Output = T>,
) -> T {
    let server = settings.map_or_else(String::new, |settings| {
        format!(" on {}", settings.redacted())
    });
    if progress::is_visible() {
        return with_a_line(server, command).await;
    }
    let began = Instant::now();
    let mut reports = interval_at(began + REPORT_EVERY, REPORT_EVERY);
    let mut command = std::pin::pin!(command);
    loop {
        tokio::select! {
            done = &mut command => return done,
            _ = reports.tick() => {
                let seconds = began.elapsed().as_secs();
                stderr::lines(&format!("still running{server} after {seconds} s; Ctrl-C ends it"));
            }
        }
    }
}

/// Runs a command, and shows on a terminal that it is still running. `server` follows these words.
async fn with_a_line<T>(server: String, command: impl Future<Output = T>) -> T {
    let mut command = std::pin::pin!(command);
    if !progress::is_visible() {
        return command.await;
    }
    let mut ticks = interval_at(Instant::now() + SHOW_AFTER, progress::TICK);
    let mut line: Option<Progress> = None;
    loop {
        tokio::select! {
            done = &mut command => return done,
            _ = ticks.tick() => match &line {
                // A question has the last line of the terminal.
                _ if confirm::is_asking() => line = None,
                Some(line) if line.is_shown() => line.tick(),
                _ => line = Progress::idle(format!("still running{server}; Ctrl-C ends it")),
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
        let settings = DatabaseSettings::parse("postgres://a:secret@localhost/b").expect("a URL");
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
