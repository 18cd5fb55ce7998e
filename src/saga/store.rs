//! All SQL on the tables `saga` and `saga_lock`, within the transaction of a transition.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use uuid::Uuid;

use super::definition::{Saga, SagaState};
use super::drive::Instance;
use super::machine::Input;
use super::progress::{Progress, SagaStatus};
use super::statistics::SagaStanding;
use super::transition::Decided;
use crate::postgres::SchemaName;
use crate::subscriber::HandlerError;

/// Seed of the locks' keys: "sagalock" in ASCII.
const LOCK_SEED: i64 = 0x7361_6761_6c6f_636b;

/// How many ended sagas retention deletes by one statement.
const DELETE_ROWS: i64 = 1_000;

const COLUMNS: &str =
    "id, version, key, status, state::text as state, progress, correlation_id, action, pg_catalog.clock_timestamp() as now";

/// A saga as it is stored, locked by this transaction.
pub(super) struct Stored {
    pub(super) id: Uuid,
    pub(super) version: i32,
    pub(super) key: String,
    pub(super) state: String,
    pub(super) progress: Progress,
    pub(super) correlation_id: Option<String>,
    pub(super) action: Option<String>,
    /// The database's time: the same for every replica.
    pub(super) now: DateTime<Utc>,
}

/// The statements on one schema.
#[derive(Clone, Debug)]
pub(super) struct Store(SchemaName);

impl Store {
    pub(super) fn new(schema: SchemaName) -> Self {
        Self(schema)
    }

    /// Locks a saga; none if there is none of this name and id.
    pub(super) async fn lock(&self, conn: &mut PgConnection, name: &str, id: Uuid) -> Result<Option<Stored>, sqlx::Error> {
        let sql = format!(r#"select {COLUMNS} from "{}".saga where id = $1 and name = $2 for update"#, self.0);
        sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(name).fetch_optional(conn).await
    }

    /// Locks one that is due and that nobody else looks at; newer code's are left alone.
    pub(super) async fn lock_due(&self, conn: &mut PgConnection, name: &str, version: u32) -> Result<Option<Stored>, sqlx::Error> {
        let sql = format!(
            r#"select {COLUMNS} from "{}".saga where name = $1 and version <= $2 and due_at <= pg_catalog.statement_timestamp()
               order by due_at limit 1 for update skip locked"#,
            self.0
        );
        sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(version.cast_signed()).fetch_optional(conn).await
    }

    /// How many are due, up to so many, whether somebody looks at them or not; and in how many seconds the next one is, of those that are not.
    ///
    /// By the statement's time and not by the clock's: what changes within a statement is not looked up in an index.
    pub(super) async fn count_due(
        &self,
        conn: &mut PgConnection,
        name: &str,
        version: u32,
        count_max: usize,
    ) -> Result<(i64, Option<f64>), sqlx::Error> {
        let sql = format!(
            r#"select
                 (select pg_catalog.count(*) from (
                    select from "{0}".saga where name = $1 and version <= $2 and due_at <= pg_catalog.statement_timestamp() limit $3) due),
                 (select extract(epoch from pg_catalog.min(due_at) - pg_catalog.statement_timestamp())::float8 from "{0}".saga
                    where name = $1 and version <= $2 and due_at > pg_catalog.statement_timestamp())"#,
            self.0
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(version.cast_signed());
        query.bind(i64::try_from(count_max).unwrap_or(i64::MAX)).fetch_one(conn).await
    }

    /// How those stand that have not ended well.
    pub(super) async fn standing(&self, conn: &mut PgConnection, name: &str) -> Result<SagaStanding, sqlx::Error> {
        // The condition on the status is that of the index `saga_open`.
        let sql = format!(
            r#"select pg_catalog.count(*) filter (where status = 'waiting') as waiting, pg_catalog.count(*) filter (where status = 'running') as running,
                 pg_catalog.count(*) filter (where status = 'compensating') as compensating, pg_catalog.count(*) filter (where status = 'failed') as failed,
                 coalesce(extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.min(updated_at) filter (where status <> 'failed')), 0)::float8 as idle,
                 greatest(coalesce(extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.min(due_at)), 0), 0)::float8 as overdue
               from "{}".saga where name = $1 and status in ('waiting', 'running', 'compensating', 'failed')"#,
            self.0
        );
        sqlx::query_as(AssertSqlSafe(sql)).bind(name).fetch_one(conn).await
    }

