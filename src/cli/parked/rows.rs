//! Queries and updates of the table `parked`: all SQL on it that commands run.

use std::str::FromStr;

use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, PgPool, Row as _, postgres::PgRow};
use uuid::Uuid;

use crate::cli::config::Config;

/// Selection of parked events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    All,
    Event(Uuid),
    Aggregate(String, String),
}

/// Filter by aggregate, or none.
const OF_AGGREGATE: &str =
    "and ($3::text is null or (p.aggregatetype = $3 and p.aggregateid = $4))";

/// Returns the condition for the row that holds the event, or the range that includes it.
fn of_event(schema: &str, row: &str) -> String {
    format!(
        "({row}.id = $2 or ({row}.to_seq is not null and exists (
            select from \"{schema}\".outbox o
            where o.id = $2 and o.seq between {row}.seq and {row}.to_seq
                and o.aggregatetype = {row}.aggregatetype and o.aggregateid = {row}.aggregateid)))"
    )
}

/// Decision about parked events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Retry,
    Discard,
}

impl Decision {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }

    /// Describes events for which the relay has executed the decision.
    pub(super) fn done(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Discard => "discarded",
        }
    }
}

/// An aggregate with parked events.
#[derive(Debug, Serialize)]
pub(super) struct Waiting {
    pub(super) aggregate_type: String,
    pub(super) aggregate_id: String,
    pub(super) events: i64,
    pub(super) waits_seconds: f64,
    /// The first event that cannot be delivered.
    pub(super) event: Option<Uuid>,
    pub(super) topic: Option<String>,
    pub(super) reason: Option<String>,
    /// The decision about it.
    pub(super) action: Option<String>,
    pub(super) tries: Option<i32>,
}

/// A parked event, or a range of them.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    pub(super) seq: i64,
    pub(super) id: Uuid,
    pub(super) aggregate_type: String,
    pub(super) aggregate_id: String,
    pub(super) topic: Option<String>,
    /// Sequence number of the last event of a range.
    pub(super) to_seq: Option<i64>,
    /// Number of events in the row.
    pub(super) events: i64,
    /// The topic that it waits for.
    pub(super) waits_for: Option<String>,
    /// `None` if it only waits behind another event.
    pub(super) reason: Option<String>,
    pub(super) action: Option<String>,
    pub(super) tries: i32,
    pub(super) waits_seconds: f64,
    /// `None` if its row is no longer in the outbox.
    pub(super) payload_bytes: Option<i64>,
}

/// Number of events that another relay has parked.
#[derive(Debug, Serialize)]
pub(super) struct Elsewhere {
    pub(super) relay: String,
    pub(super) events: i64,
}

/// Returns the parked events of the other relays of the schema. They are shown if this relay has
/// none, because the operator may have meant another relay.
pub(super) async fn elsewhere(
    pool: &PgPool,
    config: &Config,
) -> Result<Vec<Elsewhere>, sqlx::Error> {
    let sql = format!(
        r#"select relay, count(*) from "{}".parked where relay <> $1
           group by relay order by relay"#,
        config.schema
    );
    let rows: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(&config.name)
        .fetch_all(pool)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(relay, events)| Elsewhere { relay, events })
        .collect())
}

/// Returns every aggregate with parked events, the longest waiting first.
pub(super) async fn waiting(
    pool: &PgPool,
    config: &Config,
    limit: u32,
) -> Result<Vec<Waiting>, sqlx::Error> {
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
           order by a.since, a.aggregatetype, a.aggregateid limit $2"#,
        config.schema
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(&config.name)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await
}

/// Returns parked events in the order of publication.
pub(super) async fn events(
    pool: &PgPool,
    config: &Config,
    what: &What,
    limit: u32,
) -> Result<Vec<Event>, sqlx::Error> {
    let filter = format!(
        "and ($2::uuid is null or {}) {OF_AGGREGATE}",
        of_event(&config.schema, "p")
    );
    let sql = select(&config.schema, &filter, "limit $5");
    let (id, kind, aggregate) = what.parts();
    let query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(&config.name)
        .bind(id)
        .bind(kind)
        .bind(aggregate);
    query.bind(i64::from(limit)).fetch_all(pool).await
}

