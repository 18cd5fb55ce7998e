//! Queries of the sagas in a database, and the operator's decisions about them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::machine::Shape;
use super::notices::notify;
use super::obstacle::Obstacle;
use super::progress::{Command, Progress, SagaStatus, StepFailure};
use super::registration::LIVE_SECONDS;
use crate::postgres::{SchemaName, SchemaNameError};

/// Access to the sagas of a database, independent of the code that runs them.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool) -> Result<(), sqlx::Error> {
/// use tidings::saga::{SagaStatus, Sagas};
///
/// let run = Sagas::new(pool).find("place-order", "7").await?;
/// let placed = run.is_some_and(|run| run.status == SagaStatus::Completed);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Sagas {
    pool: PgPool,
    schema: SchemaName,
}

/// State of one saga.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SagaRun {
    /// Id of the saga, which is the correlation id of the events that it sends.
    pub id: Uuid,
    /// Name of the saga.
    pub name: String,
    /// Version of the code that last wrote the saga.
    pub version: i32,
    /// Key of the saga.
    pub key: String,
    /// Status of the saga.
    pub status: SagaStatus,
    /// The current step, or the step that failed.
    pub step: Option<String>,
    /// The error.
    pub error: Option<String>,
    /// The reason why the running code cannot continue the saga: it lacks the step, or cannot read
    /// the state.
    pub obstacle: Option<String>,
    /// The failure that stopped the forward direction. `None` if no step failed.
    pub failure: Option<StepFailure>,
    /// The steps that are done and not undone, in the order of their completion.
    pub done: Vec<String>,
    /// The steps that are undone, in the order of their compensation.
    pub undone: Vec<String>,
    /// The steps that have not begun.
    pub ahead: Vec<String>,
    /// The compensations that failed.
    pub failed_compensations: Vec<StepFailure>,
    /// The commands sent so far, in their order.
    pub commands: Vec<SagaCommand>,
    /// State of the saga.
    pub state: Value,
    /// Time of the next check if no event arrives before.
    pub due_at: Option<DateTime<Utc>>,
    /// The operator's decision that has not been applied yet.
    pub action: Option<String>,
    /// The resources that the saga holds or waits for, as `type/id`.
    pub locks: Vec<String>,
    /// Start time.
    pub started_at: DateTime<Utc>,
    /// Time of the last transition.
    pub updated_at: DateTime<Utc>,
    /// End time. `None` until the saga has ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// Command that a saga has sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SagaCommand {
    /// Id of the event. Replies name it as their causation id.
    pub id: Uuid,
    /// The step that sent it.
    pub step: String,
    /// It compensates the step.
    pub is_compensation: bool,
}

/// Decision of an operator about a saga. The subscriber that runs the saga applies it within a
/// second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// Retries the current step of an open saga, or the failed steps of a failed saga.
    Retry,
    /// Compensates a saga that has not passed its pivot.
    Abort,
    /// Ends a saga as failed at its current step and leaves its completed steps as they are. Its
    /// locks are released. A saga that has already failed releases its locks too.
    End,
}

impl Decision {
    fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Abort => "abort",
            Self::End => "end",
        }
    }

    /// Returns the SQL condition for the sagas that the decision applies to.
    fn filter(self) -> &'static str {
        match self {
            Self::Retry => "status not in ('completed', 'compensated')",
            Self::Abort => {
                "(status = 'waiting'
                  or status = 'running'
                    and not coalesce((progress ->> 'pivoted')::boolean, false))"
            }
            Self::End => "status not in ('completed', 'compensated')",
        }
    }
}

