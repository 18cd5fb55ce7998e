//! Sagas: the number in each state, open and ended ones, and the definition of a saga's steps.
//!
//! Ended sagas may be millions, so they are read by saga name through the index on their end. All
//! other reads use the index of the sagas that are not ended successfully.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, Row as _, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{Database, InspectError};

/// Maximum number of open sagas that a summary counts.
pub(crate) const SUMMARY_MAX: i64 = 10_000;

/// Condition of the index `saga_open`, word for word.
const IS_OPEN: &str = "status in ('waiting', 'running', 'compensating', 'failed')";

/// Sagas of one name in the same state at the same step.
#[derive(Debug, Serialize)]
pub(crate) struct SagaGroup {
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) step: Option<String>,
    pub(crate) sagas: i64,
}

/// A saga in a list.
#[derive(Debug, Serialize)]
pub(crate) struct SagaLine {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) status: String,
    pub(crate) step: Option<String>,
    /// The error or the obstacle.
    pub(crate) error: Option<String>,
    pub(crate) action: Option<String>,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
}

/// Selection of sagas.
#[derive(Clone, Debug, Default)]
pub(crate) struct SagaFilter {
    pub(crate) name: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) step: Option<String>,
}

/// A step of the code that runs a saga.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StepDefinition {
    pub(crate) step: String,
    #[serde(default)]
    pub(crate) forth: StepMessages,
    #[serde(default)]
    pub(crate) back: StepMessages,
    #[serde(default)]
    pub(crate) pivot: bool,
    #[serde(default)]
    pub(crate) retired: bool,
}

/// Event types of a step in one direction.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct StepMessages {
    /// The step calls code and sends nothing.
    #[serde(default)]
    pub(crate) local: bool,
    #[serde(default)]
    pub(crate) sends: Vec<String>,
    #[serde(default)]
    pub(crate) replies: Vec<String>,
}

/// Counts the sagas that are not ended successfully by name, state and step, up to
/// [`SUMMARY_MAX`].
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn summary(database: &Database) -> Result<Vec<SagaGroup>, InspectError> {
    let sql = database.sql(&format!(
        r#"select name, status, step, count(*) as sagas from (
             select name, status, step from "{{schema}}".saga where {IS_OPEN} limit $1
           ) bounded
           group by name, status, step order by status = 'failed' desc, name, status, step"#
    ));
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(SUMMARY_MAX)
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns sagas that are not ended successfully, those first that have not moved for the longest
/// time.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn open(
    database: &Database,
    filter: &SagaFilter,
    (offset, limit): (u32, u32),
) -> Result<Vec<SagaLine>, InspectError> {
    let sql = database.sql(&format!(
        r#"select id, name, key, status, step, left(coalesce(obstacle, error), 2000) as error,
             action, started_at, updated_at
           from (select * from "{{schema}}".saga where {IS_OPEN}
               and ($1::text is null or name = $1) and ($2::text is null or status = $2)
               and ($3::text is null or step = $3) limit {SUMMARY_MAX}) bounded
           order by updated_at, id limit $4 offset $5"#
    ));
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(filter.name.as_deref())
        .bind(filter.status.as_deref())
        .bind(filter.step.as_deref())
        .bind(i64::from(limit))
        .bind(i64::from(offset))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns ended sagas of a name, the latest first.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn ended(
    database: &Database,
    name: &str,
    (offset, limit): (u32, u32),
) -> Result<Vec<SagaLine>, InspectError> {
    let sql = database.sql(
        r#"select id, name, key, status, step, left(coalesce(obstacle, error), 2000) as error,
             action, started_at, updated_at
           from "{schema}".saga where name = $1 and ended_at is not null
           order by ended_at desc limit $2 offset $3"#,
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(name)
        .bind(i64::from(limit))
        .bind(i64::from(offset))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns the names of all sagas, each found with one step through the index.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn names(database: &Database) -> Result<Vec<String>, InspectError> {
    let sql = database.sql(
        r#"with recursive names as (
             (select name from "{schema}".saga order by name limit 1)
             union all
             select (select name from "{schema}".saga where name > n.name order by name limit 1)
             from names n where n.name is not null
           )
           select name from names where name is not null limit 200"#,
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns the steps of the code that ran most recently for a saga's name, preferably of this
/// version. Empty if no code has registered.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn definition(
    database: &Database,
    name: &str,
    version: i32,
) -> Result<Vec<StepDefinition>, InspectError> {
    let sql = database.sql(
        r#"select steps from "{schema}".saga_code where name = $1
           order by version = $2 desc, seen_at desc limit 1"#,
    );
    let steps: Option<Json<serde_json::Value>> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(name)
        .bind(version)
        .fetch_optional(&database.pool)
        .await
        .map_err(|error| database.error(error))?;
    // Another version of the library may have written the definition.
    Ok(steps
        .and_then(|Json(steps)| serde_json::from_value(steps).ok())
        .unwrap_or_default())
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for SagaGroup {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get("name")?,
            status: row.try_get("status")?,
            step: row.try_get("step")?,
            sagas: row.try_get("sagas")?,
        })
    }
}

impl FromRow<'_, PgRow> for SagaLine {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            key: row.try_get("key")?,
            status: row.try_get("status")?,
            step: row.try_get("step")?,
            error: row.try_get("error")?,
            action: row.try_get("action")?,
            started_at: row.try_get("started_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}
