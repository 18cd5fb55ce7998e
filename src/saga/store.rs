//! All SQL for the tables `saga` and `saga_lock`, executed in the transaction of a transition.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres, Row};
use uuid::Uuid;

use super::definition::{Saga, SagaState};
use super::drive::SagaInstance;
use super::machine::Input;
use super::notices::{CHANNEL, notice, notify};
use super::obstacle::Obstacle;
use super::progress::{Progress, SagaStatus};
use super::replies::Hold;
use super::statistics::SagaStanding;
use super::transition::Decision;
use crate::postgres::SchemaName;
use crate::subscriber::HandlerError;

/// Seed of the advisory locks' keys: "sagalock" in ASCII.
const LOCK_SEED: i64 = 0x7361_6761_6c6f_636b;

/// Number of ended sagas that retention deletes in one statement.
const DELETE_ROWS: i64 = 1_000;

const COLUMNS: &str = "id, name, version, key, state::text as state, progress::text as progress, \
                       correlation_id, action, pg_catalog.clock_timestamp() as now";

/// Condition for sagas whose current step is one of the steps `$3`, or for which the step does not
/// matter.
const AT_KNOWN_STEP: &str = "(status not in ('running', 'compensating') or step is null
   or step = any ($3) or action = 'end')";

/// Condition for timers that are held back (see [`Hold`]): sagas that have sent a command and have
/// no pending operator decision. Its parameters are: `$4` whether there is a hold, `$5` its time
/// `handled_as_of`, `$6` its limit, `$7` the consumer, and `$8` the limit for parked replies.
const HELD: &str = "($4 and action is null
   and coalesce(progress -> 'current' -> 'sent', '0') > '0'::jsonb
   and ((($5::timestamptz is null or due_at > $5)
         and ($6::float8 is null
           or due_at > pg_catalog.statement_timestamp() - $6 * interval '1 second'))
     or (($8::float8 is null
           or due_at > pg_catalog.statement_timestamp() - $8 * interval '1 second')
         and exists (select from \"SCHEMA\".subscriber_parked d
           where d.consumer = $7 and d.correlation_id = saga.id::text))))";

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

/// Filter for the sagas that the code of this process can continue.
pub(super) struct Mine<'m> {
    pub(super) name: &'m str,
    pub(super) version: u32,
    pub(super) steps: &'m [String],
}

/// Timers that are held back for a consumer. Without a hold, no timer is.
pub(super) struct Held<'h> {
    pub(super) hold: Option<Hold>,
    pub(super) consumer: &'h str,
}

/// Summary of the due sagas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// Number of due sagas that can be continued.
    pub(super) due: i64,
    /// `true` if due timers wait for replies in Kafka.
    pub(super) held: bool,
    /// Seconds until the next saga becomes due.
    pub(super) next: Option<f64>,
    pub(super) now: DateTime<Utc>,
}

/// Wake-up of the timers after a new saga has been stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Timers,
    Nobody,
}

/// Reason for postponing a saga.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why<'w> {
    /// Another saga holds one of its locks.
    Lock,
    /// An attempt to continue the saga failed.
    Error(&'w str),
    /// This code cannot continue the saga.
    Obstacle(&'w str),
}

/// Values stored for a saga after a transition.
pub(super) struct Kept<'k> {
    pub(super) id: Uuid,
    pub(super) state: String,
    pub(super) progress: &'k Progress,
    /// JSON form of `progress`, or the previously stored text if that text cannot be read.
    pub(super) stored_progress: String,
    pub(super) due: Option<DateTime<Utc>>,
    pub(super) obstacle: Option<String>,
}

