//! State of every relay, in one snapshot of the database.

pub(crate) mod foreign;

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};

use super::{Database, InspectError, sessions::sessions, units::grouped};
use crate::postgres::begin_with;
use crate::relay::{Holder, holder};
use foreign::ForeignTable;

/// Maximum number of events that are counted exactly. Larger numbers are estimated, because
/// counting a million takes seconds.
pub(crate) const COUNTED_MAX: i64 = 10_000;

/// Forces reads in index order regardless of the planner's statistics. Without statistics the
/// planner would sort the whole table.
const PLAN: &str = "set local enable_seqscan = off; set local enable_bitmapscan = off; \
                    set local enable_sort = off; set local jit = off";

/// State of the relays of a database.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) schema: String,
    pub(crate) relays: Vec<RelayStatus>,
    /// Number of events in the outbox if no relay has run yet, up to a bound.
    pub(crate) waiting_events: Option<i64>,
    pub(crate) scheduled: ScheduledStatus,
}

/// Scheduled events.
#[derive(Debug, Serialize)]
pub(crate) struct ScheduledStatus {
    /// Number of events, up to a bound.
    pub(crate) events: i64,
    /// Time since the first event became due. `None` if it is not due yet.
    pub(crate) overdue_seconds: Option<f64>,
}

/// State of a relay.
#[derive(Debug, Serialize)]
pub(crate) struct RelayStatus {
    pub(crate) name: String,
    /// The table that it reads. `None` if it is the schema's outbox.
    pub(crate) table: Option<ForeignTable>,
    pub(crate) leader: Option<String>,
    /// The session that holds the lock of its lease, if that session is not a relay.
    pub(crate) lock_held_by: Option<String>,
    /// Standby processes, `host:pid`.
    pub(crate) standbys: Vec<String>,
    pub(crate) epoch: i64,
    pub(crate) heartbeat_age_seconds: Option<f64>,
    /// Time since the relay last stored its position.
    pub(crate) position_age_seconds: f64,
    pub(crate) published: i64,
    pub(crate) kafka_cluster_id: Option<String>,
    /// The source, `wal` or `table`, and the reason for it.
    pub(crate) source: Option<String>,
    pub(crate) source_reason: Option<String>,
    pub(crate) delivery: Option<String>,
    pub(crate) position: PositionStatus,
    pub(crate) lag: LagStatus,
    pub(crate) parked: ParkedStatus,
    pub(crate) slot: SlotStatus,
    pub(crate) topics: Vec<TopicStatus>,
}

/// Published position of a relay.
#[derive(Debug, Serialize)]
pub(crate) struct PositionStatus {
    /// Every commit before this LSN is published.
    pub(crate) log: Option<String>,
    /// Every transaction that is visible to this snapshot is published.
    pub(crate) seen: Option<String>,
}

/// Unpublished events of a relay.
#[derive(Debug, Serialize)]
pub(crate) struct LagStatus {
    /// `None` if the events of the table cannot be counted.
    pub(crate) events: Option<i64>,
    /// `true` if there are more events than were counted.
    pub(crate) events_is_lower_bound: bool,
    /// Estimated number of events, from the sequence numbers of the first and the last one. Rolled
    /// back transactions make it too high. `None` if unknown.
    pub(crate) events_estimate: Option<i64>,
    pub(crate) bytes: Option<i64>,
    /// `None` if the table does not record the time of an event.
    pub(crate) seconds: Option<f64>,
}

/// Parked events of a relay.
#[derive(Debug, Serialize)]
pub(crate) struct ParkedStatus {
    pub(crate) events: i64,
    pub(crate) aggregates: i64,
}

/// Replication slot of a relay.
#[derive(Debug, Serialize)]
pub(crate) struct SlotStatus {
    pub(crate) name: String,
    pub(crate) exists: bool,
    pub(crate) active: bool,
    pub(crate) wal_status: Option<String>,
    pub(crate) confirmed_flush_lsn: Option<String>,
    pub(crate) retained_bytes: Option<i64>,
    pub(crate) safe_wal_size: Option<i64>,
}

/// Events that a relay published to a topic.
#[derive(Debug, Serialize)]
pub(crate) struct TopicStatus {
    pub(crate) topic: String,
    pub(crate) partitions: i32,
    pub(crate) published: i64,
    /// Remaining time of the hold while the topic is being grown. The relay holds back the events
    /// of the topic and all later ones.
    pub(crate) held_seconds: Option<f64>,
}

