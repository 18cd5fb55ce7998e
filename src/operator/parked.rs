//! Decisions about parked events: all updates of the table `parked` by an operator.
//!
//! A decision only marks rows. The leading relay acts within seconds, which keeps the order of each
//! aggregate.

use sqlx::AssertSqlSafe;

use crate::inspect::{
    Database,
    parked::{OF_AGGREGATE, ParkedEvent, Selection, of_event, select},
};
use crate::postgres::begin;

/// Decision about parked events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Retry,
    Discard,
}

impl Decision {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }

    /// Describes events for which the relay has executed the decision.
    pub(crate) fn done(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Discard => "discarded",
        }
    }
}

/// Returns the condition for the rows that a decision marks: parameters 2 to 4 select an event or
/// an aggregate, and parameter 5 a reason.
///
/// A retry marks the undeliverable events: those that were selected, and those in front of them.
/// Events that wait behind them follow without a mark. A discard marks exactly the selected events.
fn filter(schema: &str, decision: Decision) -> String {
    let filter = match decision {
        // One event of a range cannot be discarded by itself.
        Decision::Discard => {
            format!("and ($2::uuid is null or (p.id = $2 and p.to_seq is null)) {OF_AGGREGATE}")
        }
        Decision::Retry => format!(
            "and p.reason is not null {OF_AGGREGATE}
             and ($2::uuid is null or exists (
                 select from \"{schema}\".parked e where e.relay = p.relay and {} and e.seq >= p.seq
                     and e.aggregatetype = p.aggregatetype and e.aggregateid = p.aggregateid))",
            of_event(schema, "e")
        ),
    };
    format!("{filter} and ($5::text is null or p.reason = $5)")
}

/// Marks events unless `dry_run` is set, and returns them.
pub(crate) async fn decide(
    database: &Database,
    relay: &str,
    what: &Selection,
    decision: Decision,
    dry_run: bool,
) -> Result<Vec<ParkedEvent>, sqlx::Error> {
    let (schema, filter) = (&database.schema, filter(&database.schema, decision));
    let (id, kind, aggregate) = what.parts();
    let mut tx = begin(&database.pool).await?;
    if !dry_run {
        let update =
            format!("update \"{schema}\".parked p set action = $6 where p.relay = $1 {filter}");
        let update = sqlx::query(AssertSqlSafe(update))
            .bind(relay)
            .bind(id)
            .bind(&kind)
            .bind(&aggregate)
            .bind(what.reason());
        update.bind(decision.word()).execute(&mut *tx).await?;
    }
    let query = sqlx::query_as(AssertSqlSafe(select(schema, &filter, "")))
        .bind(relay)
        .bind(id)
        .bind(kind)
        .bind(aggregate)
        .bind(what.reason());
    let events = query.fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(events)
}

/// Marks events and returns their number. With `dry_run`, it only counts them.
pub(crate) async fn mark(
    database: &Database,
    relay: &str,
    what: &Selection,
    decision: Decision,
    dry_run: bool,
) -> Result<i64, sqlx::Error> {
    let (schema, filter) = (&database.schema, filter(&database.schema, decision));
    let rows = match dry_run {
        true => format!(
            "select p.events from \"{schema}\".parked p
             where p.relay = $1 {filter} and $6::text is not null"
        ),
        false => format!(
            "update \"{schema}\".parked p set action = $6
             where p.relay = $1 {filter} returning p.events"
        ),
    };
    let sql =
        format!("with marked as ({rows}) select coalesce(sum(events), 0)::bigint from marked");
    let (id, kind, aggregate) = what.parts();
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(relay)
        .bind(id)
        .bind(kind)
        .bind(aggregate)
        .bind(what.reason())
        .bind(decision.word())
        .fetch_one(&database.pool)
        .await
}

/// Returns the number of events that are marked and not yet processed.
pub(crate) async fn undone(
    database: &Database,
    relay: &str,
    decision: Decision,
) -> Result<i64, sqlx::Error> {
    let sql = format!(
        "select coalesce(sum(events), 0)::bigint from \"{}\".parked \
         where relay = $1 and action = $2",
        database.schema
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(relay)
        .bind(decision.word())
        .fetch_one(&database.pool)
        .await
}
