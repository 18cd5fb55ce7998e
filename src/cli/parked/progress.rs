//! Progress of the leading relay with what was marked.

use std::time::{Duration, Instant};

use sqlx::PgPool;

use super::rows::{self, Decision};
use crate::cli::{config::Config, output};

/// So few are done before anybody looks.
const FEW: i64 = 1_000;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// Without any progress for this long no relay runs, or it does not come to it.
const SILENCE: Duration = Duration::from_secs(10);

/// Shows how many of `marked` events the relay is done with, until it is done with all of them or makes no progress.
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
            "{left} events are still marked: the relay {} acts on them when it leads",
            config.name
        ));
    }
    Ok(())
}
