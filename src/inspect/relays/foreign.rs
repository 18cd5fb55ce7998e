//! Unpublished events of a table that is not the schema's own outbox.

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};

/// The table that a relay reads instead of the schema's outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ForeignTable {
    pub(crate) schema: String,
    pub(crate) name: String,
}

impl ForeignTable {
    /// Counts the events that `relay` has not published, up to one more than `counted_max`.
    ///
    /// Returns `None` if they cannot be counted: only the columns `seq` and `xid` identify
    /// published rows, and the role may lack the privilege to read the table.
    ///
    /// # Errors
    ///
    /// Returns an error if a query fails.
    pub(crate) async fn waiting(
        &self,
        session: &mut PgConnection,
        tidings: &str,
        relay: &str,
        counted_max: i64,
    ) -> Result<Option<i64>, sqlx::Error> {
        // Uses the catalog, which every role may read: `to_regclass` fails without USAGE on the
        // schema.
        let countable = "select has_schema_privilege(n.oid, 'usage') \
      and has_table_privilege(c.oid, 'select') and 2 = (
        select count(*) from pg_attribute a where a.attrelid = c.oid and not a.attisdropped
          and (a.attname, a.atttypid)
            in (('seq', 'bigint'::regtype), ('xid', 'xid8'::regtype)))
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $1 and c.relname = $2";
        let countable: Option<bool> = sqlx::query_scalar(countable)
            .bind(&self.schema)
            .bind(&self.name)
            .fetch_optional(&mut *session)
            .await?;
        if countable != Some(true) {
            return Ok(None);
        }
        let sql = format!(
            "select count(*) from (
                 select from {} o,
                 (select coalesce(pg_snapshot_xmin((position ->> 'seen')::pg_snapshot), '0')
                    as first_xid, coalesce(position, '{{}}') as position
                      from \"{tidings}\".relay where name = $1 offset 0) r
               where o.xid >= r.first_xid
                 and not \"{tidings}\".is_published(r.position, o.xid, o.seq) limit $2
             ) bounded",
            self.quoted()
        );
        let count = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(relay)
            .bind(counted_max + 1)
            .fetch_one(session);
        count.await.map(Some)
    }

    fn quoted(&self) -> String {
        format!(
            "\"{}\".\"{}\"",
            self.schema.replace('"', "\"\""),
            self.name.replace('"', "\"\"")
        )
    }
}

// === impl Display ===

impl std::fmt::Display for ForeignTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}