/// Creates a query with the parameters `$1` to `$8` of [`AT_KNOWN_STEP`] and [`HELD`].
fn of_due<'q, O: for<'r> FromRow<'r, PgRow>>(
    sql: String,
    of: &'q Mine<'_>,
    held: &'q Held<'_>,
) -> QueryAs<'q, Postgres, O, PgArguments> {
    let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
    let hold = held.hold.as_ref();
    let query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(of.name)
        .bind(of.version.cast_signed())
        .bind(of.steps);
    query
        .bind(hold.is_some())
        .bind(hold.and_then(|hold| hold.handled_as_of))
        .bind(seconds(hold.and_then(|hold| hold.limit)))
        .bind(held.consumer)
        .bind(seconds(hold.and_then(|hold| hold.parked_limit)))
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

    /// Locks a due saga that no other transaction has locked. Skips sagas of newer code, sagas at
    /// steps that this code does not have, and sagas whose timer is held back.
    pub(super) async fn lock_due(
        &self,
        conn: &mut PgConnection,
        of: &Mine<'_>,
        held: &Held<'_>,
    ) -> Result<Option<Stored>, sqlx::Error> {
        let sql = format!(
            r#"select {COLUMNS} from "{}".saga where name = $1 and version <= $2
               and due_at <= pg_catalog.statement_timestamp()
               and {AT_KNOWN_STEP} and not {} order by due_at limit 1 for update skip locked"#,
            self.0,
            self.held()
        );
        of_due(sql, of, held).fetch_optional(conn).await
    }

    /// Counts the due sagas up to `count_max`, including those locked by other transactions.
    ///
    /// The SQL uses `statement_timestamp()` rather than `clock_timestamp()`, because a volatile
    /// function cannot be used as an index condition.
    pub(super) async fn count_due(
        &self,
        conn: &mut PgConnection,
        of: &Mine<'_>,
        held: &Held<'_>,
        count_max: usize,
    ) -> Result<Due, sqlx::Error> {
        let sql = format!(
            r#"select
                 (select pg_catalog.count(*) from (
                    select from "{0}".saga where name = $1 and version <= $2
                      and due_at <= pg_catalog.statement_timestamp()
                      and {AT_KNOWN_STEP} and not {1} limit $9) due) as due,
                 $4 and exists (
                    select from "{0}".saga where name = $1 and version <= $2
                      and due_at <= pg_catalog.statement_timestamp()
                      and {AT_KNOWN_STEP} and {1}
                      and ($5::timestamptz is null or due_at > $5)) as held,
                 (select extract(epoch from
                      pg_catalog.min(due_at) - pg_catalog.statement_timestamp())::float8
                    from "{0}".saga where name = $1 and version <= $2
                      and due_at > pg_catalog.statement_timestamp()) as next,
                 pg_catalog.statement_timestamp() as now"#,
            self.0,
            self.held()
        );
        of_due(sql, of, held)
            .bind(i64::try_from(count_max).unwrap_or(i64::MAX))
            .fetch_one(conn)
            .await
    }

    fn held(&self) -> String {
        HELD.replace("SCHEMA", self.0.as_str())
    }

    /// Returns the totals of the open and failed sagas, and one of the obstacles, if any.
    ///
    pub(super) async fn standing(
        &self,
        conn: &mut PgConnection,
        name: &str,
    ) -> Result<(SagaStanding, Option<String>), sqlx::Error> {
        // The condition on the status must match that of the partial index `saga_open`.
        let sql = format!(
            r#"select pg_catalog.count(*) filter (where status = 'waiting') as waiting,
                 pg_catalog.count(*) filter (where status = 'running') as running,
                 pg_catalog.count(*) filter (where status = 'compensating') as compensating,
                 pg_catalog.count(*) filter (where status = 'failed') as failed,
                 coalesce(extract(epoch from pg_catalog.clock_timestamp()
                   - pg_catalog.min(updated_at) filter (where status <> 'failed')), 0)::float8
                   as idle,
                 greatest(coalesce(extract(epoch from pg_catalog.clock_timestamp()
                   - pg_catalog.min(due_at)), 0), 0)::float8 as overdue,
                 pg_catalog.count(obstacle) as blocked, pg_catalog.min(obstacle) as obstacle
               from "{}".saga where name = $1
                 and status in ('waiting', 'running', 'compensating', 'failed')"#,
            self.0
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(name)
            .fetch_one(conn)
            .await?;
        Ok((SagaStanding::from_row(&row)?, row.try_get("obstacle")?))
    }

    /// Returns the number of open sagas that newer code has written, and the highest version.
    pub(super) async fn newer(
        &self,
        conn: &mut PgConnection,
        of: &Mine<'_>,
    ) -> Result<(i64, Option<i32>), sqlx::Error> {
        let sql = format!(
            r#"select pg_catalog.count(*), pg_catalog.max(version) from "{}".saga
               where name = $1 and version > $2
                 and status in ('waiting', 'running', 'compensating')"#,
            self.0
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(of.name)
            .bind(of.version.cast_signed())
            .fetch_one(conn)
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
                 values ($1, $2, $3, $4, $5, $6::text::json, $7, $8, pg_catalog.clock_timestamp())
                 on conflict (name, key) do nothing returning due_at)
               select due_at, case when $9 then pg_catalog.pg_notify('{CHANNEL}', $10)::text end
               from stored"#,
            self.0
        );
        let query = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(instance.id)
            .bind(&saga.name)
            .bind(saga.version.cast_signed());
        let query = query
            .bind(&instance.key)
            .bind(instance.progress.status.word())
            .bind(text(&instance.state)?);
        let query = query
            .bind(sqlx::types::Json(&instance.progress))
            .bind(&instance.correlation_id);
        Ok(query
            .bind(wake == Wake::Timers)
            .bind(notice(&self.0, &saga.name))
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
            r#"update "{}".saga set version = $2, status = $3, step = $4, error = $5,
                 state = $6::text::json, progress = $7::text::jsonb,
                 due_at = case when $10 or action is null then $8
                   else pg_catalog.clock_timestamp() end,
                 obstacle = $11, action = case when $10 then null else action end,
                 updated_at = pg_catalog.clock_timestamp(),
                 ended_at = case when $9
                   then coalesce(ended_at, pg_catalog.clock_timestamp()) end
               where id = $1"#,
            self.0
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
            .bind(progress.error());
        let query = query
            .bind(&kept.state)
            .bind(&kept.stored_progress)
            .bind(kept.due)
            .bind(progress.status.is_end());
        let nothing_to_decide = matches!(
            progress.status,
            SagaStatus::Completed | SagaStatus::Compensated
        );
        let query = query.bind(decision == Decision::Done || nothing_to_decide);
        query.bind(&kept.obstacle).execute(conn).await?;
        Ok(())
    }

    /// Stores the reasons why this code cannot continue sagas.
    pub(super) async fn mark(
        &self,
        conn: &mut PgConnection,
        ids: &[Uuid],
        obstacles: &[Option<String>],
    ) -> Result<(), sqlx::Error> {
        let sql = format!(
            r#"update "{}".saga s set obstacle = m.obstacle
               from unnest($1::uuid[], $2::text[]) as m (id, obstacle)
               where s.id = m.id and s.obstacle is distinct from m.obstacle"#,
            self.0
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(ids)
            .bind(obstacles)
            .execute(conn)
            .await
            .map(drop)
    }

    /// Returns up to `limit` open and failed sagas with an id after `after`, ordered by id. Skips
    /// sagas that newer code has written.
    pub(super) async fn open_after(
        &self,
        conn: &mut PgConnection,
        of: &Mine<'_>,
        after: Uuid,
        limit: i64,
        only_blocked: bool,
    ) -> Result<Vec<(Stored, Option<String>)>, sqlx::Error> {
        let sql = format!(
            r#"select {COLUMNS}, obstacle from "{}".saga where name = $1 and version <= $2
               and id > $3 and (obstacle is not null or not $5)
               and status in ('waiting', 'running', 'compensating', 'failed')
               order by id limit $4"#,
            self.0
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(of.name)
            .bind(of.version.cast_signed())
            .bind(after)
            .bind(limit);
        let rows = query.bind(only_blocked).fetch_all(conn).await?;
        rows.iter()
            .map(|row| Ok((Stored::from_row(row)?, row.try_get("obstacle")?)))
            .collect()
    }

    /// Postpones a saga and stores the reason. Only a saga that is still due is postponed, because
    /// another transaction may have continued it meanwhile.
    pub(super) async fn postpone(
        &self,
        conn: &mut PgConnection,
        id: Uuid,
        time: Duration,
        why: Why<'_>,
    ) -> Result<(), sqlx::Error> {
        let sql = format!(
            r#"update "{}".saga set
                 due_at = pg_catalog.clock_timestamp() + $2 * interval '1 second',
                 error = coalesce($3, error), obstacle = coalesce($4, obstacle)
               where id = $1 and due_at <= pg_catalog.clock_timestamp()"#,
            self.0
        );
        let (error, obstacle) = match why {
            Why::Lock => (None, None),
            Why::Error(error) => (Some(error), None),
            Why::Obstacle(obstacle) => (None, Some(obstacle)),
        };
        sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(time.as_secs_f64())
            .bind(error)
            .bind(obstacle)
            .execute(conn)
            .await
            .map(drop)
    }

    /// Adds the saga to the queue of each of these resources.
    ///
    /// The advisory locks are taken in one order and kept until the end of the transaction. They
    /// give two sagas the same order in every queue that they share. Without them, each of two
    /// sagas might wait for the other.
    pub(super) async fn queue(
        &self,
        conn: &mut PgConnection,
        id: Uuid,
        resources: &[String],
    ) -> Result<(), sqlx::Error> {
        self.serialize(conn, resources).await?;
        let sql = format!(
            r#"insert into "{}".saga_lock (resource, saga)
               select pg_catalog.unnest($1::text[]), $2"#,
            self.0
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(resources)
            .bind(id)
            .execute(conn)
            .await
            .map(drop)
    }

    /// Returns a resource that another saga holds before this one, and the id of that saga.
    pub(super) async fn blocked(
        &self,
        conn: &mut PgConnection,
        id: Uuid,
    ) -> Result<Option<(String, Uuid)>, sqlx::Error> {
        let sql = format!(
            r#"select o.resource, o.saga from "{0}".saga_lock m join "{0}".saga_lock o
               on o.resource = m.resource and o.seq < m.seq
               where m.saga = $1 order by o.seq limit 1"#,
            self.0
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(conn)
            .await
    }

    /// Returns one of these resources that a saga holds, and the id of that saga. Takes the
    /// advisory locks, so no other transaction can join the queues until this one ends.
    pub(super) async fn holder(
        &self,
        conn: &mut PgConnection,
        resources: &[String],
    ) -> Result<Option<(String, Uuid)>, sqlx::Error> {
        self.serialize(&mut *conn, resources).await?;
        let sql = format!(
            r#"select resource, saga from "{}".saga_lock where resource = any ($1)
               order by seq limit 1"#,
            self.0
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(resources)
            .fetch_optional(conn)
            .await
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

    /// Releases the locks and queue entries of a saga, and makes the sagas that wait for them due.
    /// Returns `true` if any saga was waiting.
    pub(super) async fn release(
        &self,
        conn: &mut PgConnection,
        id: Uuid,
    ) -> Result<bool, sqlx::Error> {
        let sql = format!(
            r#"select resource from "{}".saga_lock where saga = $1"#,
            self.0
        );
        let resources: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(id)
            .fetch_all(&mut *conn)
            .await?;
        if resources.is_empty() {
            return Ok(false);
        }
        // A transaction that joins the queue concurrently either sees the resource as free, or is
        // seen here.
        self.serialize(&mut *conn, &resources).await?;
        let delete = format!(r#"delete from "{}".saga_lock where saga = $1"#, self.0);
        sqlx::query(AssertSqlSafe(delete))
            .bind(id)
            .execute(&mut *conn)
            .await?;
        let wake = format!(
            r#"update "{0}".saga set due_at = pg_catalog.clock_timestamp()
               where status = 'waiting'
                 and id in (select saga from "{0}".saga_lock where resource = any ($1))
               returning name"#,
            self.0
        );
        let mut woken: Vec<String> = sqlx::query_scalar(AssertSqlSafe(wake))
            .bind(&resources)
            .fetch_all(&mut *conn)
            .await?;
        woken.sort_unstable();
        woken.dedup();
        if woken.is_empty() {
            return Ok(false);
        }
        notify(conn, &self.0, &woken).await.map(|()| true)
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

    async fn serialize(
        &self,
        conn: &mut PgConnection,
        resources: &[String],
    ) -> Result<(), sqlx::Error> {
        let sql = format!(
            "select pg_catalog.pg_advisory_xact_lock(k.key) from (select distinct \
             pg_catalog.hashtextextended(r, {LOCK_SEED}::bigint) as key from \
             pg_catalog.unnest($1::text[]) r order by key) k"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(resources)
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
        Ok(Self {
            id,
            state,
            progress,
            stored_progress,
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

impl FromRow<'_, PgRow> for Due {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            due: row.try_get("due")?,
            held: row.try_get("held")?,
            next: row.try_get("next")?,
            now: row.try_get("now")?,
        })
    }
}

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
