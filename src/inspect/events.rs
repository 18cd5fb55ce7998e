//! Events of the outbox: search by id or aggregate, and the state of each in every relay.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AssertSqlSafe, FromRow, Row as _, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{Database, InspectError, aggregate::Named};

/// Rows that a search by aggregate reads with one query, by default.
const ROWS_MAX: i64 = 50_000;

/// Rows that a query of a page reads. It takes less than 50 ms even if no row is in memory,
/// whatever the size of the table.
const PAGE_ROWS_MAX: i64 = 5_000;

/// Queries of one page.
const PAGE_QUERIES_MAX: usize = 20;

/// An event in the outbox, without its payload.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StoredEvent {
    pub(crate) seq: i64,
    pub(crate) id: Uuid,
    /// The transaction that published it.
    pub(crate) xid: String,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    pub(crate) version: i32,
    /// The topic that the event names itself.
    pub(crate) topic: Option<String>,
    pub(crate) headers: Value,
    /// `None` if it is infinite.
    pub(crate) occurred_at: Option<DateTime<Utc>>,
    /// `None` if the server does not track commit timestamps.
    pub(crate) committed_at: Option<DateTime<Utc>>,
    /// `None` for a tombstone, and in [`Range::of_page`].
    pub(crate) payload_bytes: Option<i64>,
    pub(crate) relays: Vec<AtRelay>,
}

/// State of an event in one relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AtRelay {
    pub(crate) relay: String,
    /// The stored position includes the event. A parked event is included too.
    pub(crate) published: bool,
    pub(crate) parked: Option<Parked>,
}

/// Why a relay has parked an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parked {
    /// `None` if it only waits behind another event of its aggregate.
    pub(crate) reason: Option<String>,
    /// The decision of an operator.
    pub(crate) action: Option<String>,
    pub(crate) tries: i32,
    pub(crate) since: DateTime<Utc>,
}

/// A selection of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    Newest,
    Id(Uuid),
    Aggregate(String, String),
}

impl From<Named> for Search {
    fn from(named: Named) -> Self {
        match named {
            Named::Event(id) => Self::Id(id),
            Named::Aggregate(kind, id) => Self::Aggregate(kind, id),
        }
    }
}

/// Result of a search, the newest event first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) events: Vec<StoredEvent>,
    /// The search continues before this sequence number. `None` if there are no earlier rows.
    pub(crate) before: Option<i64>,
}

/// Part of the outbox that a search reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// Only rows before this sequence number. `i64::MAX` for the first page.
    pub(crate) before: i64,
    /// Maximum number of events that are returned.
    pub(crate) limit: u32,
    /// Rows that one query reads.
    rows_max: i64,
    queries_max: usize,
    /// The sizes of payloads are returned. Each requires that Postgres reads the whole payload.
    has_sizes: bool,
}

impl Range {
    /// A range that one query reads.
    pub(crate) fn new(before: i64, limit: u32) -> Self {
        Self {
            before,
            limit,
            rows_max: ROWS_MAX,
            queries_max: 1,
            has_sizes: true,
        }
    }

    /// A range that several short queries read.
    pub(crate) fn of_page(before: i64, limit: u32) -> Self {
        Self {
            rows_max: PAGE_ROWS_MAX,
            queries_max: PAGE_QUERIES_MAX,
            has_sizes: false,
            ..Self::new(before, limit)
        }
    }

    /// Returns the maximum number of rows that a search by aggregate reads.
    pub(crate) fn rows_max(self) -> i64 {
        self.rows_max * self.queries_max as i64
    }
}

/// Payload of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    Json(String),
    Bytes(Vec<u8>),
    Tombstone,
}

/// Searches the outbox. A search by aggregate reads a bounded number of rows per call, so it may
/// return fewer events than exist; [`Found::before`] continues it.
///
/// # Errors
///
/// Returns an error if the tables are missing or a query fails.
pub(crate) async fn search(
    database: &Database,
    search: &Search,
    range: Range,
) -> Result<Found, InspectError> {
    let mut all = Found {
        events: Vec::new(),
        before: Some(range.before),
    };
    for _ in 0..range.queries_max {
        let missing = range.limit as usize - all.events.len();
        let Some(before) = all.before.filter(|_| missing > 0) else {
            break;
        };
        let part = Range {
            before,
            limit: missing as u32,
            ..range
        };
        let found = search_rows(database, search, part).await;
        let found = found.map_err(|error| database.error(error))?;
        all.events.extend(found.events);
        all.before = found.before;
    }
    Ok(all)
}

