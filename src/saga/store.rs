//! All SQL for the tables `saga` and `saga_lock`, executed in the transaction of a transition.

mod due;
mod locks;
mod survey;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use uuid::Uuid;

use super::definition::{Saga, SagaState};
use super::drive::SagaInstance;
use super::machine::Input;
use super::notices::{CHANNEL, notice};
use super::obstacle::Obstacle;
use super::progress::{Progress, SagaStatus};
use super::transition::Decision;
use crate::postgres::SchemaName;
use crate::postgres::encodable::{ascii_json, bytes_of, encodable, encodable_json};
use crate::subscriber::HandlerError;
pub(super) use due::{Due, Held, Mine, Why};

/// Number of ended sagas that retention deletes in one statement.
const DELETE_ROWS: i64 = 1_000;

const COLUMNS: &str = "id, name, version, key, state::text as state, progress::text as progress, \
                       correlation_id, action, pg_catalog.clock_timestamp() as now";

/// Stored saga, locked by this transaction unless read by [`Store::read`] or [`Store::open_after`].
pub(super) struct Stored {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) version: i32,
    pub(super) key: String,
    pub(super) state: String,
    /// The stored JSON text: another version of the library may have written it.
    pub(super) progress: String,
    pub(super) correlation_id: Option<String>,
    pub(super) action: Option<String>,
    /// The database's time, which is the same for every replica.
    pub(super) now: DateTime<Utc>,
}

/// Wake-up of the timers after a new saga has been stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Timers,
    Nobody,
}

/// Values stored for a saga after a transition.
pub(super) struct Kept<'k> {
    pub(super) id: Uuid,
    pub(super) state: String,
    pub(super) progress: &'k Progress,
    /// JSON form of `progress`, or the previously stored text if that text cannot be read.
    pub(super) stored_progress: String,
    /// Replaces `stored_progress` in a database that is not UTF-8.
    pub(super) ascii_progress: Option<String>,
    pub(super) due: Option<DateTime<Utc>>,
    pub(super) obstacle: Option<String>,
}

/// Statements for the tables of one schema.
#[derive(Clone, Debug)]
pub(super) struct Store(SchemaName);

impl Store {
    pub(super) fn new(schema: SchemaName) -> Self {
        Self(schema)
    }

    pub(super) fn schema(&self) -> &SchemaName {
        &self.0
    }

