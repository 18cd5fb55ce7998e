//! Reads the state of every relay from the database.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgPool, Row};

use super::foreign::ForeignTable;
use crate::{
    operator::sessions,
    relay::{Holder, holder},
};

/// Most events that are counted one by one. What is more is estimated: counting a million takes seconds.
pub(super) const COUNTED_MAX: i64 = 10_000;

/// Rows are read in the order of an index, whatever statistics the planner has. Without any it sorts the whole table.
const PLAN: &str = "set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off; set local jit = off";

/// What a database knows of its relays.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) schema: String,
    pub(super) relays: Vec<RelayStatus>,
    /// Events in the outbox when no relay has run yet, counted up to a bound.
    pub(super) waiting_events: Option<i64>,
    pub(super) scheduled: ScheduledStatus,
}

/// Events that are published when they are due.
#[derive(Debug, Serialize)]
pub(super) struct ScheduledStatus {
    /// Counted up to a bound.
    pub(super) events: i64,
    /// For how long the first one has been due; none if it is not.
    pub(super) overdue_seconds: Option<f64>,
}

/// One relay.
#[derive(Debug, Serialize)]
pub(super) struct RelayStatus {
    pub(super) name: String,
    /// What it reads, if that is not this schema's outbox.
    pub(super) table: Option<ForeignTable>,
    pub(super) leader: Option<String>,
    /// The session that holds the lock of its lease, if that is no relay.
    pub(super) lock_held_by: Option<String>,
    /// Processes that wait to lead, `host:pid`.
    pub(super) standbys: Vec<String>,
    pub(super) epoch: i64,
    pub(super) heartbeat_age_seconds: Option<f64>,
    /// Since it has stored how far it is.
    pub(super) position_age_seconds: f64,
    pub(super) published: i64,
    pub(super) kafka_cluster_id: Option<String>,
    /// What it reads, `wal` or `table`, and why.
    pub(super) source: Option<String>,
    pub(super) source_reason: Option<String>,
    pub(super) delivery: Option<String>,
    pub(super) position: PositionStatus,
    pub(super) lag: LagStatus,
    pub(super) parked: ParkedStatus,
    pub(super) slot: SlotStatus,
    pub(super) topics: Vec<TopicStatus>,
}

/// How far it has published.
#[derive(Debug, Serialize)]
pub(super) struct PositionStatus {
    /// Every commit before it is published.
    pub(super) log: Option<String>,
    /// Every transaction that this snapshot sees is.
    pub(super) seen: Option<String>,
}

/// What it has not published yet.
#[derive(Debug, Serialize)]
pub(super) struct LagStatus {
    /// None: it cannot be told from the table.
    pub(super) events: Option<i64>,
    /// There are more events than are counted.
    pub(super) events_is_lower_bound: bool,
    /// About how many there are then, by the numbers of the first and the last one; more than there are if transactions were
    /// rolled back. None: not known.
    pub(super) events_estimate: Option<i64>,
    pub(super) bytes: Option<i64>,
    /// None: nothing in the table says when an event happened.
    pub(super) seconds: Option<f64>,
}

/// What waits because it, or an earlier event of its aggregate, cannot be delivered.
#[derive(Debug, Serialize)]
pub(super) struct ParkedStatus {
    pub(super) events: i64,
    pub(super) aggregates: i64,
}

/// Its replication slot.
#[derive(Debug, Serialize)]
pub(super) struct SlotStatus {
    pub(super) name: String,
    pub(super) exists: bool,
    pub(super) active: bool,
    pub(super) wal_status: Option<String>,
    pub(super) confirmed_flush_lsn: Option<String>,
    pub(super) retained_bytes: Option<i64>,
    pub(super) safe_wal_size: Option<i64>,
}

/// What it published to one topic.
#[derive(Debug, Serialize)]
pub(super) struct TopicStatus {
    pub(super) topic: String,
    pub(super) partitions: i32,
    pub(super) published: i64,
    /// It is being grown: what goes to it is held back, and with it what comes after that, for so long at most.
    pub(super) held_seconds: Option<f64>,
}

/// Why the state cannot be read.
#[derive(Debug)]
pub(super) enum StatusError {
    Missing,
    Denied(String),
    Database(sqlx::Error),
}

