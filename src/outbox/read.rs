//! Reads what was published: for tests, which have no relay.

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::event::{AggregateId, Envelope, EventId, Headers, Payload};
use crate::postgres::SchemaName;

/// The events behind this `seq`, in the order of `seq`, and the last `seq`.
pub(crate) async fn published_after(pool: &PgPool, schema: &SchemaName, seq: i64) -> Result<(Vec<Envelope>, i64), sqlx::Error> {
    let sql = format!(
        r#"select seq, id, aggregatetype, aggregateid, type, version, payload::text as payload, payload_bytes, headers::text as headers, occurred_at, topic
           from "{schema}".outbox where seq > $1 order by seq"#
    );
    let (mut envelopes, mut last) = (Vec::new(), seq);
    for row in sqlx::query(AssertSqlSafe(sql)).bind(seq).fetch_all(pool).await? {
        let decode = |source: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(source);
        let payload = match (row.try_get::<Option<String>, _>("payload")?, row.try_get::<Option<Vec<u8>>, _>("payload_bytes")?) {
            (Some(json), _) => Payload::Json(RawValue::from_string(json).map_err(|error| decode(error.into()))?),
            (None, Some(bytes)) => Payload::Bytes(bytes),
            (None, None) => Payload::Tombstone,
        };
        let aggregate_id = AggregateId::new(row.try_get::<String, _>("aggregateid")?).map_err(|error| decode(error.into()))?;
        let mut envelope =
            Envelope::new(row.try_get::<String, _>("aggregatetype")?, aggregate_id, row.try_get::<String, _>("type")?, payload);
        envelope.id = EventId::from(row.try_get::<uuid::Uuid, _>("id")?);
        envelope.version = row.try_get::<i32, _>("version")?.cast_unsigned();
        envelope.headers = serde_json::from_str::<Headers>(&row.try_get::<String, _>("headers")?).map_err(|error| decode(error.into()))?;
        envelope.occurred_at = row.try_get("occurred_at")?;
        envelope.topic = row.try_get("topic")?;
        last = row.try_get("seq")?;
        envelopes.push(envelope);
    }
    Ok((envelopes, last))
}

/// The last `seq` there is; 0 if the outbox is empty.
pub(crate) async fn last_seq(pool: &PgPool, schema: &SchemaName) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(format!(r#"select coalesce(max(seq), 0) from "{schema}".outbox"#))).fetch_one(pool).await
}