    /// Locks a saga. Returns `None` if no saga has this name and id.
    pub(super) async fn lock(
        &self,
        conn: &mut PgConnection,
        name: &str,
        id: Uuid,
    ) -> Result<Option<Stored>, sqlx::Error> {
        let sql = format!(
            r#"select {COLUMNS} from "{}".saga where id = $1 and name = $2 for update"#,
            self.0
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .bind(name)
            .fetch_optional(conn)
            .await
    }

    /// Reads a saga of any name without locking it.
    pub(super) async fn read(
        &self,
        conn: &mut PgConnection,
        id: Uuid,
    ) -> Result<Option<Stored>, sqlx::Error> {
        let sql = format!(r#"select {COLUMNS} from "{}".saga where id = $1"#, self.0);
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(conn)
            .await
    }

    /// Stores a new saga that is due at once. Returns the database's time, or `None` if a saga of
    /// this name and key already exists.
    ///
    /// With [`Wake::Timers`], wakes the timers of all processes when the transaction commits.
    pub(super) async fn insert<S: SagaState>(
        &self,
        conn: &mut PgConnection,
        saga: &Saga<S>,
        instance: &SagaInstance<S>,
        wake: Wake,
    ) -> Result<Option<DateTime<Utc>>, HandlerError> {
        let sql = format!(
            r#"with stored as (
                 insert into "{}".saga
                   (id, name, version, key, status, state, progress, correlation_id, due_at)
                 values ($1, $2, $3, $4, $5, {}::json, $7, $8, pg_catalog.clock_timestamp())
                 on conflict (name, key) do nothing returning due_at)
               select due_at, case when $9 then pg_catalog.pg_notify('{CHANNEL}', $10)::text end
               from stored"#,
            self.0,
            encodable_json("$6::bytea", "$11::bytea")
        );
        let state = text(&instance.state)?;
        let query = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(instance.id)
            .bind(&saga.name)
            .bind(saga.version.cast_signed());
        let query = query
            .bind(&instance.key)
            .bind(instance.progress.status.word())
            .bind(state.as_bytes());
        let query = query
            .bind(sqlx::types::Json(&instance.progress))
            .bind(&instance.correlation_id);
        Ok(query
            .bind(wake == Wake::Timers)
            .bind(notice(&self.0, &saga.name))
            .bind(ascii_json(&state).map(String::into_bytes))
            .fetch_optional(conn)
            .await?)
    }

    /// Stores the progress of a saga. An operator's decision is kept until it has been applied, or
    /// until the saga is completed or compensated.
    pub(super) async fn save(
        &self,
        conn: &mut PgConnection,
        version: u32,
        kept: &Kept<'_>,
        decision: Decision,
    ) -> Result<(), HandlerError> {
        let sql = format!(
            r#"update "{}".saga set version = $2, status = $3, step = $4, error = {},
                 state = {}::json, progress = {}::jsonb,
                 due_at = case when $10 or action is null then $8
                   else pg_catalog.clock_timestamp() end,
                 obstacle = {}, action = case when $10 then null else action end,
                 updated_at = pg_catalog.clock_timestamp(),
                 ended_at = case when $9
                   then coalesce(ended_at, pg_catalog.clock_timestamp()) end
               where id = $1"#,
            self.0,
            encodable("$5::bytea"),
            encodable_json("$6::bytea", "$12::bytea"),
            encodable_json("$7::bytea", "$13::bytea"),
            encodable("$11::bytea"),
        );
        let progress = kept.progress;
        let step = progress
            .current
            .as_ref()
            .map(|current| &current.step)
            .or(progress.failure.as_ref().map(|failure| &failure.step));
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(kept.id)
            .bind(version.cast_signed())
            .bind(progress.status.word());
        let query = query
            .bind(step.filter(|_| progress.status != SagaStatus::Completed))
            .bind(progress.error().as_deref().map(bytes_of));
        let query = query
            .bind(kept.state.as_bytes())
            .bind(kept.stored_progress.as_bytes())
            .bind(kept.due)
            .bind(progress.status.is_end());
        let nothing_to_decide = matches!(
            progress.status,
            SagaStatus::Completed | SagaStatus::Compensated
        );
        let query = query.bind(decision == Decision::Done || nothing_to_decide);
        query
            .bind(kept.obstacle.as_deref().map(bytes_of))
            .bind(ascii_json(&kept.state).map(String::into_bytes))
            .bind(kept.ascii_progress.as_ref().map(String::as_bytes))
            .execute(conn)
            .await?;
        Ok(())
    }

    /// Returns the id of the saga with this name and key.
    pub(super) async fn id_of(
        &self,
        conn: &mut PgConnection,
        name: &str,
        key: &str,
    ) -> Result<Option<Uuid>, sqlx::Error> {
        let sql = format!(
            r#"select id from "{}".saga where name = $1 and key = $2"#,
            self.0
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(name)
            .bind(key)
            .fetch_optional(conn)
            .await
    }

    /// Deletes a batch of completed and compensated sagas that are older than `keep`.
    pub(super) async fn forget(
        &self,
        conn: &mut PgConnection,
        name: &str,
        keep: Duration,
    ) -> Result<(), sqlx::Error> {
        let sql = format!(
            r#"delete from "{0}".saga where id = any (array(
                 select id from "{0}".saga where name = $1
                   and ended_at < pg_catalog.statement_timestamp() - $2 * interval '1 second'
                   and status in ('completed', 'compensated')
                 order by ended_at limit {DELETE_ROWS} for update skip locked))"#,
            self.0
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(name)
            .bind(keep.as_secs_f64())
            .execute(conn)
            .await
            .map(drop)
    }
}

impl Stored {
    /// Parses the stored progress.
    pub(super) fn progress(&self) -> Result<Progress, Obstacle> {
        serde_json::from_str(&self.progress).map_err(|error| Obstacle::Progress {
            error: error.to_string(),
        })
    }

    /// Parses the stored saga.
    pub(super) fn instance<S: SagaState>(
        &self,
        saga: &Saga<S>,
        progress: Progress,
    ) -> Result<SagaInstance<S>, Obstacle> {
        let correlation_id = self.correlation_id.clone();
        let stored_by = self.version.cast_unsigned();
        let state = saga
            .read_state(stored_by, &self.state)
            .map_err(|error| Obstacle::State {
                stored_by,
                version: saga.version,
                error: error.to_string(),
            })?;
        Ok(SagaInstance {
            id: self.id,
            key: self.key.clone(),
            state,
            progress,
            correlation_id,
        })
    }

    /// Returns the machine's input when this saga is due.
    pub(super) fn input(&self) -> Input {
        match self.action.as_deref() {
            Some("retry") => Input::Retry,
            Some("abort") => Input::Abort,
            Some("end") => Input::End,
            _ => Input::Due,
        }
    }
}

impl<'k> Kept<'k> {
    /// Creates the values to store for an instance after a transition.
    pub(super) fn of<S: SagaState>(
        instance: &'k SagaInstance<S>,
        due: Option<DateTime<Utc>>,
        obstacle: Option<Obstacle>,
    ) -> Result<Self, HandlerError> {
        let (id, progress, state) = (instance.id, &instance.progress, text(&instance.state)?);
        let stored_progress = serde_json::to_string(progress)?;
        let ascii_progress = progress.ascii_json(&stored_progress)?;
        Ok(Self {
            id,
            state,
            progress,
            stored_progress,
            ascii_progress,
            due,
            obstacle: obstacle.map(|obstacle| obstacle.to_string()),
        })
    }
}

fn text<S: SagaState>(state: &S) -> Result<String, HandlerError> {
    serde_json::to_string(state).map_err(|error| {
        HandlerError::dead_letter(format!(
            "the saga's state cannot be serialized as JSON: {error}"
        ))
    })
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for Stored {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            version: row.try_get("version")?,
            key: row.try_get("key")?,
            state: row.try_get("state")?,
            progress: row.try_get("progress")?,
            correlation_id: row.try_get("correlation_id")?,
            action: row.try_get("action")?,
            now: row.try_get("now")?,
        })
    }
}
