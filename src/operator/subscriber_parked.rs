//! Decisions about parked events of subscribers: all updates of the table `subscriber_parked` by an
//! operator.
//!
//! A decision only marks rows. The owner of the partition executes it within seconds on the lane of
//! the aggregate, so no event is discarded while it is handled, and none is handled out of order.

use sqlx::AssertSqlSafe;

use super::OperatorError;
use super::parked::Decision;
use crate::inspect::Database;
use crate::inspect::parked_by_subscribers::{
    COLUMNS, ParkedFilter, SELECTED, SubscriberParkedEvent,
};
use crate::postgres::begin;

/// Marked events that are returned.
const RETURNED_MAX: i64 = 1_000;

/// Events that a decision marks.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(crate) count: i64,
    /// The oldest of them.
    pub(crate) events: Vec<SubscriberParkedEvent>,
}

/// Returns the rows `p` that a decision marks. A discard marks exactly the selected events. A retry
/// marks the oldest event of each aggregate of the selected ones, because only that is tried.
fn rows(decision: Decision) -> String {
    match decision {
        Decision::Discard => {
            format!(r#"select p.seq from "{{schema}}".subscriber_parked p where {SELECTED}"#)
        }
        Decision::Retry => format!(
            r#"select min(h.seq) as seq from "{{schema}}".subscriber_parked h
               join (select distinct p.consumer, p.topic, p.partition, p.key
                     from "{{schema}}".subscriber_parked p where {SELECTED}) chosen
                 using (consumer, topic, partition, key)
               group by consumer, topic, partition, key"#
        ),
    }
}

/// Marks events unless `dry_run` is set, and returns them.
///
/// # Errors
///
/// Returns an error if the selection names no subscriber and matches events of several, or if a
/// statement fails.
pub(crate) async fn decide_parked(
    database: &Database,
    filter: &ParkedFilter,
    decision: Decision,
    by: &str,
    dry_run: bool,
) -> Result<Marked, OperatorError> {
    let failed = || OperatorError::sql("cannot mark the parked events");
    let mut tx = begin(&database.pool).await.map_err(failed())?;
    if filter.consumer.is_none() {
        let sql = database.sql(&format!(
            r#"select distinct p.consumer from "{{schema}}".subscriber_parked p where {SELECTED}"#
        ));
        let consumers: Vec<(String,)> = filter
            .bound(&sql)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed())?;
        if consumers.len() > 1 {
            let names: Vec<&str> = consumers.iter().map(|(name,)| name.as_str()).collect();
            return Err(OperatorError::Refused(format!(
                "{} subscribers have parked such events: {}\n  -> name one of them with --group",
                names.len(),
                names.join(", ")
            )));
        }
    }
    let rows = rows(decision);
    let sql = database.sql(&format!(
        r#"with marked as materialized ({rows}), counted as (select count(*) from marked)
           select {COLUMNS}, (select * from counted) as marked_count
           from "{{schema}}".subscriber_parked p
           where p.seq in (select seq from marked) order by p.seq limit {RETURNED_MAX}"#
    ));
    let found: Vec<MarkedRow> = filter
        .bound(&sql)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed())?;
    let mut count = found.first().map_or(0, |row| row.1);
    if !dry_run {
        let sql = database.sql(&format!(
            r#"with marked as materialized ({rows}), updated as (
                 update "{{schema}}".subscriber_parked set action = $7,
                   decided_by = left($8, 100) || ' (role ' || session_user || ')'
                 where seq in (select seq from marked) returning 1
               )
               select count(*) from updated"#
        ));
        (count,) = filter
            .bound(&sql)
            .bind(decision.word())
            .bind(by.to_owned())
            .fetch_one(&mut *tx)
            .await
            .map_err(failed())?;
    }
    tx.commit().await.map_err(failed())?;
    Ok(Marked {
        count,
        events: found.into_iter().map(|row| row.0).collect(),
    })
}

/// Returns the number of events of a subscriber that are marked and whose decision is not executed.
///
/// # Errors
///
/// Returns an error if the query fails.
pub(crate) async fn undone_parked(
    database: &Database,
    consumer: &str,
    decision: Decision,
) -> Result<i64, OperatorError> {
    let sql = database.sql(
        r#"select count(*) from "{schema}".subscriber_parked where consumer = $1 and action = $2"#,
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(consumer)
        .bind(decision.word())
        .fetch_one(&database.pool)
        .await
        .map_err(OperatorError::sql("cannot read the parked events"))
}

/// An event, and the number of all marked events.
struct MarkedRow(SubscriberParkedEvent, i64);

// === impl FromRow ===

impl sqlx::FromRow<'_, sqlx::postgres::PgRow> for MarkedRow {
    fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        use sqlx::Row as _;
        Ok(Self(
            SubscriberParkedEvent::from_row(row)?,
            row.try_get("marked_count")?,
        ))
    }
}