/// Marks events unless `dry_run` is set, and returns them.
///
/// A retry marks the undeliverable events: those that were selected, and those in front of them.
/// Events that wait behind them follow without a mark. A discard marks exactly the selected events.
pub(super) async fn decide(
    pool: &PgPool,
    config: &Config,
    what: &What,
    decision: Decision,
    dry_run: bool,
) -> Result<Vec<Event>, sqlx::Error> {
    let schema = &config.schema;
    let filter = match decision {
        // One event of a range cannot be discarded by itself.
        Decision::Discard => {
            format!("and ($2::uuid is null or (p.id = $2 and p.to_seq is null)) {OF_AGGREGATE}")
        }
        Decision::Retry => format!(
            "and p.reason is not null {OF_AGGREGATE}
             and ($2::uuid is null or exists (
                 select from \"{schema}\".parked e where e.relay = p.relay and {} and e.seq >= p.seq
                     and e.aggregatetype = p.aggregatetype and e.aggregateid = p.aggregateid))",
            of_event(schema, "e")
        ),
    };
    let (id, kind, aggregate) = what.parts();
    let mut tx = pool.begin().await?;
    if !dry_run {
        let update =
            format!("update \"{schema}\".parked p set action = $5 where p.relay = $1 {filter}");
        let update = sqlx::query(AssertSqlSafe(update))
            .bind(&config.name)
            .bind(id)
            .bind(&kind)
            .bind(&aggregate);
        update.bind(decision.word()).execute(&mut *tx).await?;
    }
    let query = sqlx::query_as(AssertSqlSafe(select(schema, &filter, "")))
        .bind(&config.name)
        .bind(id)
        .bind(kind)
        .bind(aggregate);
    let events = query.fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(events)
}

/// Returns the number of events that are marked and not yet processed.
pub(super) async fn undone(
    pool: &PgPool,
    config: &Config,
    decision: Decision,
) -> Result<i64, sqlx::Error> {
    let sql = format!(
        "select coalesce(sum(events), 0)::bigint from \"{}\".parked \
         where relay = $1 and action = $2",
        config.schema
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(&config.name)
        .bind(decision.word())
        .fetch_one(pool)
        .await
}

fn select(schema: &str, filter: &str, limit: &str) -> String {
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

impl What {
    fn parts(&self) -> (Option<Uuid>, Option<String>, Option<String>) {
        match self {
            Self::All => (None, None, None),
            Self::Event(id) => (Some(*id), None, None),
            Self::Aggregate(kind, id) => (None, Some(kind.clone()), Some(id.clone())),
        }
    }
}

// === impl FromRow, FromStr ===

impl FromRow<'_, PgRow> for Waiting {
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

impl FromRow<'_, PgRow> for Event {
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

impl FromStr for What {
    type Err = ();

    /// Parses the id of an event, or an aggregate as `TYPE/ID`. A type has no slash; an id may have
    /// one.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Event(id));
        }
        let (kind, id) = text
            .split_once('/')
            .filter(|(kind, id)| !kind.is_empty() && !id.is_empty())
            .ok_or(())?;
        Ok(Self::Aggregate(kind.to_owned(), id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_uuid_and_an_aggregate_a_type_and_an_id() {
        let id = Uuid::now_v7();
        assert_eq!(id.to_string().parse(), Ok(What::Event(id)));
        assert_eq!(
            format!("order/{id}").parse(),
            Ok(What::Aggregate("order".into(), id.to_string()))
        );
        assert_eq!(
            "order/a/b".parse(),
            Ok(What::Aggregate("order".into(), "a/b".into()))
        );
        assert!(
            ["order", "/a", "order/", ""]
                .iter()
                .all(|text| text.parse::<What>().is_err())
        );
    }
}
