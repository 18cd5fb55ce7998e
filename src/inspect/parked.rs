//! Events that a relay has parked, and the reason for each.

use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Database, InspectError, aggregate::Named};

/// Selection of parked events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    All,
    Event(Uuid),
    Aggregate(String, String),
    /// Events that cannot be delivered for this reason. It does not include the events that wait
    /// behind them.
    Reason(String),
}

/// Filter by the aggregate in parameters 3 and 4, or none.
pub(crate) const OF_AGGREGATE: &str =
    "and ($3::text is null or (p.aggregatetype = $3 and p.aggregateid = $4))";

/// Returns the condition for the row that holds the event in parameter 2, or the range that
/// includes it.
pub(crate) fn of_event(schema: &str, row: &str) -> String {
    format!(
        "({row}.id = $2 or ({row}.to_seq is not null and exists (
            select from \"{schema}\".outbox o
            where o.id = $2 and o.seq between {row}.seq and {row}.to_seq
                and o.aggregatetype = {row}.aggregatetype and o.aggregateid = {row}.aggregateid)))"
    )
}

/// An aggregate with parked events.
#[derive(Debug, Serialize)]
pub(crate) struct ParkedAggregate {
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) events: i64,
    pub(crate) waits_seconds: f64,
    /// The first event that cannot be delivered.
    pub(crate) event: Option<Uuid>,
    pub(crate) topic: Option<String>,
    pub(crate) reason: Option<String>,
    /// The decision about it.
    pub(crate) action: Option<String>,
    pub(crate) tries: Option<i32>,
}

/// A parked event, or a range of them.
#[derive(Debug, Serialize)]
pub(crate) struct ParkedEvent {
    pub(crate) seq: i64,
    pub(crate) id: Uuid,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) topic: Option<String>,
    /// Sequence number of the last event of a range.
    pub(crate) to_seq: Option<i64>,
    /// Number of events in the row.
    pub(crate) events: i64,
    /// The topic that it waits for.
    pub(crate) waits_for: Option<String>,
    /// `None` if it only waits behind another event.
    pub(crate) reason: Option<String>,
    pub(crate) action: Option<String>,
    pub(crate) tries: i32,
    pub(crate) waits_seconds: f64,
    /// `None` if its row is no longer in the outbox.
    pub(crate) payload_bytes: Option<i64>,
}

/// Number of events that another relay has parked.
#[derive(Debug, Serialize)]
pub(crate) struct OtherRelay {
    pub(crate) relay: String,
    pub(crate) events: i64,
}

/// Returns the parked events of the other relays of the schema. They are shown if this relay has
/// none, because the operator may have meant another relay.
pub(crate) async fn other_relays(
    database: &Database,
    relay: &str,
) -> Result<Vec<OtherRelay>, sqlx::Error> {
    let sql = format!(
        r#"select relay, count(*) from "{}".parked where relay <> $1
           group by relay order by relay"#,
        database.schema
    );
    let rows: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(relay)
        .fetch_all(&database.pool)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(relay, events)| OtherRelay { relay, events })
        .collect())
}