    /// Stores a new saga, due at once; the database's time, or none if one of its name and key is there already.
    pub(super) async fn insert<S: SagaState>(
        &self,
        conn: &mut PgConnection,
        saga: &Saga<S>,
        instance: &Instance<S>,
    ) -> Result<Option<DateTime<Utc>>, HandlerError> {
        let sql = format!(
            r#"insert into "{}".saga (id, name, version, key, status, state, progress, correlation_id, due_at)
               values ($1, $2, $3, $4, $5, $6::text::json, $7, $8, pg_catalog.clock_timestamp())
               on conflict (name, key) do nothing returning due_at"#,
            self.0
        );
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(instance.id).bind(&saga.name).bind(saga.version.cast_signed());
        let query = query.bind(&instance.key).bind(instance.progress.status.word()).bind(text(&instance.state)?);
        Ok(query.bind(sqlx::types::Json(&instance.progress)).bind(&instance.correlation_id).fetch_optional(conn).await?)
    }

    /// Stores how far a saga has come. What a person has decided stays until it is done, unless there is nothing left to decide.
    pub(super) async fn save<S: SagaState>(
        &self,
        conn: &mut PgConnection,
        saga: &Saga<S>,
        instance: &Instance<S>,
        due: Option<DateTime<Utc>>,
        decided: Decided,
    ) -> Result<(), HandlerError> {
        let sql = format!(
            r#"update "{}".saga set version = $2, status = $3, step = $4, error = $5, state = $6::text::json, progress = $7,
                 due_at = case when $10 or action is null then $8 else pg_catalog.clock_timestamp() end,
                 action = case when $10 then null else action end,
                 updated_at = pg_catalog.clock_timestamp(), ended_at = case when $9 then coalesce(ended_at, pg_catalog.clock_timestamp()) end where id = $1"#,
            self.0
        );
        let progress = &instance.progress;
        let step = progress.current.as_ref().map(|current| &current.step).or(progress.failure.as_ref().map(|failure| &failure.step));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(instance.id).bind(saga.version.cast_signed()).bind(progress.status.word());
        let query = query.bind(step.filter(|_| progress.status != SagaStatus::Completed)).bind(progress.error());
        let query = query.bind(text(&instance.state)?).bind(sqlx::types::Json(progress)).bind(due).bind(progress.status.is_end());
        let nothing_to_decide = matches!(progress.status, SagaStatus::Completed | SagaStatus::Compensated);
        let query = query.bind(decided == Decided::Done || nothing_to_decide);
        query.execute(conn).await?;
        Ok(())
    }

    /// Looks at it again after this long, for this reason; if it is due, since it may have been gone on with meanwhile.
    pub(super) async fn postpone(&self, conn: &mut PgConnection, id: Uuid, time: Duration, error: Option<&str>) -> Result<(), sqlx::Error> {
        let sql = format!(
            r#"update "{}".saga set due_at = pg_catalog.clock_timestamp() + $2 * interval '1 second', error = coalesce($3, error)
               where id = $1 and due_at <= pg_catalog.clock_timestamp()"#,
            self.0
        );
        sqlx::query(AssertSqlSafe(sql)).bind(id).bind(time.as_secs_f64()).bind(error).execute(conn).await.map(drop)
    }

