//! Scheduled events, in the order in which they become due.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Database, InspectError};

/// An event that is published when it is due.
#[derive(Debug, Serialize)]
pub(crate) struct ScheduledEvent {
    pub(crate) id: Uuid,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) event_type: String,
    pub(crate) topic: Option<String>,
    pub(crate) due_at: DateTime<Utc>,
    pub(crate) payload_bytes: i64,
}

/// Returns scheduled events, the first due one first.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn scheduled(
    database: &Database,
    (offset, limit): (u32, u32),
) -> Result<Vec<ScheduledEvent>, InspectError> {
    let sql = select(database, "order by due_at, number limit $1 offset $2");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(i64::from(limit))
        .bind(i64::from(offset))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns the scheduled event with this id.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn scheduled_event(
    database: &Database,
    id: Uuid,
) -> Result<Option<ScheduledEvent>, InspectError> {
    sqlx::query_as(AssertSqlSafe(select(database, "where id = $1")))
        .bind(id)
        .fetch_optional(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

fn select(database: &Database, rest: &str) -> String {
    database.sql(&format!(
        r#"select id, aggregatetype, aggregateid, type, topic, due_at,
             coalesce(octet_length(payload::text), octet_length(payload_bytes), 0)::bigint
               as payload_bytes
           from "{{schema}}".scheduled {rest}"#
    ))
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for ScheduledEvent {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            aggregate_type: row.try_get("aggregatetype")?,
            aggregate_id: row.try_get("aggregateid")?,
            event_type: row.try_get("type")?,
            topic: row.try_get("topic")?,
            due_at: row.try_get("due_at")?,
            payload_bytes: row.try_get("payload_bytes")?,
        })
    }
}