impl Status {
    /// Reads the state in one snapshot.
    ///
    /// # Errors
    ///
    /// Returns an error if the tables are missing or a query fails.
    pub(crate) async fn read(database: &Database) -> Result<Self, InspectError> {
        Self::read_counting(database, COUNTED_MAX).await
    }

    /// Reads the state as [`read`](Self::read) does, and counts up to `counted_max` unpublished
    /// events of each relay exactly. Counting takes 5 to 10 µs per event.
    ///
    /// # Errors
    ///
    /// See [`read`](Self::read).
    pub(crate) async fn read_counting(
        database: &Database,
        counted_max: i64,
    ) -> Result<Self, InspectError> {
        Self::read_snapshot(database, counted_max)
            .await
            .map_err(|error| database.error(error))
    }

    async fn read_snapshot(database: &Database, counted_max: i64) -> Result<Self, sqlx::Error> {
        let schema = &database.schema;
        let mut tx = begin_with(
            &database.pool,
            "begin isolation level repeatable read read only",
        )
        .await?;
        sqlx::raw_sql(PLAN).execute(&mut *tx).await?;
        let relays = database.sql(include_str!("relays/relays.sql"));
        let mut relays: Vec<RelayStatus> = sqlx::query_as(AssertSqlSafe(relays))
            .bind(counted_max + 1)
            .fetch_all(&mut *tx)
            .await?;
        read_topics(&mut tx, schema, &mut relays).await?;
        for relay in &mut relays {
            if let Some(table) = &relay.table {
                let waiting = table.waiting(&mut tx, schema, &relay.name, counted_max);
                relay.lag.count(waiting.await?, counted_max);
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
        let waiting_events = match relays.is_empty() {
            true => Some(waiting_events(&mut tx, schema).await?),
            false => None,
        };
        let scheduled = ScheduledStatus::read(&mut tx, schema).await?;
        tx.commit().await?;
        Ok(Self {
            schema: schema.clone(),
            relays,
            waiting_events,
            scheduled,
        })
    }
}

/// Adds the topics of every relay.
async fn read_topics(
    session: &mut PgConnection,
    schema: &str,
    relays: &mut [RelayStatus],
) -> Result<(), sqlx::Error> {
    let topics = format!(
        r#"select relay, topic, partitions, published,
             case when hold is not null
               then greatest(extract(epoch from hold_until - now()), 0)::float8 end
           from "{schema}".relay_topic order by relay, topic"#
    );
    let topics: Vec<(String, String, i32, i64, Option<f64>)> =
        sqlx::query_as(AssertSqlSafe(topics))
            .fetch_all(session)
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
    Ok(())
}

/// Returns the number of events in the outbox, up to a bound.
async fn waiting_events(session: &mut PgConnection, schema: &str) -> Result<i64, sqlx::Error> {
    let waiting =
        format!(r#"select count(*) from (select from "{schema}".outbox limit $1) bounded"#);
    sqlx::query_scalar(AssertSqlSafe(waiting))
        .bind(COUNTED_MAX + 1)
        .fetch_one(session)
        .await
}

impl ScheduledStatus {
    async fn read(session: &mut PgConnection, schema: &str) -> Result<Self, sqlx::Error> {
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
            .fetch_one(session)
            .await?;
        Ok(Self {
            events,
            overdue_seconds,
        })
    }
}

impl LagStatus {
    /// Formats the number of events that wait: exact, a lower bound, or an estimate.
    pub(crate) fn text(&self) -> String {
        match (self.events, self.events_estimate) {
            (None, _) => "?".into(),
            (Some(events), Some(estimate)) if estimate > events => {
                format!("~ {}", grouped(estimate))
            }
            (Some(events), _) if self.events_is_lower_bound => format!("> {}", grouped(events)),
            (Some(events), _) => grouped(events),
        }
    }

    /// Stores the number of events that wait, counted up to one more than `counted_max`.
    fn count(&mut self, events: Option<i64>, counted_max: i64) {
        self.events = events.map(|events| events.min(counted_max));
        self.events_is_lower_bound = events.is_some_and(|events| events > counted_max);
    }
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for RelayStatus {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let mut lag = LagStatus {
            events: None,
            events_is_lower_bound: false,
            events_estimate: None,
            bytes: row.try_get("lag_bytes")?,
            seconds: row.try_get("lag_seconds")?,
        };
        lag.count(row.try_get("lag_events")?, row.try_get("counted_max")?);
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
