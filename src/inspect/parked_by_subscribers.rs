//! Events that subscribers have parked, and the error of each.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::{AssertSqlSafe, FromRow, Postgres, Row as _};

use super::{Database, InspectError};
use crate::subscriber::failure::parked::original_headers;

/// Maximum number of bytes of a value that is read.
pub(crate) const VALUE_MAX: i32 = 64 << 10;

/// Selection of parked events of subscribers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParkedFilter {
    /// The consumer group. `None` for all.
    pub(crate) consumer: Option<String>,
    pub(crate) what: Selected,
    /// Only events whose error contains this text.
    pub(crate) error: Option<String>,
}

/// Events by their identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Selected {
    #[default]
    All,
    /// The number of a row.
    Number(i64),
    /// The id of the event.
    Event(String),
    /// All events of a topic with this key.
    Aggregate { topic: String, key: Vec<u8> },
}

/// Condition for the rows `p` of a [`ParkedFilter`]: its parameters are `$1` to `$6`.
pub(crate) const SELECTED: &str = "($1::text is null or p.consumer = $1)
    and ($2::bigint is null or p.seq = $2)
    and ($3::bytea is null or p.header_values[coalesce(array_position(p.header_names, 'ce_id'),
        array_position(p.header_names, 'id'))] = $3)
    and ($4::text is null or p.topic = $4 and p.key = $5)
    and ($6::text is null or position($6 in coalesce(p.error, '')) > 0)";

/// Columns of a [`SubscriberParkedEvent`].
pub(crate) const COLUMNS: &str = "p.seq, p.consumer, p.topic, p.partition, p.record_offset,
    substring(p.key, 1, 1024) as key,
    substring(p.header_values[coalesce(array_position(p.header_names, 'ce_id'),
        array_position(p.header_names, 'id'))], 1, 512) as event_id,
    substring(p.header_values[coalesce(array_position(p.header_names, 'ce_type'),
        array_position(p.header_names, 'type'))], 1, 512) as event_type,
    p.attempts, p.attempts_before, left(p.error, 2000) as error, p.next_attempt_at, p.since,
    p.action, p.decided_by";

/// An event that a subscriber has parked.
#[derive(Debug, Serialize)]
pub(crate) struct SubscriberParkedEvent {
    /// Number of its row. Within an aggregate, a smaller one is handled first.
    pub(crate) seq: i64,
    pub(crate) consumer: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) record_offset: i64,
    #[serde(serialize_with = "as_text")]
    pub(crate) key: Vec<u8>,
    /// Id of the event, if a header names it.
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) event_id: Option<Vec<u8>>,
    /// Type of the event, if a header names it.
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) event_type: Option<Vec<u8>>,
    /// Attempts since it was parked.
    pub(crate) attempts: i32,
    pub(crate) attempts_before: i32,
    /// `None` for an event that waits behind an earlier one of its aggregate.
    pub(crate) error: Option<String>,
    pub(crate) next_attempt_at: DateTime<Utc>,
    pub(crate) parked_at: DateTime<Utc>,
    /// Decision of an operator that the subscriber has not executed yet.
    pub(crate) action: Option<String>,
    pub(crate) decided_by: Option<String>,
}

/// A parked event with its record.
#[derive(Debug, Serialize)]
pub(crate) struct SubscriberParkedContent {
    #[serde(flatten)]
    pub(crate) event: SubscriberParkedEvent,
    #[serde(serialize_with = "as_headers")]
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// The value up to [`VALUE_MAX`] bytes. `None` for a tombstone.
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) value: Option<Vec<u8>>,
    /// Size of the whole value.
    pub(crate) value_bytes: Option<i32>,
}