/// Returns every aggregate with parked events, the longest waiting first.
pub(crate) async fn aggregates(
    database: &Database,
    relay: &str,
    (offset, limit): (u32, u32),
) -> Result<Vec<ParkedAggregate>, sqlx::Error> {
    let sql = format!(
        r#"select a.aggregatetype, a.aggregateid, a.events::bigint as events,
             extract(epoch from clock_timestamp() - a.since)::float8 as waits_seconds,
             w.id as event, w.topic, w.reason, w.action, w.tries
           from (
             select aggregatetype, aggregateid, sum(events) as events, min(parked_at) as since
             from "{0}".parked where relay = $1 group by 1, 2
           ) a
           left join lateral (
             select id, topic, reason, action, tries from "{0}".parked p
             where relay = $1 and p.aggregatetype = a.aggregatetype
               and p.aggregateid = a.aggregateid and reason is not null order by seq limit 1
           ) w on true
           order by a.since, a.aggregatetype, a.aggregateid limit $2 offset $3"#,
        database.schema
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(relay)
        .bind(i64::from(limit))
        .bind(i64::from(offset))
        .fetch_all(&database.pool)
        .await
}

/// Undeliverable events with the same reason.
#[derive(Debug, Serialize)]
pub(crate) struct ParkedReason {
    pub(crate) reason: String,
    /// Number of undeliverable events, without those that wait behind them.
    pub(crate) events: i64,
    /// Waiting time of the first one.
    pub(crate) waits_seconds: f64,
}

/// Returns the reasons of a relay's undeliverable events, the most frequent first. Only the first
/// `counted_max` undeliverable events are counted.
pub(crate) async fn reasons(
    database: &Database,
    relay: &str,
    counted_max: u32,
) -> Result<Vec<ParkedReason>, InspectError> {
    let sql = database.sql(
        r#"select reason, count(*) as events,
             extract(epoch from clock_timestamp() - min(parked_at))::float8 as waits_seconds
           from (
             select reason, parked_at from "{schema}".parked
             where relay = $1 and reason is not null order by seq limit $2
           ) bounded
           group by reason order by events desc, reason"#,
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(relay)
        .bind(i64::from(counted_max))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns parked events in the order of publication.
pub(crate) async fn events(
    database: &Database,
    relay: &str,
    what: &Selection,
    limit: u32,
) -> Result<Vec<ParkedEvent>, sqlx::Error> {
    let filter = format!(
        "and ($2::uuid is null or {}) {OF_AGGREGATE}",
        of_event(&database.schema, "p")
    );
    let sql = select(&database.schema, &filter, "limit $5");
    let (id, kind, aggregate) = what.parts();
    let query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(relay)
        .bind(id)
        .bind(kind)
        .bind(aggregate);
    query.bind(i64::from(limit)).fetch_all(&database.pool).await
}

/// Returns the statement that selects parked events of the relay in parameter 1.
pub(crate) fn select(schema: &str, filter: &str, limit: &str) -> String {
    format!(
        r#"select p.seq, p.id, p.aggregatetype, p.aggregateid, p.topic, p.reason, p.action,
             p.tries, p.to_seq, p.events, p.waits_for,
             extract(epoch from clock_timestamp() - p.parked_at)::float8 as waits_seconds,
             case when o.seq is null then null
               else coalesce(
                 octet_length(o.payload::text), octet_length(o.payload_bytes), 0
               )::bigint
             end as payload_bytes
           from "{schema}".parked p left join "{schema}".outbox o on o.seq = p.seq and o.id = p.id
           where p.relay = $1 {filter} order by p.seq {limit}"#
    )
}

impl Selection {
    /// Returns the reason of the selection.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::Reason(reason) => Some(reason),
            _ => None,
        }
    }

    /// Returns the parameters 2, 3 and 4 of the statements.
    pub(crate) fn parts(&self) -> (Option<Uuid>, Option<String>, Option<String>) {
        match self {
            Self::All | Self::Reason(_) => (None, None, None),
            Self::Event(id) => (Some(*id), None, None),
            Self::Aggregate(kind, id) => (None, Some(kind.clone()), Some(id.clone())),
        }
    }
}

// === impl FromRow, From ===

impl FromRow<'_, PgRow> for ParkedReason {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            reason: row.try_get("reason")?,
            events: row.try_get("events")?,
            waits_seconds: row.try_get("waits_seconds")?,
        })
    }
}

impl FromRow<'_, PgRow> for ParkedAggregate {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            aggregate_type: row.try_get("aggregatetype")?,
            aggregate_id: row.try_get("aggregateid")?,
            events: row.try_get("events")?,
            waits_seconds: row.try_get("waits_seconds")?,
            event: row.try_get("event")?,
            topic: row.try_get("topic")?,
            reason: row.try_get("reason")?,
            action: row.try_get("action")?,
            tries: row.try_get("tries")?,
        })
    }
}

impl FromRow<'_, PgRow> for ParkedEvent {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            seq: row.try_get("seq")?,
            id: row.try_get("id")?,
            aggregate_type: row.try_get("aggregatetype")?,
            aggregate_id: row.try_get("aggregateid")?,
            topic: row.try_get("topic")?,
            reason: row.try_get("reason")?,
            action: row.try_get("action")?,
            tries: row.try_get("tries")?,
            waits_seconds: row.try_get("waits_seconds")?,
            payload_bytes: row.try_get("payload_bytes")?,
            to_seq: row.try_get("to_seq")?,
            events: row.try_get("events")?,
            waits_for: row.try_get("waits_for")?,
        })
    }
}

impl From<Named> for Selection {
    fn from(named: Named) -> Self {
        match named {
            Named::Event(id) => Self::Event(id),
            Named::Aggregate(kind, id) => Self::Aggregate(kind, id),
        }
    }
}