async fn search_rows(
    database: &Database,
    search: &Search,
    range: Range,
) -> Result<Found, sqlx::Error> {
    let Range { before, limit, .. } = range;
    let (id, aggregate) = match search {
        Search::Newest => (None, None),
        Search::Id(id) => (Some(*id), None),
        Search::Aggregate(kind, id) => (None, Some((kind.clone(), id.clone()))),
    };
    let (kind, aggregate) = aggregate.unzip();
    let rows = match search {
        Search::Newest => i64::from(limit),
        _ => range.rows_max,
    };
    let events: Vec<StoredEvent> = sqlx::query_as(AssertSqlSafe(
        database.sql(include_str!("events/events.sql")),
    ))
    .bind(id)
    .bind(kind)
    .bind(aggregate)
    .bind(before)
    .bind(rows)
    .bind(i64::from(limit))
    .bind(range.has_sizes)
    .fetch_all(&database.pool)
    .await?;
    let before = match (search, events.last()) {
        (Search::Id(_), _) => None,
        (_, Some(last)) if events.len() == limit as usize => Some(last.seq),
        _ => end_of_page(database, before, rows).await?,
    };
    Ok(Found { events, before })
}

/// Returns the sequence number before which a search that read `rows` rows continues.
async fn end_of_page(
    database: &Database,
    before: i64,
    rows: i64,
) -> Result<Option<i64>, sqlx::Error> {
    let sql = database.sql(
        r#"select seq from "{schema}".outbox where seq < $1 order by seq desc offset $2 limit 1"#,
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(before)
        .bind(rows - 1)
        .fetch_optional(&database.pool)
        .await
}

/// Returns the payload of an event, or `None` if its row does not exist.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn payload(
    database: &Database,
    id: Uuid,
) -> Result<Option<Payload>, InspectError> {
    let sql =
        database.sql(r#"select payload::text, payload_bytes from "{schema}".outbox where id = $1"#);
    let row: Option<(Option<String>, Option<Vec<u8>>)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(&database.pool)
        .await
        .map_err(|error| database.error(error))?;
    Ok(row.map(|columns| match columns {
        (Some(json), _) => Payload::Json(json),
        (None, Some(bytes)) => Payload::Bytes(bytes),
        (None, None) => Payload::Tombstone,
    }))
}

impl Search {
    /// Parses an event id, or an aggregate as `TYPE/ID`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Ok(id) = text.parse() {
            return Some(Self::Id(id));
        }
        text.split_once('/')
            .filter(|(kind, id)| !kind.is_empty() && !id.is_empty())
            .map(|(kind, id)| Self::Aggregate(kind.to_owned(), id.to_owned()))
    }
}

impl AtRelay {
    /// Returns the state in words. The name of the relay is not escaped.
    pub(crate) fn words(&self) -> String {
        let state = match (&self.parked, self.published) {
            (Some(_), _) => "parked by",
            (None, true) => "published by",
            (None, false) => "waits for",
        };
        format!("{state} {}", self.relay)
    }
}

impl StoredEvent {
    /// Returns a header, which is a string.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(Value::as_str)
    }
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for StoredEvent {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            seq: row.try_get("seq")?,
            id: row.try_get("id")?,
            xid: row.try_get("xid")?,
            aggregate_type: row.try_get("aggregatetype")?,
            aggregate_id: row.try_get("aggregateid")?,
            event_type: row.try_get("type")?,
            version: row.try_get("version")?,
            topic: row.try_get("topic")?,
            headers: row.try_get("headers")?,
            // An infinite time cannot be converted. The table refuses it, but earlier versions
            // did not.
            occurred_at: row.try_get("occurred_at").ok(),
            committed_at: row.try_get("committed_at")?,
            payload_bytes: row.try_get("payload_bytes")?,
            relays: row.try_get::<Json<Vec<AtRelay>>, _>("relays")?.0,
        })
    }
}
