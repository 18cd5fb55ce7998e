//! A time limit for commands that only read: a server that accepts a connection and never answers must not keep a script.

use std::time::Duration;

use tokio::time::timeout;

use super::exit::Failure;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Case B7, for a command.
    #[tokio::test(start_paused = true)]
    async fn a_database_that_never_answers_ends_a_command_with_a_remedy() {
        let settings = Settings::parse("postgres://a:secret@localhost/b").expect("a URL");
        let ended = within(&settings, std::future::pending::<Result<(), Failure>>()).await;
        let text = ended.expect_err("no answer").to_string();
        assert!(text.contains("within 120 s\n  ->") && !text.contains("secret"), "{text}");
        assert!(within(&settings, async { Ok(7) }).await.is_ok_and(|seven| seven == 7));
    }
}
