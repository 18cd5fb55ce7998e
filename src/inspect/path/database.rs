//! Traces of an event in one database.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{EventName, Step, StepKind};
use crate::inspect::{Database, InspectError};

/// Number of rows of `subscriber_parked` that are examined.
const PARKED_ROWS_MAX: i64 = 100_000;

/// A transaction in which a subscriber handled an event.
#[derive(Clone, Debug)]
pub(super) struct Handled {
    pub(super) subscriber: String,
    pub(super) at: DateTime<Utc>,
    /// The lower 32 bits of the transaction's id.
    xid: i64,
}

/// Returns the source attributes that the relays of this database write into records.
pub(super) async fn sources(database: &Database) -> Result<Vec<String>, InspectError> {
    let sql =
        database.sql(r#"select event_source from "{schema}".relay where event_source is not null"#);
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns the topics that the relays of this database publish to.
pub(super) async fn topics(database: &Database) -> Result<Vec<String>, InspectError> {
    let sql = database.sql(r#"select distinct topic from "{schema}".relay_topic order by topic"#);
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns the time at which an event is due that waits in the table of scheduled events.
pub(super) async fn due_at(
    database: &Database,
    id: Uuid,
) -> Result<Option<(EventName, DateTime<Utc>)>, InspectError> {
    let sql = database.sql(
        r#"select type, aggregatetype, aggregateid, due_at from "{schema}".scheduled where id = $1"#,
    );
    let row: Option<(String, String, String, DateTime<Utc>)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(&database.pool)
        .await
        .map_err(|error| database.error(error))?;
    Ok(
        row.map(|(event_type, aggregate_type, aggregate_id, due_at)| {
            let name = EventName {
                id: id.to_string(),
                event_type,
                aggregate_type,
                aggregate_id,
            };
            (name, due_at)
        }),
    )
}

/// Returns the subscribers of this database that have handled an event.
pub(super) async fn handled(
    database: &Database,
    sources: &[String],
    id: &str,
) -> Result<Vec<Handled>, InspectError> {
    let sql = database.sql(include_str!("handled.sql"));
    let rows: Vec<(String, DateTime<Utc>, i64)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(sources)
        .bind(id)
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))?;
    let handled = |(subscriber, at, xid)| Handled {
        subscriber,
        at,
        xid,
    };
    Ok(rows.into_iter().map(handled).collect())
}

/// Returns the events that a handler published in its transaction, at most `limit`.
pub(super) async fn effects(
    database: &Database,
    handled: &Handled,
    id: &str,
    limit: i64,
) -> Result<Vec<EventName>, InspectError> {
    let sql = database.sql(include_str!("effects.sql"));
    let rows: Vec<(Uuid, String, String, String)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(handled.xid)
        .bind(id)
        .bind(limit)
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))?;
    let name = |(id, event_type, aggregate_type, aggregate_id): (Uuid, _, _, _)| EventName {
        id: id.to_string(),
        event_type,
        aggregate_type,
        aggregate_id,
    };
    Ok(rows.into_iter().map(name).collect())
}

/// Returns the parked rows of an event.
pub(super) async fn parked(database: &Database, id: &str) -> Result<Vec<Step>, InspectError> {
    type Row = (
        String,
        String,
        i32,
        i64,
        i32,
        DateTime<Utc>,
        Option<String>,
        DateTime<Utc>,
    );
    let sql = database.sql(include_str!("parked.sql"));
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(id)
        .bind(PARKED_ROWS_MAX)
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))?;
    let step = |(subscriber, topic, partition, offset, attempts, next_attempt_at, error, since)| {
        let kind = StepKind::SubscriberParked {
            subscriber,
            topic,
            partition,
            offset,
            attempts,
            next_attempt_at,
            error,
        };
        Step {
            at: Some(since),
            database: None,
            kind,
        }
    };
    Ok(rows.into_iter().map(step).collect())
}