impl Sagas {
    /// Creates access to the sagas in the schema `tidings` of this database.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            schema: SchemaName::default(),
        }
    }

    /// Uses the tables of another schema.
    ///
    /// # Errors
    ///
    /// Returns [`SchemaNameError`] if `name` cannot be the name of a schema.
    pub fn schema(mut self, name: impl AsRef<str>) -> Result<Self, SchemaNameError> {
        self.schema = name.as_ref().parse()?;
        Ok(self)
    }

    /// Returns the saga with this id.
    ///
    /// # Errors
    ///
    /// Returns the database error.
    pub async fn get(&self, id: Uuid) -> Result<Option<SagaRun>, sqlx::Error> {
        sqlx::query_as(AssertSqlSafe(self.select("where id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
    }

    /// Returns the saga with this name and key; see [`Saga::key`](super::Saga::key).
    ///
    /// # Errors
    ///
    /// Returns the database error.
    pub async fn find(&self, name: &str, key: &str) -> Result<Option<SagaRun>, sqlx::Error> {
        sqlx::query_as(AssertSqlSafe(self.select("where name = $1 and key = $2")))
            .bind(name)
            .bind(key)
            .fetch_optional(&self.pool)
            .await
    }

    /// Returns up to `limit` sagas, the latest first. `None` selects every name, and an empty list
    /// selects every status.
    ///
    /// # Errors
    ///
    /// Returns the database error.
    pub async fn list(
        &self,
        name: Option<&str>,
        of: &[SagaStatus],
        limit: u32,
    ) -> Result<Vec<SagaRun>, sqlx::Error> {
        let words: Vec<&str> = of.iter().map(|status| status.word()).collect();
        let sql = self.select(
            "where ($1::text is null or name = $1)
               and (pg_catalog.cardinality($2::text[]) = 0 or status = any ($2))
             order by started_at desc limit $3",
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(name)
            .bind(words)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
    }

    /// Records a decision for the subscriber that runs the saga. Returns `false` if no such saga
    /// exists, or if the decision does not apply to its status.
    ///
    /// # Errors
    ///
    /// Returns the database error.
    pub async fn decide(&self, id: Uuid, decision: Decision) -> Result<bool, sqlx::Error> {
        let sql = format!(
            r#"update "{}".saga set action = $2, due_at = pg_catalog.clock_timestamp() where id = $1
               and {} returning name"#,
            self.schema,
            decision.filter()
        );
        let name: Option<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(id)
            .bind(decision.word())
            .fetch_optional(&self.pool)
            .await?;
        let Some(name) = name else { return Ok(false) };
        // The notification only saves time: the timers also find the decision by polling.
        let _ = notify(&self.pool, &self.schema, &[name]).await;
        Ok(true)
    }

    /// Returns `true` if a decision applies to the saga in its present state. Changes nothing.
    ///
    /// # Errors
    ///
    /// Returns the database error.
    #[cfg(feature = "cli")]
    pub(crate) async fn applies(&self, id: Uuid, decision: Decision) -> Result<bool, sqlx::Error> {
        let sql = format!(
            r#"select exists (select from "{}".saga where id = $1 and {})"#,
            self.schema,
            decision.filter()
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(id)
            .fetch_one(&self.pool)
            .await
    }

    /// Removes the claim of a subscriber that no longer exists to the sagas of a name, so that
    /// another subscriber may run them. Returns `false` if the subscriber ran within the last
    /// minute, or has no claim.
    ///
    /// # Errors
    ///
    /// Returns the database error.
    pub async fn disown(&self, name: &str, subscriber: &str) -> Result<bool, sqlx::Error> {
        let sql = format!(
            r#"delete from "{0}".saga_code where name = $1 and consumer = $2 and not exists (
                 select from "{0}".saga_code where name = $1 and consumer = $2
                   and seen_at > pg_catalog.now() - {LIVE_SECONDS} * interval '1 second')"#,
            self.schema
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(name)
            .bind(subscriber)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Returns the saga that holds an aggregate, for code that must leave a locked aggregate alone;
    /// see [`Saga::locks`](super::Saga::locks).
    ///
    /// # Errors
    ///
    /// Returns the database error.
    pub async fn holder_of(
        &self,
        conn: &mut PgConnection,
        aggregate: &str,
        id: &str,
    ) -> Result<Option<Uuid>, sqlx::Error> {
        let sql = format!(
            r#"select saga from "{}".saga_lock where resource = $1 order by seq limit 1"#,
            self.schema
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(format!("{aggregate}/{id}"))
            .fetch_optional(conn)
            .await
    }

    fn select(&self, rest: &str) -> String {
        format!(
            r#"select id, name, version, key, status, step, error, obstacle, state::text as state,
                 progress::text as progress, due_at, action, started_at, updated_at, ended_at,
                 array(select resource from "{0}".saga_lock l where l.saga = s.id
                   order by resource) as locks
               from "{0}".saga s {rest}"#,
            self.schema
        )
    }
}

// === impl From, FromRow ===

impl From<Command> for SagaCommand {
    fn from(command: Command) -> Self {
        Self {
            id: command.id,
            step: command.step,
            is_compensation: command.back,
        }
    }
}

impl FromRow<'_, PgRow> for SagaRun {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (state, stored): (String, String) = (row.try_get("state")?, row.try_get("progress")?);
        let status: SagaStatus = row
            .try_get::<String, _>("status")?
            .parse()
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let mut obstacle: Option<String> = row.try_get("obstacle")?;
        // Another version of the library may have written the progress. An unreadable saga must not
        // prevent the listing of the others.
        let progress = serde_json::from_str::<Progress>(&stored).unwrap_or_else(|error| {
            obstacle = Some(
                Obstacle::Progress {
                    error: error.to_string(),
                }
                .to_string(),
            );
            Progress {
                status,
                ..Shape::default().plan()
            }
        });
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            version: row.try_get("version")?,
            key: row.try_get("key")?,
            status,
            step: row.try_get("step")?,
            error: row.try_get("error")?,
            obstacle,
            failure: progress.failure,
            done: progress.done,
            undone: progress.undone,
            ahead: progress.ahead.into(),
            failed_compensations: progress.failed_compensations,
            commands: progress
                .commands
                .into_iter()
                .map(SagaCommand::from)
                .collect(),
            state: serde_json::from_str(&state)
                .map_err(|error| sqlx::Error::Decode(error.into()))?,
            due_at: row.try_get("due_at")?,
            action: row.try_get("action")?,
            locks: row.try_get("locks")?,
            started_at: row.try_get("started_at")?,
            updated_at: row.try_get("updated_at")?,
            ended_at: row.try_get("ended_at")?,
        })
    }
}
