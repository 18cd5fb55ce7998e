//! Time limits of commands: a server that accepts a connection and never answers must not keep a script in silence.

use std::time::Duration;

use tokio::time::{Instant, interval_at, timeout};

use super::{exit::Failure, stderr};
use crate::postgres::Settings;

/// More than the four statements of the longest command may take, at 30 s each.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a command that asks the database, for as long as such a command may take.
///
/// # Errors
/// Those of the command, or that the database has not answered.
pub(super) async fn within<T>(settings: &Settings, command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(LIMIT, command).await.unwrap_or_else(|_| {
        let (server, seconds) = (settings.redacted(), LIMIT.as_secs());
        Err(Failure::Failed(format!(
            "{server} accepts connections and has not answered within {seconds} s\n  -> see whether the server hangs, or a proxy in between"
        )))
    })
}

/// How often a command without a time limit says that it still runs.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// Runs a command that may take as long as its work does, and says every 15 s that it still runs.
pub(super) async fn reported<T>(settings: Option<&Settings>, command: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let mut reports = interval_at(began + REPORT_EVERY, REPORT_EVERY);
    let mut command = std::pin::pin!(command);
    loop {
        tokio::select! {
            done = &mut command => return done,
            _ = reports.tick() => {
                let server = settings.map_or_else(String::new, |settings| format!(" with {}", settings.redacted()));
                stderr::lines(&format!("has worked{server} for {} s and continues; Ctrl-C ends it", began.elapsed().as_secs()));
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
        assert!(text.contains("within 120 s\n  ->") && !text.contains("secret"), "{text}");
        assert!(within(&settings, async { Ok(7) }).await.is_ok_and(|seven| seven == 7));
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
