//! The sagas of a database, for those who ask and those who decide.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::machine::Shape;
use super::notices::notify;
use super::obstacle::Obstacle;
use super::progress::{Progress, SagaStatus, StepFailure};
use super::registration::LIVE_SECONDS;
use crate::postgres::{SchemaName, SchemaNameError};

/// The sagas of a database, whatever code runs them.
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

/// A saga as it stands.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SagaRun {
    /// Which: the correlation id of what it sends.
    pub id: Uuid,
    /// The saga's name.
    pub name: String,
    /// The version of the code that wrote it last.
    pub version: i32,
    /// Its key.
    pub key: String,
    /// How far it is.
    pub status: SagaStatus,
    /// The step at which it stands, or that failed.
    pub step: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// Why the code that runs cannot continue it: it lacks the step, or cannot read the state.
    pub obstacle: Option<String>,
    /// Why it does not go forward, if it does not.
    pub failure: Option<StepFailure>,
    /// The steps that are done and not undone, in their order.
    pub done: Vec<String>,
    /// The steps that are undone, in the order in which they were.
    pub undone: Vec<String>,
    /// The steps that are not begun.
    pub ahead: Vec<String>,
    /// The compensations that failed.
    pub failed_compensations: Vec<StepFailure>,
    /// Its state.
    pub state: Value,
    /// When it is looked at though nothing comes.
    pub due_at: Option<DateTime<Utc>>,
    /// What a person has decided and is not done yet.
    pub action: Option<String>,
    /// What it holds or waits for, as `type/id`.
    pub locks: Vec<String>,
    /// When it was started.
    pub started_at: DateTime<Utc>,
    /// When it last went on.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// What a person decides about a saga. Whoever runs it does so, within a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// Once more from where it stands: the present step of one that is under way; what failed of one that has failed.
    Retry,
    /// Undo one that has not passed its pivot.
    Abort,
    /// End one where it stands, as failed, with what is done and not undone. Its locks are given up; also those of one that has failed already.
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

    /// Of which sagas it can be decided.
    fn filter(self) -> &'static str {
        match self {
            Self::Retry => "status not in ('completed', 'compensated')",
            Self::Abort => {
                "(status = 'waiting' or status = 'running' and not coalesce((progress ->> 'pivoted')::boolean, false))"
            }
            Self::End => "status not in ('completed', 'compensated')",
        }
    }
}

impl Sagas {
    /// The sagas in the schema `tidings` of this database.
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
    /// [`SchemaNameError`] if it cannot be the name of one.
    pub fn schema(mut self, name: impl AsRef<str>) -> Result<Self, SchemaNameError> {
        self.schema = name.as_ref().parse()?;
        Ok(self)
    }

    /// The saga of this id.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn get(&self, id: Uuid) -> Result<Option<SagaRun>, sqlx::Error> {
        sqlx::query_as(AssertSqlSafe(self.select("where id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
    }

    /// The saga of this name and key, see [`Saga::key`](super::Saga::key).
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn find(&self, name: &str, key: &str) -> Result<Option<SagaRun>, sqlx::Error> {
        sqlx::query_as(AssertSqlSafe(self.select("where name = $1 and key = $2")))
            .bind(name)
            .bind(key)
            .fetch_optional(&self.pool)
            .await
    }

    /// Sagas, the latest first: of this name or of all, of these states or of all, and so many at most.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn list(
        &self,
        name: Option<&str>,
        of: &[SagaStatus],
        limit: u32,
    ) -> Result<Vec<SagaRun>, sqlx::Error> {
        let words: Vec<&str> = of.iter().map(|status| status.word()).collect();
        let sql = self
            .select("where ($1::text is null or name = $1) and (pg_catalog.cardinality($2::text[]) = 0 or status = any ($2)) order by started_at desc limit $3");
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(name)
            .bind(words)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
    }

    /// Marks a saga, for those that run it to act on; false if there is none of which that can be decided.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn decide(&self, id: Uuid, decision: Decision) -> Result<bool, sqlx::Error> {
        let sql = format!(
            r#"update "{}".saga set action = $2, due_at = pg_catalog.clock_timestamp() where id = $1 and {} returning name"#,
            self.schema,
            decision.filter()
        );
        let name: Option<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(id)
            .bind(decision.word())
            .fetch_optional(&self.pool)
            .await?;
        let Some(name) = name else { return Ok(false) };
        // A hint: the timers find the decision without it.
        let _ = notify(&self.pool, &self.schema, &[name]).await;
        Ok(true)
    }

    /// Gives up the claim of a subscriber that is gone for good to the sagas of a name, so that another one may run them. Returns false
    /// if the subscriber ran within the last minute, or has no claim.
    ///
    /// # Errors
    ///
    /// What the database says.
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

    /// The saga that holds an aggregate, see [`Saga::locks`](super::Saga::locks): for code that shall leave it alone until then.
    ///
    /// # Errors
    ///
    /// What the database says.
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
            r#"select id, name, version, key, status, step, error, obstacle, state::text as state, progress::text as progress, due_at, action, started_at, updated_at, ended_at,
                 array(select resource from "{0}".saga_lock l where l.saga = s.id order by resource) as locks
               from "{0}".saga s {rest}"#,
            self.schema
        )
    }
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for SagaRun {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (state, stored): (String, String) = (row.try_get("state")?, row.try_get("progress")?);
        let status: SagaStatus = row
            .try_get::<String, _>("status")?
            .parse()
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let mut obstacle: Option<String> = row.try_get("obstacle")?;
        // Another version of the library may have written it. The others shall be listed all the same.
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