/// Returns the selected events, the oldest first.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn parked_by_subscribers(
    database: &Database,
    filter: &ParkedFilter,
    (offset, limit): (u32, u32),
) -> Result<Vec<SubscriberParkedEvent>, InspectError> {
    let sql = database.sql(&format!(
        r#"select {COLUMNS} from "{{schema}}".subscriber_parked p
           where {SELECTED} order by p.seq limit $7 offset $8"#
    ));
    filter
        .bound(&sql)
        .bind(i64::from(limit))
        .bind(i64::from(offset))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns the oldest event of each aggregate of the selected events, the longest waiting first,
/// each with the number of parked events of its aggregate.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn parked_heads(
    database: &Database,
    filter: &ParkedFilter,
    limit: u32,
) -> Result<Vec<ParkedHead>, InspectError> {
    let sql = database.sql(&format!(
        r#"with heads as (
             select min(p.seq) as seq, count(*) as events from "{{schema}}".subscriber_parked p
             where {SELECTED} group by p.consumer, p.topic, p.partition, p.key
             order by 1 limit $7
           )
           select {COLUMNS}, heads.events
           from heads join "{{schema}}".subscriber_parked p using (seq) order by seq"#
    ));
    filter
        .bound(&sql)
        .bind(i64::from(limit))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns the selected events with their headers and values, the oldest first.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn parked_contents(
    database: &Database,
    filter: &ParkedFilter,
    limit: u32,
) -> Result<Vec<SubscriberParkedContent>, InspectError> {
    let sql = database.sql(&format!(
        r#"select {COLUMNS}, p.header_names, p.header_values,
             substring(p.value, 1, {VALUE_MAX}) as value, octet_length(p.value) as value_bytes
           from "{{schema}}".subscriber_parked p where {SELECTED} order by p.seq limit $7"#
    ));
    filter
        .bound(&sql)
        .bind(i64::from(limit))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// The oldest event of an aggregate, and the number of parked events of the aggregate.
#[derive(Debug, Serialize)]
pub(crate) struct ParkedHead {
    #[serde(flatten)]
    pub(crate) event: SubscriberParkedEvent,
    pub(crate) events: i64,
}

impl ParkedFilter {
    /// Creates a query with the parameters of [`SELECTED`].
    pub(crate) fn bound<O: for<'r> FromRow<'r, PgRow>>(
        &self,
        sql: &str,
    ) -> QueryAs<'static, Postgres, O, PgArguments> {
        let (mut number, mut id, mut topic, mut of_key) = (None, None, None, None);
        match &self.what {
            Selected::All => {}
            Selected::Number(seq) => number = Some(*seq),
            Selected::Event(event) => id = Some(event.clone().into_bytes()),
            Selected::Aggregate { topic: name, key } => {
                (topic, of_key) = (Some(name.clone()), Some(key.clone()));
            }
        }
        sqlx::query_as(AssertSqlSafe(sql.to_owned()))
            .bind(self.consumer.clone())
            .bind(number)
            .bind(id)
            .bind(topic)
            .bind(of_key)
            .bind(self.error.clone())
    }
}

impl Selected {
    /// Parses the number of a row, an aggregate as `TOPIC/KEY`, or the id of an event. A topic has
    /// no slash; a key may have one.
    pub(crate) fn parse(text: &str) -> Self {
        match (text.parse(), text.split_once('/')) {
            (Ok(seq), _) => Self::Number(seq),
            (_, Some((topic, key))) if !topic.is_empty() && !key.is_empty() => Self::Aggregate {
                topic: topic.to_owned(),
                key: key.as_bytes().to_vec(),
            },
            _ => Self::Event(text.to_owned()),
        }
    }
}

// === JSON ===

/// Returns bytes as text, or with `\\x` and hexadecimal digits if they are not UTF-8.
fn text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold(String::from("\\x"), |text, byte| {
            text + &format!("{byte:02x}")
        }),
    }
}

fn as_text<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text_of(bytes))
}

fn as_optional_text<S: serde::Serializer>(
    bytes: &Option<Vec<u8>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    bytes.as_deref().map(text_of).serialize(serializer)
}

/// Writes headers as pairs, because a record may have several of one name.
fn as_headers<S: serde::Serializer>(
    headers: &[(String, Option<Vec<u8>>)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let pairs = headers
        .iter()
        .map(|(name, value)| (name, value.as_deref().map(text_of)));
    serializer.collect_seq(pairs)
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for SubscriberParkedEvent {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            seq: row.try_get("seq")?,
            consumer: row.try_get("consumer")?,
            topic: row.try_get("topic")?,
            partition: row.try_get("partition")?,
            record_offset: row.try_get("record_offset")?,
            key: row.try_get("key")?,
            event_id: row.try_get("event_id")?,
            event_type: row.try_get("event_type")?,
            attempts: row.try_get("attempts")?,
            attempts_before: row.try_get("attempts_before")?,
            error: row.try_get("error")?,
            next_attempt_at: row.try_get("next_attempt_at")?,
            parked_at: row.try_get("since")?,
            action: row.try_get("action")?,
            decided_by: row.try_get("decided_by")?,
        })
    }
}

impl FromRow<'_, PgRow> for ParkedHead {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            event: SubscriberParkedEvent::from_row(row)?,
            events: row.try_get("events")?,
        })
    }
}

impl FromRow<'_, PgRow> for SubscriberParkedContent {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let names: Vec<String> = row.try_get("header_names")?;
        let values: Vec<Option<Vec<u8>>> = row.try_get("header_values")?;
        Ok(Self {
            event: SubscriberParkedEvent::from_row(row)?,
            headers: original_headers(&names, values),
            value: row.try_get("value")?,
            value_bytes: row.try_get("value_bytes")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_a_number_an_aggregate_or_an_id() {
        let aggregate = |topic: &str, key: &str| Selected::Aggregate {
            topic: topic.into(),
            key: key.into(),
        };
        for (text, selected) in [
            ("12", Selected::Number(12)),
            ("order/17", aggregate("order", "17")),
            ("order/a/b", aggregate("order", "a/b")),
            ("e-1", Selected::Event("e-1".into())),
            ("/a", Selected::Event("/a".into())),
        ] {
            assert_eq!(Selected::parse(text), selected, "{text}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_written_as_digits() {
        assert_eq!(text_of(b"a"), "a");
        assert_eq!(text_of(&[0xff, 0]), "\\xff00");
    }
}
