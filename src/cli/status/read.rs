//! Queries for the state of every relay.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgPool, Row};

use super::foreign::ForeignTable;
use crate::{
    operator::sessions,
    relay::{Holder, holder},
};

/// Maximum number of events that are counted exactly. Larger numbers are estimated, because
/// counting a million takes seconds.
pub(super) const COUNTED_MAX: i64 = 10_000;

/// Forces reads in index order regardless of the planner's statistics. Without statistics the
/// planner would sort the whole table.
const PLAN: &str = "set local enable_seqscan = off; set local enable_bitmapscan = off; \
                    set local enable_sort = off; set local jit = off";

/// State of the relays of a database.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) schema: String,
    pub(super) relays: Vec<RelayStatus>,
    /// Number of events in the outbox if no relay has run yet, up to a bound.
    pub(super) waiting_events: Option<i64>,
    pub(super) scheduled: ScheduledStatus,
}

/// Scheduled events.
#[derive(Debug, Serialize)]
pub(super) struct ScheduledStatus {
    /// Number of events, up to a bound.
    pub(super) events: i64,
    /// Time since the first event became due. `None` if it is not due yet.
    pub(super) overdue_seconds: Option<f64>,
}

/// State of a relay.
#[derive(Debug, Serialize)]
pub(super) struct RelayStatus {
    pub(super) name: String,
    /// The table that it reads. `None` if it is the schema's outbox.
    pub(super) table: Option<ForeignTable>,
    pub(super) leader: Option<String>,
    /// The session that holds the lock of its lease, if that session is not a relay.
    pub(super) lock_held_by: Option<String>,
    /// Standby processes, `host:pid`.
    pub(super) standbys: Vec<String>,
    pub(super) epoch: i64,
    pub(super) heartbeat_age_seconds: Option<f64>,
    /// Time since the relay last stored its position.
    pub(super) position_age_seconds: f64,
    pub(super) published: i64,
    pub(super) kafka_cluster_id: Option<String>,
    /// The source, `wal` or `table`, and the reason for it.
    pub(super) source: Option<String>,
    pub(super) source_reason: Option<String>,
    pub(super) delivery: Option<String>,
    pub(super) position: PositionStatus,
    pub(super) lag: LagStatus,
    pub(super) parked: ParkedStatus,
    pub(super) slot: SlotStatus,
    pub(super) topics: Vec<TopicStatus>,
}

/// Published position of a relay.
#[derive(Debug, Serialize)]
pub(super) struct PositionStatus {
    /// Every commit before this LSN is published.
    pub(super) log: Option<String>,
    /// Every transaction that is visible to this snapshot is published.
    pub(super) seen: Option<String>,
}

/// Unpublished events of a relay.
#[derive(Debug, Serialize)]
pub(super) struct LagStatus {
    /// `None` if the events of the table cannot be counted.
    pub(super) events: Option<i64>,
    /// `true` if there are more events than were counted.
    pub(super) events_is_lower_bound: bool,
    /// Estimated number of events, from the sequence numbers of the first and the last one. Rolled
    /// back transactions make it too high. `None` if unknown.
    pub(super) events_estimate: Option<i64>,
    pub(super) bytes: Option<i64>,
    /// `None` if the table does not record the time of an event.
    pub(super) seconds: Option<f64>,
}

/// Parked events of a relay.
#[derive(Debug, Serialize)]
pub(super) struct ParkedStatus {
    pub(super) events: i64,
    pub(super) aggregates: i64,
}

/// Replication slot of a relay.
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

/// Events that a relay published to a topic.
#[derive(Debug, Serialize)]
pub(super) struct TopicStatus {
    pub(super) topic: String,
    pub(super) partitions: i32,
    pub(super) published: i64,
    /// Remaining time of the hold while the topic is being grown. The relay holds back the events
    /// of the topic and all later ones.
    pub(super) held_seconds: Option<f64>,
}

/// Cause of a failed read.
#[derive(Debug)]
pub(super) enum StatusError {
    Missing,
    Denied(String),
    Database(sqlx::Error),
}

impl Status {
    /// Reads the state in one snapshot.
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
                 case when hold is not null
                   then greatest(extract(epoch from hold_until - now()), 0)::float8 end
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
            r#"select
                 (select count(*) from (select from "{schema}".scheduled limit $1) bounded)
                   as events,
                 (
                   select extract(epoch from clock_timestamp() - min(due_at))
                   from "{schema}".scheduled where due_at < clock_timestamp()
                 )::float8 as overdue_seconds"#
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
    /// Stores the number of events that wait, counted up to one more than [`COUNTED_MAX`].
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
            // undefined_table, invalid_schema_name, undefined_column (tables of an older version)
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
