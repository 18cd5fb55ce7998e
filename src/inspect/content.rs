//! Payload and headers of one event of the outbox, bounded in size.

use serde::Serialize;
use serde_json::Value;
use sqlx::{AssertSqlSafe, FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Database, InspectError};

/// Maximum size of a payload that is read, in characters of JSON or in bytes.
pub(crate) const PAYLOAD_MAX: i32 = 64 << 10;

/// Table of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Outbox,
    Scheduled,
}

/// Content of an event.
#[derive(Debug, Serialize)]
pub(crate) struct EventContent {
    pub(crate) event_type: String,
    pub(crate) version: i32,
    pub(crate) headers: Value,
    /// The JSON as it was written, up to [`PAYLOAD_MAX`] characters.
    pub(crate) payload: Option<String>,
    /// The binary payload, up to [`PAYLOAD_MAX`] bytes.
    pub(crate) payload_bytes: Option<Vec<u8>>,
    /// Size of the whole payload in bytes. `None` for a tombstone.
    pub(crate) size: Option<i32>,
    /// Only the beginning of the payload was read.
    pub(crate) is_cut: bool,
}

/// Returns the content of an event, or `None` if the table does not contain it.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn content(
    database: &Database,
    table: Table,
    id: Uuid,
) -> Result<Option<EventContent>, InspectError> {
    let table = match table {
        Table::Outbox => "outbox",
        Table::Scheduled => "scheduled",
    };
    let sql = database.sql(&format!(
        r#"select type, version, headers, left(json, $2) as payload,
             substring(payload_bytes from 1 for $2) as payload_bytes,
             coalesce(octet_length(json), octet_length(payload_bytes)) as size,
             coalesce(char_length(json), octet_length(payload_bytes), 0) > $2 as is_cut
           from (
               select type, version, headers, payload_bytes, payload::text as json
               from "{{schema}}".{table} where id = $1 offset 0
           ) one"#
    ));
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(id)
        .bind(PAYLOAD_MAX)
        .fetch_optional(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for EventContent {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            event_type: row.try_get("type")?,
            version: row.try_get("version")?,
            headers: row.try_get("headers")?,
            payload: row.try_get("payload")?,
            payload_bytes: row.try_get("payload_bytes")?,
            size: row.try_get("size")?,
            is_cut: row.try_get("is_cut")?,
        })
    }
}
