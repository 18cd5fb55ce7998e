//! Locks of sagas on aggregates, and the queues of the sagas that wait for them.

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::Store;
use crate::saga::notices::notify;

/// Seed of the advisory locks' keys: "sagalock" in ASCII.
const LOCK_SEED: i64 = 0x7361_6761_6c6f_636b;

impl Store {
    /// Adds the saga to the queue of each of these resources.
    ///
    /// The advisory locks are taken in one order and kept until the end of the transaction. They
    /// give two sagas the same order in every queue that they share. Without them, each of two
    /// sagas might wait for the other.
    pub(in crate::saga) async fn queue(
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
    pub(in crate::saga) async fn blocked(
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
    pub(in crate::saga) async fn holder(
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

    /// Releases the locks and queue entries of a saga, and makes the sagas that wait for them due.
    /// Returns `true` if any saga was waiting.
    pub(in crate::saga) async fn release(
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
