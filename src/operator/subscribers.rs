//! Pauses of subscribers: the only writes of the table `subscriber_control`.
//!
//! A pause is a row. The members of the subscriber read it every second and confirm it in their own
//! rows (`subscriber/control.rs`), so an operator can wait until each has stopped.

use sqlx::{AssertSqlSafe, PgPool};

use super::OperatorError;
use crate::inspect::Database;
use crate::inspect::subscribers::{PauseRow, SubscriberPause};

/// Bytes of a reason that the table stores.
const REASON_BYTES_MAX: usize = 4_000;

/// Outcome of pausing or resuming a subscriber.
#[derive(Clone, Debug)]
pub(crate) struct PauseChange {
    /// `false` if the subscriber was in this state already.
    pub(crate) is_new: bool,
    /// The pause that is in effect, or that has ended.
    pub(crate) pause: Option<SubscriberPause>,
}

/// Pauses a subscriber. A pause that is in effect stays unchanged. With `dry_run`, nothing changes.
///
/// # Errors
///
/// Returns an error if the database contains no trace of the subscriber, or if a statement fails.
pub(crate) async fn pause_subscriber(
    database: &Database,
    consumer: &str,
    reason: Option<&str>,
    by: &str,
    dry_run: bool,
) -> Result<PauseChange, OperatorError> {
    let known = pause_of(database, consumer).await?;
    if known.is_some() {
        return Ok(PauseChange {
            is_new: false,
            pause: known,
        });
    }
    if !is_known(database, consumer).await? {
        return Err(OperatorError::Refused(format!(
            "no subscriber {consumer} has its inbox in this database\n  \
             -> `tidings subscribers list` shows the names; stop the process of a subscriber \
             without an inbox, which cannot be paused"
        )));
    }
    if let Some(reason) = reason.filter(|reason| reason.len() > REASON_BYTES_MAX) {
        return Err(OperatorError::Refused(format!(
            "the reason has {} bytes\n  -> shorten it to {REASON_BYTES_MAX}",
            reason.len()
        )));
    }
    if dry_run {
        return Ok(PauseChange {
            is_new: true,
            pause: None,
        });
    }
    // The time has the precision of milliseconds, so that every reader compares the same value.
    let sql = database.sql(
        r#"insert into "{schema}".subscriber_control (consumer, paused_since, reason, paused_by)
           values ($1, date_trunc('milliseconds', clock_timestamp()), $2,
               left($3, 100) || ' (role ' || session_user || ')')
           on conflict do nothing"#,
    );
    let inserted = sqlx::query(AssertSqlSafe(sql))
        .bind(consumer)
        .bind(reason)
        .bind(by)
        .execute(&database.pool)
        .await
        .map_err(OperatorError::sql("cannot pause the subscriber"))?;
    Ok(PauseChange {
        is_new: inserted.rows_affected() == 1,
        pause: pause_of(database, consumer).await?,
    })
}

/// Resumes a subscriber. With `dry_run`, nothing changes.
///
/// # Errors
///
/// Returns an error if a statement fails.
pub(crate) async fn resume_subscriber(
    database: &Database,
    consumer: &str,
    dry_run: bool,
) -> Result<PauseChange, OperatorError> {
    let pause = match dry_run {
        true => pause_of(database, consumer).await?,
        false => {
            let sql = database.sql(
                r#"delete from "{schema}".subscriber_control where consumer = $1
                   returning consumer, paused_since, reason, paused_by"#,
            );
            one(&database.pool, sql, consumer)
                .await
                .map_err(OperatorError::sql("cannot resume the subscriber"))?
        }
    };
    Ok(PauseChange {
        is_new: pause.is_some(),
        pause,
    })
}

/// Returns the pause of a subscriber.
///
/// # Errors
///
/// Returns an error if the query fails.
async fn pause_of(
    database: &Database,
    consumer: &str,
) -> Result<Option<SubscriberPause>, OperatorError> {
    let sql = database.sql(
        r#"select consumer, paused_since, reason, paused_by from "{schema}".subscriber_control
           where consumer = $1"#,
    );
    one(&database.pool, sql, consumer)
        .await
        .map_err(OperatorError::sql(
            "cannot read the pause of the subscriber",
        ))
}

async fn one(
    pool: &PgPool,
    sql: String,
    consumer: &str,
) -> Result<Option<SubscriberPause>, sqlx::Error> {
    let row: Option<PauseRow> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(consumer)
        .fetch_optional(pool)
        .await?;
    Ok(row.map(|PauseRow(_, pause)| pause))
}

/// Returns `true` if a subscriber of this name has left a row. One that only runs sagas has no
/// instances.
async fn is_known(database: &Database, consumer: &str) -> Result<bool, OperatorError> {
    let sql = database.sql(
        r#"select exists (select from "{schema}".subscriber where consumer = $1)
               or exists (select from "{schema}".saga_code where consumer = $1)
               or exists (select from "{schema}".subscriber_parked where consumer = $1)
               or exists (select from "{schema}".inbox where consumer = $1)"#,
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(consumer)
        .fetch_one(&database.pool)
        .await
        .map_err(OperatorError::sql("cannot find the subscriber"))
}
