//! Health check of a relay's lag.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool};

use super::{Check, Checking, Status};
use crate::postgres::{SchemaName, SchemaNameError, errors::with_causes, seconds};

/// Health check of the lag of a relay, which may run in any process. Fails if an event has waited
/// longer than the limit, or if no relay of this name has ever run.
///
/// The check reads the tables `relay` and `outbox` and calls the function `is_published`, so its
/// role needs `select` on both tables. The age of an event is measured from its `occurred_at`. The
/// check does not support a relay that reads a Debezium table, whose rows have no such time; for
/// such a relay it fails with this reason.
///
/// A service that publishes through its outbox serves requests without a relay too. Use this check
/// for *readiness* only if requests need the consumers of the events. Otherwise use it for alerts.
///
/// ```no_run
/// # fn example(pool: sqlx::PgPool) {
/// use std::time::Duration;
/// use tidings::health::{Health, RelayLagCheck};
///
/// let health = Health::new()
///     .check("relay lag", RelayLagCheck::new(&pool, "tidings", Duration::from_secs(60)));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RelayLagCheck {
    pool: PgPool,
    relay: String,
    limit: Duration,
    schema: Result<SchemaName, SchemaNameError>,
}

impl RelayLagCheck {
    /// Creates a check of the relay of this name that uses this pool. The default name of a relay
    /// is `tidings`.
    pub fn new(pool: &PgPool, relay: impl Into<String>, limit: Duration) -> Self {
        Self {
            pool: pool.clone(),
            relay: relay.into(),
            limit,
            schema: Ok(SchemaName::default()),
        }
    }

    /// Reads the tables of another schema, as given to
    /// [`Migrations::schema`](crate::Migrations::schema).
    #[must_use]
    pub fn schema(mut self, name: impl AsRef<str>) -> Self {
        self.schema = name.as_ref().parse();
        self
    }

    async fn ask(&self) -> Status {
        let schema = match &self.schema {
            Ok(schema) => schema,
            Err(error) => return Status::Failing(error.to_string()),
        };
        match sqlx::query_as(AssertSqlSafe(statement(schema)))
            .bind(&self.relay)
            .fetch_optional(&self.pool)
            .await
        {
            Ok(row) => self.judge(row),
            Err(error) => {
                Status::Failing(format!("the lag cannot be read: {}", with_causes(&error)))
            }
        }
    }

    /// Returns the status for the age of the oldest event, the time since the last heartbeat, and
    /// the name of a Debezium table.
    fn judge(&self, row: Option<(Option<f64>, Option<f64>, Option<String>)>) -> Status {
        let Some((waits, seen, foreign)) = row else {
            return Status::Failing(format!(
                "no relay with the name {:?} has run in this database",
                self.relay
            ));
        };
        if let Some(table) = foreign {
            return Status::Failing(format!(
                "relay {:?} reads the table {table}, whose rows have no time from which their age \
                 could be measured; alert on the relay's own metrics instead",
                self.relay
            ));
        }
        let leader = seen.map_or_else(
            || "no leader yet".into(),
            |seen| format!("leader seen {}s ago", seconds(seen).as_secs()),
        );
        match waits.map(seconds) {
            None => Status::Ok(format!("no event waits, {leader}")),
            Some(waits) if waits <= self.limit => Status::Ok(format!(
                "an event has waited for {}s, {leader}",
                waits.as_secs()
            )),
            Some(waits) => Status::Failing(format!(
                "an event has waited for {}s, more than {:?}; {leader}",
                waits.as_secs(),
                self.limit
            )),
        }
    }
}

/// Returns the query for the age of the oldest unpublished event and the time since the relay's
/// last heartbeat. It uses the index on (xid, seq), so the first match is among the oldest events.
fn statement(schema: &SchemaName) -> String {
    format!(
        r#"select
            (select coalesce(extract(epoch from case when pg_catalog.isfinite(o.occurred_at)
                 then pg_catalog.clock_timestamp() - o.occurred_at end), 0)::float8
             from "{schema}".outbox o
             where o.xid >= coalesce(
                     pg_catalog.pg_snapshot_xmin((r.position ->> 'seen'::text)::pg_snapshot),
                     '0'::xid8
                 )
                 and not "{schema}".is_published(coalesce(r.position, '{{}}'::jsonb), o.xid, o.seq)
             order by o.xid, o.seq limit 1),
            extract(epoch from pg_catalog.clock_timestamp() - r.heartbeat_at)::float8,
            r.table_schema || '.'::text || r.table_name
        from "{schema}".relay r where r.name = $1"#
    )
}

// === impl Check ===

impl Check for RelayLagCheck {
    fn check(&self) -> Checking<'_> {
        Box::pin(self.ask())
    }
}
