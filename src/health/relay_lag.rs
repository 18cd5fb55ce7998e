//! Whether a relay keeps up with this database.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool};

use super::{Check, Checking, Status};
use crate::postgres::{SchemaName, SchemaNameError, errors::with_causes, seconds};

/// Whether a relay, in whatever process, keeps up: failing when an event has waited for longer than the limit, or when no relay of this name has run.
///
/// It reads the tables `relay` and `outbox`, both of which its role may have to be allowed to select from, and calls the function `is_published`. The age of an event counts from
/// its `occurred_at`. Not for a relay that reads a Debezium table, whose rows do not say how long they have waited: it fails, and says so.
///
/// A service that publishes by its outbox serves its requests without a relay too. Make this a check of *readiness* only where requests need the events' consumers; else
/// ask it where you alert.
///
/// ```no_run
/// # fn example(pool: sqlx::PgPool) {
/// use std::time::Duration;
/// use tidings::health::{Health, RelayLagCheck};
///
/// let health = Health::new().check("relay lag", RelayLagCheck::new(&pool, "tidings", Duration::from_secs(60)));
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
    /// Asks by this pool about the relay of this name; `tidings` unless it was given another.
    pub fn new(pool: &PgPool, relay: impl Into<String>, limit: Duration) -> Self {
        Self {
            pool: pool.clone(),
            relay: relay.into(),
            limit,
            schema: Ok(SchemaName::default()),
        }
    }

    /// Reads the tables of another schema, as given to [`Migrations::schema`](crate::Migrations::schema).
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
            Err(error) => Status::Failing(format!("the lag is not known: {}", with_causes(&error))),
        }
    }

    /// From how long the oldest event has waited, and how long ago the leader was seen.
    fn judge(&self, row: Option<(Option<f64>, Option<f64>, Option<String>)>) -> Status {
        let Some((waits, seen, foreign)) = row else {
            return Status::Failing(format!(
                "no relay called {:?} has run in this database",
                self.relay
            ));
        };
        if let Some(table) = foreign {
            return Status::Failing(format!(
                "relay {:?} reads table {table}, whose rows do not say how long they have waited: alert on the relay's own metrics instead",
                self.relay
            ));
        }
        let leader = seen.map_or_else(
            || "no leader yet".into(),
            |seen| format!("leader seen {}s ago", seconds(seen).as_secs()),
        );
        match waits.map(seconds) {
            None => Status::Ok(format!("nothing waits, {leader}")),
            Some(waits) if waits <= self.limit => {
                Status::Ok(format!("an event waits for {}s, {leader}", waits.as_secs()))
            }
            Some(waits) => Status::Failing(format!(
                "an event has waited for {}s, more than {:?}; {leader}",
                waits.as_secs(),
                self.limit
            )),
        }
    }
}

/// How long an event that is not published has waited, and when the relay was seen. By the index on (xid, seq), so the first found is among the oldest.
fn statement(schema: &SchemaName) -> String {
    format!(
        r#"select
            (select coalesce(extract(epoch from case when pg_catalog.isfinite(o.occurred_at) then pg_catalog.clock_timestamp() - o.occurred_at end), 0)::float8
             from "{schema}".outbox o
             where o.xid >= coalesce(pg_catalog.pg_snapshot_xmin((r.position ->> 'seen'::text)::pg_snapshot), '0'::xid8)
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