impl Status {
    /// Reads it in one snapshot.
    pub(super) async fn read(pool: &PgPool, schema: &str) -> Result<Self, StatusError> {
        let mut tx = pool
            .begin_with("begin isolation level repeatable read read only")
            .await?;
        sqlx::raw_sql(PLAN).execute(&mut *tx).await?;
        let relays = include_str!("relays.sql").replace("{schema}", schema);
        let mut relays: Vec<RelayStatus> = sqlx::query_as(AssertSqlSafe(relays))
            .bind(COUNTED_MAX + 1)
            .fetch_all(&mut *tx)
            .await?;
        let topics = format!(
            r#"select relay, topic, partitions, published,
                      case when hold is not null then greatest(extract(epoch from hold_until - now()), 0)::float8 end
               from "{schema}".relay_topic order by relay, topic"#
        );
        let topics: Vec<(String, String, i32, i64, Option<f64>)> =
            sqlx::query_as(AssertSqlSafe(topics))
                .fetch_all(&mut *tx)
                .await?;
        for (name, topic, partitions, published, held_seconds) in topics {
            if let Some(relay) = relays.iter_mut().find(|relay| relay.name == name) {
                relay.topics.push(TopicStatus {
                    topic,
                    partitions,
                    published,
                    held_seconds,
                });
            }
        }
        for relay in &mut relays {
            if let Some(table) = &relay.table {
                relay
                    .lag
                    .count(table.waiting(&mut tx, schema, &relay.name).await?);
            }
        }
        for session in sessions(&mut tx)
            .await?
            .into_iter()
            .filter(|session| !session.leads)
        {
            if let Some(relay) = relays.iter_mut().find(|relay| relay.name == session.relay) {
                relay.standbys.push(session.process);
            }
        }
        for relay in &mut relays {
            if let Holder::Foreign(foreign) = holder(&mut tx, schema, &relay.name).await? {
                relay.lock_held_by = Some(foreign.to_string());
            }
        }
        let mut waiting_events = None;
        if relays.is_empty() {
            let waiting =
                format!(r#"select count(*) from (select from "{schema}".outbox limit $1) bounded"#);
            waiting_events = Some(
                sqlx::query_scalar(AssertSqlSafe(waiting))
                    .bind(COUNTED_MAX + 1)
                    .fetch_one(&mut *tx)
                    .await?,
            );
        }
        let scheduled = format!(
            r#"select (select count(*) from (select from "{schema}".scheduled limit $1) bounded) as events,
                      (select extract(epoch from clock_timestamp() - min(due_at)) from "{schema}".scheduled where due_at < clock_timestamp())::float8
                          as overdue_seconds"#
        );
        let (events, overdue_seconds) = sqlx::query_as(AssertSqlSafe(scheduled))
            .bind(COUNTED_MAX + 1)
            .fetch_one(&mut *tx)
            .await?;
        let scheduled = ScheduledStatus {
            events,
            overdue_seconds,
        };
        tx.commit().await?;
        Ok(Self {
            schema: schema.to_owned(),
            relays,
            waiting_events,
            scheduled,
        })
    }
}

impl LagStatus {
    /// Takes note of how many events wait, counted to one more than [`COUNTED_MAX`].
    fn count(&mut self, events: Option<i64>) {
        self.events = events.map(|events| events.min(COUNTED_MAX));
        self.events_is_lower_bound = events.is_some_and(|events| events > COUNTED_MAX);
    }
}

// === impl FromRow, From ===

impl FromRow<'_, PgRow> for RelayStatus {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let mut lag = LagStatus {
            events: None,
            events_is_lower_bound: false,
            events_estimate: None,
            bytes: row.try_get("lag_bytes")?,
            seconds: row.try_get("lag_seconds")?,
        };
        lag.count(row.try_get("lag_events")?);
        lag.events_estimate = row
            .try_get::<Option<i64>, _>("lag_estimate")?
            .filter(|_| lag.events_is_lower_bound);
        let table = row
            .try_get::<Option<String>, _>("table_schema")?
            .zip(row.try_get("table_name")?);
        Ok(Self {
            name: row.try_get("name")?,
            table: table.map(|(schema, name)| ForeignTable { schema, name }),
            leader: row.try_get("leader")?,
            lock_held_by: None,
            standbys: Vec::new(),
            epoch: row.try_get("epoch")?,
            heartbeat_age_seconds: row.try_get("heartbeat_age_seconds")?,
            position_age_seconds: row.try_get("position_age_seconds")?,
            published: row.try_get("published")?,
            kafka_cluster_id: row.try_get("kafka_cluster_id")?,
            source: row.try_get("source")?,
            source_reason: row.try_get("source_reason")?,
            delivery: row.try_get("delivery")?,
            position: PositionStatus {
                log: row.try_get("log")?,
                seen: row.try_get("seen")?,
            },
            lag,
            parked: ParkedStatus {
                events: row.try_get("parked_events")?,
                aggregates: row.try_get("parked_aggregates")?,
            },
            slot: SlotStatus {
                name: row.try_get("slot_name")?,
                exists: row.try_get("slot_exists")?,
                active: row.try_get("slot_active")?,
                wal_status: row.try_get("wal_status")?,
                confirmed_flush_lsn: row.try_get("confirmed_flush_lsn")?,
                retained_bytes: row.try_get("retained_bytes")?,
                safe_wal_size: row.try_get("safe_wal_size")?,
            },
            topics: Vec::new(),
        })
    }
}

impl From<sqlx::Error> for StatusError {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .unwrap_or_default()
            .into_owned();
        match code.as_str() {
            // undefined_table, invalid_schema_name, undefined_column (tables of an older version).
            "42P01" | "3F000" | "42703" => StatusError::Missing,
            // insufficient_privilege
            "42501" => StatusError::Denied(
                error
                    .as_database_error()
                    .map(|error| error.message().to_owned())
                    .unwrap_or_default(),
            ),
            _ => StatusError::Database(error),
        }
    }
}