    /// Joins the queue of each of these resources.
    ///
    /// The advisory locks, taken in one order and kept until the end of the transaction, let two sagas stand in the same order in every queue that they share: otherwise each might
    /// wait for the other.
    pub(super) async fn queue(&self, conn: &mut PgConnection, id: Uuid, resources: &[String]) -> Result<(), sqlx::Error> {
        self.serialize(conn, resources).await?;
        let sql = format!(r#"insert into "{}".saga_lock (resource, saga) select pg_catalog.unnest($1::text[]), $2"#, self.0);
        sqlx::query(AssertSqlSafe(sql)).bind(resources).bind(id).execute(conn).await.map(drop)
    }

    /// A resource that another saga holds before this one, and who.
    pub(super) async fn blocked(&self, conn: &mut PgConnection, id: Uuid) -> Result<Option<(String, Uuid)>, sqlx::Error> {
        let sql = format!(
            r#"select o.resource, o.saga from "{0}".saga_lock m join "{0}".saga_lock o on o.resource = m.resource and o.seq < m.seq
               where m.saga = $1 order by o.seq limit 1"#,
            self.0
        );
        sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(conn).await
    }

    /// Who holds one of these resources, asked under the locks that let nobody else join its queue.
    pub(super) async fn holder(&self, conn: &mut PgConnection, resources: &[String]) -> Result<Option<(String, Uuid)>, sqlx::Error> {
        self.serialize(&mut *conn, resources).await?;
        let sql = format!(r#"select resource, saga from "{}".saga_lock where resource = any ($1) order by seq limit 1"#, self.0);
        sqlx::query_as(AssertSqlSafe(sql)).bind(resources).fetch_optional(conn).await
    }

    /// The saga of this name and key.
    pub(super) async fn id_of(&self, conn: &mut PgConnection, name: &str, key: &str) -> Result<Option<Uuid>, sqlx::Error> {
        let sql = format!(r#"select id from "{}".saga where name = $1 and key = $2"#, self.0);
        sqlx::query_scalar(AssertSqlSafe(sql)).bind(name).bind(key).fetch_optional(conn).await
    }

    /// Gives up what a saga holds or waits for; who waits for it is due. Whether anybody is.
    pub(super) async fn release(&self, conn: &mut PgConnection, id: Uuid) -> Result<bool, sqlx::Error> {
        let sql = format!(r#"select resource from "{}".saga_lock where saga = $1"#, self.0);
        let resources: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).bind(id).fetch_all(&mut *conn).await?;
        if resources.is_empty() {
            return Ok(false);
        }
        // Who joins the queue at this moment either sees that it is free, or is seen here.
        self.serialize(&mut *conn, &resources).await?;
        let delete = format!(r#"delete from "{}".saga_lock where saga = $1"#, self.0);
        sqlx::query(AssertSqlSafe(delete)).bind(id).execute(&mut *conn).await?;
        let wake = format!(
            r#"update "{0}".saga set due_at = pg_catalog.clock_timestamp()
               where status = 'waiting' and id in (select saga from "{0}".saga_lock where resource = any ($1))"#,
            self.0
        );
        Ok(sqlx::query(AssertSqlSafe(wake)).bind(&resources).execute(conn).await?.rows_affected() > 0)
    }

    /// Deletes some that ended well and are old.
    pub(super) async fn forget(&self, conn: &mut PgConnection, name: &str, keep: Duration) -> Result<(), sqlx::Error> {
        let sql = format!(
            r#"delete from "{0}".saga where id = any (array(
                 select id from "{0}".saga where name = $1 and ended_at < pg_catalog.statement_timestamp() - $2 * interval '1 second'
                   and status in ('completed', 'compensated') order by ended_at limit {DELETE_ROWS} for update skip locked))"#,
            self.0
        );
        sqlx::query(AssertSqlSafe(sql)).bind(name).bind(keep.as_secs_f64()).execute(conn).await.map(drop)
    }

    async fn serialize(&self, conn: &mut PgConnection, resources: &[String]) -> Result<(), sqlx::Error> {
        let sql = format!(
            "select pg_catalog.pg_advisory_xact_lock(k.key) from (select distinct pg_catalog.hashtextextended(r, {LOCK_SEED}::bigint) as key from pg_catalog.unnest($1::text[]) r order by key) k"
        );
        sqlx::query(AssertSqlSafe(sql)).bind(resources).execute(conn).await.map(drop)
    }
}

impl Stored {
    /// The instance, read by this code.
    pub(super) fn instance<S: SagaState>(&self, saga: &Saga<S>) -> Result<Instance<S>, HandlerError> {
        let state = saga.read_state(self.version.cast_unsigned(), &self.state).map_err(|error| {
            let (name, id, version) = (&saga.name, self.id, self.version);
            HandlerError::retry(format!("the state of saga {name} {id}, of version {version}, cannot be read by this code: {error}"))
        })?;
        let (progress, correlation_id) = (self.progress.clone(), self.correlation_id.clone());
        Ok(Instance { id: self.id, key: self.key.clone(), state, progress, correlation_id })
    }

    /// What happens to it when it is due.
    pub(super) fn input(&self) -> Input {
        match self.action.as_deref() {
            Some("retry") => Input::Retry,
            Some("abort") => Input::Abort,
            Some("end") => Input::End,
            _ => Input::Due,
        }
    }
}

fn text<S: SagaState>(state: &S) -> Result<String, HandlerError> {
    serde_json::to_string(state).map_err(|error| HandlerError::dead_letter(format!("the saga's state has no JSON form: {error}")))
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for Stored {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            version: row.try_get("version")?,
            key: row.try_get("key")?,
            state: row.try_get("state")?,
            progress: row.try_get::<sqlx::types::Json<_>, _>("progress")?.0,
            correlation_id: row.try_get("correlation_id")?,
            action: row.try_get("action")?,
            now: row.try_get("now")?,
        })
    }
}
