//! Survey of the open and failed sagas of a name: their number and their obstacles.

use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use uuid::Uuid;

use super::due::Mine;
use super::{COLUMNS, Store, Stored};
use crate::postgres::encodable::{bytes_of, encodable};
use crate::saga::statistics::SagaStanding;

impl Store {
    /// Returns the totals of the open and failed sagas, and one of the obstacles, if any.
    pub(in crate::saga) async fn standing(
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
    pub(in crate::saga) async fn newer(
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

    /// Stores the reasons why this code cannot continue sagas.
    pub(in crate::saga) async fn mark(
        &self,
        conn: &mut PgConnection,
        ids: &[Uuid],
        obstacles: &[Option<String>],
    ) -> Result<(), sqlx::Error> {
        let sql = format!(
            r#"update "{}".saga s set obstacle = m.obstacle
               from (select id, {} as obstacle
                     from unnest($1::uuid[], $2::bytea[]) as e (id, bytes)) as m
               where s.id = m.id and s.obstacle is distinct from m.obstacle"#,
            self.0,
            encodable("bytes")
        );
        let obstacles: Vec<_> = obstacles
            .iter()
            .map(|obstacle| obstacle.as_deref().map(bytes_of))
            .collect();
        sqlx::query(AssertSqlSafe(sql))
            .bind(ids)
            .bind(obstacles)
            .execute(conn)
            .await
            .map(drop)
    }

    /// Returns up to `limit` open and failed sagas with an id after `after`, ordered by id. Skips
    /// sagas that newer code has written.
    pub(in crate::saga) async fn open_after(
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
}
