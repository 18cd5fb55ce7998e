//! Progress of the leading relay with marked events.

use std::time::{Duration, Instant};

use sqlx::PgPool;

use super::rows::{self, Decision};
use crate::cli::{config::Config, output};

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
    pool: &PgPool,
    decision: Decision,
    marked: i64,
) -> Result<(), sqlx::Error> {
    if marked <= FEW {
        return Ok(());
    }
    let (mut left, mut since) = (marked, Instant::now());
    while left > 0 && since.elapsed() < SILENCE {
        tokio::time::sleep(EVERY).await;
        let now = rows::undone(pool, config, decision).await?;
        if now != left {
            (left, since) = (now, Instant::now());
            output::line(format_args!(
                "{} of {marked} events: {}",
                marked.saturating_sub(left),
                decision.done()
            ));
        }
    }
    if left > 0 {
        output::line(format_args!(
            "{left} events are still marked: relay {} processes them when it leads",
            config.name
        ));
    }
    Ok(())
}
