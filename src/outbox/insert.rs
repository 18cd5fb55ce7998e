//! Statements of publishers: they insert into the outbox and the schedule. The relay's move of
//! scheduled events is elsewhere.
//!
//! The statements run on the application's connections with the application's `search_path`.
//! Functions are therefore qualified with their schema, arguments have exactly the types of the
//! parameters, and no operator is used. Otherwise Postgres could choose a user-defined function
//! that matches better.
//!
//! Each outbox has four statements for events: for one or many, with or without the lock. Their
//! text is constant, so each connection prepares them once.
//!
//! The lock and the insert are one statement, and the lock is taken first. `seq` is assigned at the
//! insert and thus under the lock, so the order of `seq` is the commit order within an aggregate.
//! (A trigger would take the lock too late, because `seq` has already been assigned.)

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{
    Parameter, Statement,
    scheduled::{Due, Terms},
};
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
    /// Names of the tables, for errors.
    pub(super) outbox: Arc<str>,
    pub(super) scheduled: Arc<str>,
    one: Arc<str>,
    one_locked: Arc<str>,
    many: Arc<str>,
    many_locked: Arc<str>,
    schedule: Arc<str>,
    cancel: Arc<str>,
    prepared: bool,
}

/// Advisory lock that the statement takes before the insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    None,
    Aggregate,
}

impl Statements {
    pub(super) fn new(schema: &SchemaName) -> Self {
        let insert = format!(r#"insert into "{schema}".outbox ({COLUMNS})"#);
        // JSON is sent as text and cast, because the JSON encoding of drivers would not preserve it
        // byte for byte.
        let one = "$1, $2, $3, $4, $5, $6::text::json, $7, $8::text::jsonb, $9, $10";
        // Not every driver can send arrays that contain nulls, so three more say what is there.
        let many = "e.id, e.aggregatetype, e.aggregateid, e.type, e.version, \
                    case when e.has_json then e.payload::json end, \
                    case when e.has_bytes then e.payload_bytes end, \
                    e.headers::jsonb, e.occurred_at, case when e.has_topic then e.topic end";
        // The parser replaces an unqualified `unnest` of several arguments with `pg_catalog.unnest`
        // of each. `with ordinality … order by` assigns `seq` in the given order.
        let events = "unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int[], \
                      $6::text[], $7::bytea[], $8::text[], $9::timestamptz[], $10::text[], \
                      $11::bool[], $12::bool[], $13::bool[]) \
                      with ordinality as e (id, aggregatetype, aggregateid, type, version, \
                      payload, payload_bytes, headers, occurred_at, topic, \
                      has_json, has_bytes, has_topic, position)";
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
            schedule: format!(
                r#"insert into "{schema}".scheduled ({COLUMNS}, due_at)
                   values ({one}, coalesce($11, pg_catalog.clock_timestamp()
                           + pg_catalog.make_interval(secs => $12)))"#
            )
            .into(),
            cancel: format!(r#"delete from "{schema}".scheduled where id = $1"#).into(),
            outbox: format!("{schema}.outbox").into(),
            scheduled: format!("{schema}.scheduled").into(),
            prepared: true,
        }
    }

    /// Sets whether the statements stay prepared.
    pub(super) fn prepared(self, prepared: bool) -> Self {
        Self { prepared, ..self }
    }

    /// Inserts one event.
    pub(super) fn insert<'e>(
        &self,
        envelope: &'e Envelope,
        defaults: &Headers,
        lock: Lock,
    ) -> Statement<'e> {
        let sql = match lock {
            Lock::None => &self.one,
            Lock::Aggregate => &self.one_locked,
        };
        let values = values(envelope, defaults, Some(envelope.occurred_at));
        Statement::new(sql, values, self.prepared)
    }

    /// Inserts any number of events in the given order.
    pub(super) fn insert_all<'e>(
        &self,
        envelopes: &'e [Envelope],
        defaults: &Headers,
        lock: Lock,
    ) -> Statement<'e> {
        let sql = match lock {
            Lock::None => &self.many,
            Lock::Aggregate => &self.many_locked,
        };
        let texts = |text: fn(&'e Envelope) -> &'e str| {
            Parameter::Texts(column(envelopes, |e| Cow::Borrowed(text(e))))
        };
        let has = |is_there: fn(&Envelope) -> bool| Parameter::Bools(column(envelopes, is_there));
        let parameters = vec![
            Parameter::Uuids(column(envelopes, |e| e.id.as_uuid())),
            texts(|e| &e.aggregate_type),
            texts(|e| e.aggregate_id.as_str()),
            texts(|e| &e.event_type),
            Parameter::Ints(column(envelopes, version)),
            texts(|e| e.payload.as_json().unwrap_or_default()),
            Parameter::ByteStrings(column(envelopes, |e| {
                Cow::Borrowed(payload_bytes(e).unwrap_or_default())
            })),
            Parameter::Texts(column(envelopes, |e| {
                headers_text(&e.headers, defaults).into()
            })),
            Parameter::Times(column(envelopes, |e| e.occurred_at)),
            texts(|e| e.topic.as_deref().unwrap_or_default()),
            has(|e| e.payload.as_json().is_some()),
            has(|e| payload_bytes(e).is_some()),
            has(|e| e.topic.is_some()),
        ];
        Statement::new(sql, parameters, self.prepared)
    }

    /// Inserts one scheduled event.
    pub(super) fn schedule<'e>(
        &self,
        envelope: &'e Envelope,
        defaults: &Headers,
        terms: Terms,
    ) -> Statement<'e> {
        let (at, after) = match terms.due {
            Due::At(when) => (Some(when), None),
            Due::After(delay) => (None, Some(delay.as_secs_f64())),
        };
        let mut parameters = values(envelope, defaults, terms.occurred_at);
        parameters.extend([Parameter::Time(at), Parameter::Float(after)]);
        Statement::new(&self.schedule, parameters, self.prepared)
    }

    /// Deletes one scheduled event.
    pub(super) fn cancel(&self, id: EventId) -> Statement<'static> {
        Statement::new(
            &self.cancel,
            vec![Parameter::Uuid(id.as_uuid())],
            self.prepared,
        )
    }
}

/// Returns the values of [`COLUMNS`], in their order.
fn values<'e>(
    envelope: &'e Envelope,
    defaults: &Headers,
    occurred_at: Option<DateTime<Utc>>,
) -> Vec<Parameter<'e>> {
    let text = |text: &'e str| Parameter::Text(Some(text.into()));
    vec![
        Parameter::Uuid(envelope.id.as_uuid()),
        text(&envelope.aggregate_type),
        text(envelope.aggregate_id.as_str()),
        text(&envelope.event_type),
        Parameter::Int(version(envelope)),
        Parameter::Text(envelope.payload.as_json().map(Cow::Borrowed)),
        Parameter::Bytes(payload_bytes(envelope).map(Cow::Borrowed)),
        Parameter::Text(Some(headers_text(&envelope.headers, defaults).into())),
        Parameter::Time(occurred_at),
        Parameter::Text(envelope.topic.as_deref().map(Cow::Borrowed)),
    ]
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
