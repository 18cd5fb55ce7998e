//! SQL of publishers that inserts into the outbox. The relay's move of scheduled events is
//! elsewhere.
//!
//! The statements run on the application's connections with the application's `search_path`.
//! Functions are therefore qualified with their schema, and arguments have exactly the types of the
//! parameters. Otherwise Postgres could choose a user-defined function that matches better.
//!
//! Each outbox has four statements: for one event or many, with or without the lock. Their text is
//! constant, so each connection prepares them once.
//!
//! The lock and the insert are one statement, and the lock is taken first. `seq` is assigned at the
//! insert and thus under the lock, so the order of `seq` is the commit order within an aggregate.
//! (A trigger would take the lock too late, because `seq` has already been assigned.)

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};

use super::PublishError;
use crate::event::{Envelope, EventId, Headers};
use crate::postgres::SchemaName;

/// Seed of the lock keys, which separates them from the application's advisory locks: "tidings" in
/// ASCII. Publishers in SQL take the same lock, so the seed is part of the interface.
const LOCK_SEED: i64 = 0x0074_6964_696e_6773;

/// The columns of a row that a publisher writes.
pub(crate) const COLUMNS: &str = "id, aggregatetype, aggregateid, type, version, payload, \
                                  payload_bytes, headers, occurred_at, topic";

/// The statements of one schema.
#[derive(Clone, Debug)]
pub(super) struct Statements {
    schema: SchemaName,
    one: Arc<str>,
    one_locked: Arc<str>,
    many: Arc<str>,
    many_locked: Arc<str>,
    prepared: bool,
}

/// Advisory lock that the statement takes before the insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    None,
    Aggregate,
}

