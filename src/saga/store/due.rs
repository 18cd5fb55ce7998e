//! Due sagas: the timer locks, counts and postpones them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres, Row};
use uuid::Uuid;

use super::{COLUMNS, Store, Stored};
use crate::postgres::encodable::{bytes_of, encodable};
use crate::saga::replies::Hold;

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

/// Filter for the sagas that the code of this process can continue.
pub(in crate::saga) struct Mine<'m> {
    pub(in crate::saga) name: &'m str,
    pub(in crate::saga) version: u32,
    pub(in crate::saga) steps: &'m [String],
}

/// Timers that are held back for a consumer. Without a hold, no timer is.
pub(in crate::saga) struct Held<'h> {
    pub(in crate::saga) hold: Option<Hold>,
    pub(in crate::saga) consumer: &'h str,
}

/// Summary of the due sagas.
#[derive(Clone, Copy, Debug)]
pub(in crate::saga) struct Due {
    /// Number of due sagas that can be continued.
    pub(in crate::saga) due: i64,
    /// `true` if due timers wait for replies in Kafka.
    pub(in crate::saga) held: bool,
    /// Seconds until the next saga becomes due.
    pub(in crate::saga) next: Option<f64>,
    pub(in crate::saga) now: DateTime<Utc>,
}

/// Reason for postponing a saga.
#[derive(Clone, Copy, Debug)]
pub(in crate::saga) enum Why<'w> {
    /// Another saga holds one of its locks.
    Lock,
    /// An attempt to continue the saga failed.
    Error(&'w str),
    /// This code cannot continue the saga.
    Obstacle(&'w str),
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

impl Store {
    /// Locks a due saga that no other transaction has locked. Skips sagas of newer code, sagas at
    /// steps that this code does not have, and sagas whose timer is held back.
    pub(in crate::saga) async fn lock_due(
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
    pub(in crate::saga) async fn count_due(
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

    /// Postpones a saga and stores the reason. Only a saga that is still due is postponed, because
    /// another transaction may have continued it meanwhile.
    pub(in crate::saga) async fn postpone(
        &self,
        conn: &mut PgConnection,
        id: Uuid,
        time: Duration,
        why: Why<'_>,
    ) -> Result<(), sqlx::Error> {
        let sql = format!(
            r#"update "{}".saga set
                 due_at = pg_catalog.clock_timestamp() + $2 * interval '1 second',
                 error = coalesce({}, error), obstacle = coalesce({}, obstacle)
               where id = $1 and due_at <= pg_catalog.clock_timestamp()"#,
            self.0,
            encodable("$3::bytea"),
            encodable("$4::bytea")
        );
        let (error, obstacle) = match why {
            Why::Lock => (None, None),
            Why::Error(error) => (Some(error), None),
            Why::Obstacle(obstacle) => (None, Some(obstacle)),
        };
        sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(time.as_secs_f64())
            .bind(error.map(bytes_of))
            .bind(obstacle.map(bytes_of))
            .execute(conn)
            .await
            .map(drop)
    }

    fn held(&self) -> String {
        HELD.replace("SCHEMA", self.0.as_str())
    }
}

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
