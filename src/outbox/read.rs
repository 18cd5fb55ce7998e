//! Reads of published events and moves of scheduled ones, for tests that run without a relay.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgPool, Row};
use uuid::Uuid;

use super::insert::COLUMNS;
use crate::event::{AggregateId, Envelope, EventId, Headers, Payload};
use crate::postgres::SchemaName;

/// The part of an outbox that was read. A later `seq` may commit before an earlier one, so the last
/// `seq` alone would lose events.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// All `seq` up to this one were read.
    floor: i64,
    beyond: HashSet<i64>,
}

impl Seen {
    /// Marks all existing events as read.
    pub(crate) async fn all(pool: &PgPool, schema: &SchemaName) -> Result<Self, sqlx::Error> {
        let sql = format!(r#"select coalesce(pg_catalog.max(seq), 0) from "{schema}".outbox"#);
        Ok(Self {
            floor: sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(pool)
                .await?,
            beyond: HashSet::new(),
        })
    }

    /// Marks one event as read. Returns `false` if it already was.
    fn insert(&mut self, seq: i64) -> bool {
        let new = self.beyond.insert(seq);
        while self.beyond.remove(&(self.floor + 1)) {
            self.floor += 1;
        }
        new
    }
}

/// Returns the events that were not read before, ordered by `seq`.
pub(crate) async fn published_since(
    pool: &PgPool,
    schema: &SchemaName,
    seen: &mut Seen,
) -> Result<Vec<Envelope>, sqlx::Error> {
    let sql = format!(
        r#"select seq, id, aggregatetype, aggregateid, type, version, payload::text as payload,
                  payload_bytes, headers::text as headers, occurred_at, topic
           from "{schema}".outbox where seq > $1 order by seq"#
    );
    let mut envelopes = Vec::new();
    for row in sqlx::query(AssertSqlSafe(sql))
        .bind(seen.floor)
        .fetch_all(pool)
        .await?
    {
        if !seen.insert(row.try_get("seq")?) {
            continue;
        }
        let decode = |source: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(source);
        let payload = match (
            row.try_get::<Option<String>, _>("payload")?,
            row.try_get::<Option<Vec<u8>>, _>("payload_bytes")?,
        ) {
            (Some(json), _) => {
                Payload::Json(RawValue::from_string(json).map_err(|error| decode(error.into()))?)
            }
            (None, Some(bytes)) => Payload::Bytes(bytes),
            (None, None) => Payload::Tombstone,
        };
        let aggregate_id = AggregateId::new(row.try_get::<String, _>("aggregateid")?)
            .map_err(|error| decode(error.into()))?;
        let mut envelope = Envelope::new(
            row.try_get::<String, _>("aggregatetype")?,
            aggregate_id,
            row.try_get::<String, _>("type")?,
            payload,
        );
        envelope.id = EventId::from(row.try_get::<Uuid, _>("id")?);
        envelope.version = row.try_get::<i32, _>("version")?.cast_unsigned();
        envelope.headers = serde_json::from_str::<Headers>(&row.try_get::<String, _>("headers")?)
            .map_err(|error| decode(error.into()))?;
        envelope.occurred_at = row.try_get("occurred_at")?;
        envelope.topic = row.try_get("topic")?;
        envelopes.push(envelope);
    }
    Ok(envelopes)
}

/// Maximum time until a scheduled event is due. Longer times are shortened to it, so that a clock
/// can add it.
const DUE_IN_MAX: Duration = Duration::from_secs(1_000 * 366 * 86_400);

/// An event that is not due yet.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub(crate) id: Uuid,
    /// The order of events with the same due time.
    pub(crate) number: i64,
    /// Time until the event is due by the server's clock, zero if it is due.
    pub(crate) due_in: Duration,
}

/// Returns the scheduled events.
pub(crate) async fn scheduled(
    pool: &PgPool,
    schema: &SchemaName,
) -> Result<Vec<Scheduled>, sqlx::Error> {
    let sql = format!(
        r#"select id, number,
                  greatest(extract(epoch from due_at - pg_catalog.clock_timestamp()), 0)::float8
           from "{schema}".scheduled order by due_at, number"#
    );
    let rows: Vec<(Uuid, i64, f64)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
    let scheduled = |(id, number, due_in)| Scheduled {
        id,
        number,
        due_in: Duration::try_from_secs_f64(due_in)
            .unwrap_or(Duration::MAX)
            .min(DUE_IN_MAX),
    };
    Ok(rows.into_iter().map(scheduled).collect())
}

/// Moves a scheduled event to the outbox, as a relay does when it is due. Does nothing if the event
/// was cancelled.
pub(crate) async fn move_scheduled(
    pool: &PgPool,
    schema: &SchemaName,
    id: Uuid,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        r#"with moved as (delete from "{schema}".scheduled where id = $1 returning *)
           insert into "{schema}".outbox ({COLUMNS})
           select id, aggregatetype, aggregateid, type, version, payload, payload_bytes, headers,
                  coalesce(occurred_at, due_at), topic from moved
           on conflict (id) do nothing"#
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(id)
        .execute(pool)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_event_that_is_committed_later_is_still_new() {
        let mut seen = Seen {
            floor: 4,
            beyond: HashSet::new(),
        };
        assert_eq!(
            [7, 5, 7, 6, 8].map(|seq| seen.insert(seq)),
            [true, true, false, true, true]
        );
        assert_eq!((seen.floor, seen.beyond.len()), (8, 0));
    }
}
