//! Progress of the leading relay with marked events.

use std::time::{Duration, Instant};

use crate::cli::progress::{Progress, is_visible};
use crate::cli::{config::Config, output};
use crate::inspect::Database;
use crate::operator::parked::{Decision, undone};

/// Number of events up to which no progress is shown, because the relay processes them quickly.
const FEW: i64 = 1_000;

/// Interval between two queries.
const EVERY: Duration = Duration::from_millis(500);

/// Time without progress after which the command ends: no relay is running, or it is busy.
const SILENCE: Duration = Duration::from_secs(10);

/// Prints the progress of `marked` events until the relay has processed all of them, or makes no
/// progress.
pub(super) async fn watch(
    config: &Config,
    database: &Database,
    decision: Decision,
    marked: i64,
) -> Result<(), sqlx::Error> {
    if marked <= FEW {
        return Ok(());
    }
    let progress = Progress::counted(marked.unsigned_abs(), decision.done());
    let (mut left, mut since) = (marked, Instant::now());
    while left > 0 && since.elapsed() < SILENCE {
        tokio::time::sleep(EVERY).await;
        let now = undone(database, &config.name, decision).await?;
        if now != left {
            (left, since) = (now, Instant::now());
            let finished = marked.saturating_sub(left);
            progress.set(finished.unsigned_abs());
            if !is_visible() {
                output::line(format_args!(
                    "{finished} of {marked} events: {}",
                    decision.done()
                ));
            }
        }
    }
    drop(progress);
    if left > 0 {
        output::line(format_args!(
            "{left} events are still marked: relay {} processes them when it leads",
            config.name
        ));
    }
    Ok(())
}