impl Statements {
    pub(super) fn new(schema: SchemaName) -> Self {
        let insert = format!(r#"insert into "{schema}".outbox ({COLUMNS})"#);
        // JSON is sent as text and cast, because sqlx's JSON encoding would not preserve it byte
        // for byte.
        let one = "$1, $2, $3, $4, $5, $6::text::json, $7, $8::text::jsonb, $9, $10";
        let many = "e.id, e.aggregatetype, e.aggregateid, e.type, e.version, e.payload::json, \
                    e.payload_bytes, e.headers::jsonb, e.occurred_at, e.topic";
        // The parser replaces an unqualified `unnest` of several arguments with `pg_catalog.unnest`
        // of each. `with ordinality … order by` assigns `seq` in the given order.
        let events = "unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int[], \
                      $6::text[], $7::bytea[], $8::text[], $9::timestamptz[], $10::text[]) \
                      with ordinality as e (id, aggregatetype, aggregateid, type, version, \
                      payload, payload_bytes, headers, occurred_at, topic, position)";
        let key = |ty: &str, id: &str| {
            format!(
                "pg_catalog.hashtextextended({id}, \
                 pg_catalog.hashtextextended({ty}, {LOCK_SEED}::bigint))"
            )
        };
        // Locks in ascending order, so that two batches cannot deadlock.
        let keys = format!(
            "select distinct {} as key from unnest($2::text[], $3::text[]) as a (type, id) \
             order by key",
            key("a.type", "a.id")
        );
        Self {
            one: format!("{insert} values ({one})").into(),
            one_locked: format!(
                "with lock as materialized (select pg_catalog.pg_advisory_xact_lock({})) \
                 {insert} select {one} from lock",
                key("$2", "$3")
            )
            .into(),
            many: format!("{insert} select {many} from {events} order by e.position").into(),
            many_locked: format!(
                "with lock as materialized \
                 (select pg_catalog.pg_advisory_xact_lock(k.key) from ({keys}) as k) \
                 {insert} select {many} from (select pg_catalog.count(*) from lock) as locked, \
                 {events} order by e.position"
            )
            .into(),
            schema,
            prepared: true,
        }
    }

    /// Sets whether the statements stay prepared.
    pub(super) fn prepared(self, prepared: bool) -> Self {
        Self { prepared, ..self }
    }

    /// Returns the schema, and whether statements stay prepared.
    pub(super) fn schema_and_preparation(&self) -> (&SchemaName, bool) {
        (&self.schema, self.prepared)
    }

    /// Inserts one event.
    pub(super) async fn insert(
        &self,
        conn: &mut PgConnection,
        envelope: &Envelope,
        defaults: &Headers,
        lock: Lock,
    ) -> Result<EventId, PublishError> {
        let sql = if lock == Lock::None {
            &self.one
        } else {
            &self.one_locked
        };
        let query = sqlx::query(AssertSqlSafe(Arc::clone(sql))).persistent(self.prepared);
        bind(query, envelope, defaults, Some(envelope.occurred_at))
            .execute(conn)
            .await
            .map_err(|error| PublishError::database(self.schema.as_str(), "outbox", error))?;
        Ok(envelope.id)
    }

    /// Inserts any number of events with one statement, in the given order.
    pub(super) async fn insert_all(
        &self,
        conn: &mut PgConnection,
        envelopes: &[Envelope],
        defaults: &Headers,
        lock: Lock,
    ) -> Result<Vec<EventId>, PublishError> {
        if envelopes.is_empty() {
            return Ok(Vec::new());
        }
        let sql = if lock == Lock::None {
            &self.many
        } else {
            &self.many_locked
        };
        sqlx::query(AssertSqlSafe(Arc::clone(sql)))
            .persistent(self.prepared)
            .bind(column(envelopes, |e| e.id.as_uuid()))
            .bind(column(envelopes, |e| &*e.aggregate_type))
            .bind(column(envelopes, |e| e.aggregate_id.as_str()))
            .bind(column(envelopes, |e| &*e.event_type))
            .bind(column(envelopes, version))
            .bind(column(envelopes, |e| e.payload.as_json()))
            .bind(column(envelopes, payload_bytes))
            .bind(column(envelopes, |e| headers_text(&e.headers, defaults)))
            .bind(column(envelopes, |e| e.occurred_at))
            .bind(column(envelopes, |e| e.topic.as_deref()))
            .execute(conn)
            .await
            .map_err(|error| PublishError::database(self.schema.as_str(), "outbox", error))?;
        Ok(column(envelopes, |e| e.id))
    }
}

/// Binds the values of [`COLUMNS`], in their order.
pub(super) fn bind<'q>(
    query: Query<'q, Postgres, PgArguments>,
    envelope: &'q Envelope,
    defaults: &Headers,
    occurred_at: Option<DateTime<Utc>>,
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(envelope.id.as_uuid())
        .bind(&*envelope.aggregate_type)
        .bind(envelope.aggregate_id.as_str())
        .bind(&*envelope.event_type)
        .bind(version(envelope))
        .bind(envelope.payload.as_json())
        .bind(payload_bytes(envelope))
        .bind(headers_text(&envelope.headers, defaults))
        .bind(occurred_at)
        .bind(envelope.topic.as_deref())
}

fn column<'e, T>(envelopes: &'e [Envelope], value: impl Fn(&'e Envelope) -> T) -> Vec<T> {
    envelopes.iter().map(value).collect()
}

fn version(envelope: &Envelope) -> i32 {
    i32::try_from(envelope.version).expect("a checked envelope's version fits an int")
}

fn payload_bytes(envelope: &Envelope) -> Option<&[u8]> {
    match envelope.payload.as_json() {
        Some(_) => None,
        None => envelope.payload.as_bytes(),
    }
}

/// Returns the headers as JSON text. The event's own headers override the defaults.
fn headers_text(own: &Headers, defaults: &Headers) -> String {
    if own.is_empty() && defaults.is_empty() {
        return "{}".to_owned();
    }
    let text = if defaults.is_empty() {
        serde_json::to_string(own)
    } else {
        let mut headers = defaults.clone();
        headers.extend(own.iter());
        serde_json::to_string(&headers)
    };
    text.expect("a map of strings has a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_header_gives_way_to_the_events_own() {
        let defaults = Headers::from_iter([("region", "eu"), ("tenant", "none")]);
        let own = Headers::from_iter([("tenant", "acme")]);
        assert_eq!(
            headers_text(&own, &defaults),
            r#"{"region":"eu","tenant":"acme"}"#
        );
        assert_eq!(headers_text(&own, &Headers::new()), r#"{"tenant":"acme"}"#);
        assert_eq!(headers_text(&Headers::new(), &Headers::new()), "{}");
    }
}
