//! Parked events of a subscriber: all SQL of its members for the table `subscriber_parked`.
//!
//! An event that has used up its attempts, and every later event of its aggregate, is stored in
//! this table instead of being handled. This preserves the order while the partition continues. The
//! owner of the partition handles the parked events, starting with the oldest of each aggregate,
//! until none is left. The aggregate's events are then handled normally again. Both parking and
//! handling happen on the lane of the aggregate, one after the other, so no event is missed in
//! between.
//!
//! An event without a key belongs to no aggregate. It is stored under a unique key, so that no
//! other event waits for it.

mod decisions;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgPool, Row};

use decisions::Statements as DecisionStatements;
pub(crate) use decisions::{Discarded, Mark};

use crate::{
    kafka::{Incoming, Partition, Place},
    postgres::encodable::{bytes_of, encodable},
    subscriber::inbox::OpenInbox,
};

/// Stored as a header of a record whose timestamp was set by the broker. It is never sent.
const STAMPED_BY_BROKER: &str = "tidings_stamped_by_broker";

/// Stored as a header of a record without a key. It is never sent.
const WITHOUT_KEY: &str = "tidings_without_key";

/// The mark of a record that was read without its headers, because too many of their names are not
/// UTF-8. It is stored among the headers and never sent.
const LACKS_HEADERS: &str = "tidings_lacks_headers";

/// Start of the stored name of a header that the database might not be able to encode. The bytes of
/// the name follow, in hexadecimal.
const ENCODED: &str = "tidings_name_";

/// Condition for the events of an aggregate: consumer, topic, partition and key are the parameters
/// 1 to 4. The index `subscriber_parked_heads` contains the first 512 bytes of a key, because an
/// index entry has at most 2,704 bytes; a key may have more.
const OF_KEY: &str = "consumer = $1 and topic = $2 and partition = $3 \
     and pg_catalog.substring(key, 1, 512) = pg_catalog.substring($4::bytea, 1, 512) \
     and key = $4::bytea";

/// Returns the key of the row that stores a record: the record's own key, or one that is unique in
/// its partition.
pub(crate) fn parked_key(record: &Incoming) -> Cow<'_, [u8]> {
    record.key().map_or_else(
        || Cow::Owned(format!("\0without key, offset {}", record.offset).into_bytes()),
        Cow::Borrowed,
    )
}

/// The table, for one consumer.
pub(crate) struct ParkedEvents {
    pool: PgPool,
    consumer: String,
    append: Arc<str>,
    head: Arc<str>,
    remove: Arc<str>,
    again: Arc<str>,
    keys: Arc<str>,
    decisions: DecisionStatements,
}

/// The oldest event of a parked aggregate.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) seq: i64,
    record_offset: i64,
    record_timestamp: i64,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    header_names: Vec<String>,
    header_values: Vec<Option<Vec<u8>>>,
    /// Number of attempts since the event was parked.
    pub(crate) attempts: i32,
    /// Number of attempts before the event was parked.
    attempts_before: i32,
    /// Decision of an operator about this event.
    pub(crate) mark: Option<Mark>,
    /// An operator has decided to discard this event or later ones of its aggregate.
    pub(crate) has_discards: bool,
}

/// The data with which an event is parked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setback {
    /// Time until its first attempt from the table.
    pub(crate) pause: Duration,
    /// Number of attempts so far, including those of earlier deliveries.
    pub(crate) attempts: u32,
    /// Error of the last attempt. `None` if the event waits behind another one.
    pub(crate) error: Option<String>,
}

impl ParkedEvents {
    pub(crate) fn new(inbox: &OpenInbox) -> Self {
        let table = format!(r#""{}".subscriber_parked"#, inbox.schema);
        let columns = "record_offset, record_timestamp, key, value, header_names, header_values";
        Self {
            pool: inbox.pool.clone(),
            consumer: inbox.consumer.clone(),
            append: format!(
                "insert into {table} (consumer, topic, partition, {columns}, next_attempt_at, \
                                      attempts_before, error) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, \
                         pg_catalog.now() + $10 * interval '1 second', $11, \
                         {}) on conflict do nothing",
                encodable("$12::bytea")
            )
            .into(),
            head: format!(
                "select seq, attempts, attempts_before, action, \
                 exists (select from {table} where {OF_KEY} and action = 'discard') as discards, \
                 {columns} from {table} where {OF_KEY} order by seq limit 1"
            )
            .into(),
            remove: format!("delete from {table} where seq = $1").into(),
            again: format!(
                "update {table} set attempts = $2, \
                 next_attempt_at = pg_catalog.now() + $3 * interval '1 second', \
                 error = {} where seq = $1",
                encodable("$4::bytea")
            )
            .into(),
            keys: format!(
                "select distinct on (key) key, \
                 greatest(extract(epoch from next_attempt_at - pg_catalog.now()), 0)::float8 \
                 from {table} \
                 where consumer = $1 and topic = $2 and partition = $3 order by key, seq"
            )
            .into(),
            decisions: DecisionStatements::new(&table),
        }
    }

    /// Appends an event to those of its aggregate. If the event is stored already, nothing changes.
    pub(crate) async fn append(
        &self,
        record: &Incoming,
        setback: &Setback,
    ) -> Result<(), sqlx::Error> {
        let marks = [
            (record.is_stamped_by_broker, STAMPED_BY_BROKER),
            (record.key().is_none(), WITHOUT_KEY),
            (record.lacks_headers, LACKS_HEADERS),
        ];
        let marks = marks
            .into_iter()
            .filter(|(applies, _)| *applies)
            .map(|(_, mark)| (mark.to_owned(), None));
        let headers = record
            .headers_with_nulls()
            .filter(|(name, _)| !is_mark(name));
        let headers = headers.map(|(name, value)| (stored_name(name), value));
        let (names, values): (Vec<String>, Vec<Option<&[u8]>>) = headers.chain(marks).unzip();
        sqlx::query(AssertSqlSafe(self.append.clone()))
            .persistent(false)
            .bind(&self.consumer)
            .bind(&*record.topic)
            .bind(record.partition)
            .bind(record.offset)
            .bind(record.timestamp)
            .bind(&*parked_key(record))
            .bind(record.value())
            .bind(names)
            .bind(values)
            .bind(setback.pause.as_secs_f64())
            .bind(i32::try_from(setback.attempts).unwrap_or(i32::MAX))
            .bind(setback.error.as_deref().map(bytes_of))
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Returns the oldest event of an aggregate.
    pub(crate) async fn head(
        &self,
        partition: &Partition,
        key: &[u8],
    ) -> Result<Option<Head>, sqlx::Error> {
        let row = sqlx::query(AssertSqlSafe(self.head.clone()))
            .persistent(false)
            .bind(&self.consumer)
            .bind(&*partition.topic)
            .bind(partition.number)
            .bind(key)
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| Head::of(&row)).transpose()
    }

    /// Deletes an event that has an outcome.
    pub(crate) async fn remove(&self, seq: i64) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(self.remove.clone()))
            .persistent(false)
            .bind(seq)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Stores a failed attempt and the time until the next one.
    pub(crate) async fn again(
        &self,
        seq: i64,
        attempts: u32,
        after: Duration,
        error: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(self.again.clone()))
            .persistent(false)
            .bind(seq)
            .bind(i32::try_from(attempts).unwrap_or(i32::MAX))
            .bind(after.as_secs_f64())
            .bind(bytes_of(error))
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Returns the parked aggregates of a partition, each with the time until its oldest event is
    /// due.
    pub(crate) async fn keys(
        &self,
        partition: &Partition,
    ) -> Result<Vec<(Vec<u8>, Duration)>, sqlx::Error> {
        let rows: Vec<(Vec<u8>, f64)> = sqlx::query_as(AssertSqlSafe(self.keys.clone()))
            .persistent(false)
            .bind(&self.consumer)
            .bind(&*partition.topic)
            .bind(partition.number)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(key, seconds)| {
                (
                    key,
                    Duration::try_from_secs_f64(seconds).unwrap_or_default(),
                )
            })
            .collect())
    }
}

impl OpenInbox {
    /// Returns the parked events of this consumer whose topic is not in `topics`, as rows of topic,
    /// number of events and number of aggregates.
    pub(crate) async fn parked_outside(
        &self,
        topics: &[&str],
    ) -> Result<Vec<(String, i64, i64)>, sqlx::Error> {
        let count = format!(
            r#"select topic, pg_catalog.count(*), pg_catalog.count(distinct (partition, key))
               from "{}".subscriber_parked where consumer = $1 and not topic = any ($2)
               group by topic order by topic"#,
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(count))
            .persistent(false)
            .bind(&self.consumer)
            .bind(topics)
            .fetch_all(&self.pool)
            .await
    }
}

/// Returns `true` if a stored header is a marker of this table.
fn is_mark(name: &[u8]) -> bool {
    [STAMPED_BY_BROKER, WITHOUT_KEY, LACKS_HEADERS]
        .iter()
        .any(|mark| mark.as_bytes() == name)
}

/// Returns the text that stores the name of a header: the name itself if every database can encode
/// it.
fn stored_name(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text)
            if !text.starts_with(ENCODED)
                && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) =>
        {
            text.to_owned()
        }
        _ => name.iter().fold(ENCODED.to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}

/// Returns the name that [`stored_name`] has stored.
fn read_name(stored: &str) -> Cow<'_, str> {
    let Some(digits) = stored.strip_prefix(ENCODED) else {
        return Cow::Borrowed(stored);
    };
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
    bytes.map_or(Cow::Borrowed(stored), |bytes| {
        String::from_utf8_lossy(&bytes).into_owned().into()
    })
}

/// Returns the headers of a stored record as they were read from Kafka.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) fn original_headers(
    names: &[String],
    values: Vec<Option<Vec<u8>>>,
) -> Vec<(String, Option<Vec<u8>>)> {
    let stored = names.iter().zip(values);
    stored
        .filter(|(name, _)| !is_mark(name.as_bytes()))
        .map(|(name, value)| (read_name(name).into_owned(), value))
        .collect()
}

impl Head {
    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            seq: row.try_get("seq")?,
            record_offset: row.try_get("record_offset")?,
            record_timestamp: row.try_get("record_timestamp")?,
            key: row.try_get("key")?,
            value: row.try_get("value")?,
            header_names: row.try_get("header_names")?,
            header_values: row.try_get("header_values")?,
            attempts: row.try_get("attempts")?,
            attempts_before: row.try_get("attempts_before")?,
            mark: row.try_get::<Option<&str>, _>("action")?.and_then(Mark::of),
            has_discards: row.try_get("discards")?,
        })
    }

    /// Returns the number of all attempts so far.
    pub(crate) fn attempts_in_all(&self) -> u32 {
        self.attempts_before
            .max(0)
            .unsigned_abs()
            .saturating_add(self.attempts.max(0).unsigned_abs())
    }

    /// Returns the record as it was read from Kafka.
    pub(crate) fn record(&self, partition: &Partition) -> Incoming {
        let place = Place {
            topic: partition.topic.clone(),
            partition: partition.number,
            offset: self.record_offset,
            timestamp: self.record_timestamp,
        };
        let headers = self
            .header_names
            .iter()
            .zip(&self.header_values)
            .filter(|(name, _)| !is_mark(name.as_bytes()))
            .map(|(name, value)| (read_name(name), value.as_deref()))
            .collect::<Vec<_>>();
        let headers = headers.iter().map(|(name, value)| (&**name, *value));
        let has = |mark| self.header_names.iter().any(|name| name == mark);
        let key = (!has(WITHOUT_KEY)).then_some(&*self.key);
        let mut record = Incoming::new(place, key, self.value.as_deref(), headers);
        record.is_stamped_by_broker = has(STAMPED_BY_BROKER);
        record.lacks_headers = has(LACKS_HEADERS);
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_header_is_stored_as_ascii_and_read_again() {
        for name in [
            "",
            "ce_id",
            "a b~",
            "\u{e9}",
            "\u{4e2d}\u{1f600}",
            "a\0b",
            "a\nb",
        ] {
            for name in [name.to_owned(), format!("{ENCODED}{name}")] {
                let stored = stored_name(name.as_bytes());
                assert!(
                    stored.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                    "{stored}"
                );
                assert_eq!(read_name(&stored), name);
            }
        }
        assert_eq!(stored_name(b"ce_id"), "ce_id");
        // An earlier version stored names as they were.
        assert_eq!(read_name("\u{e9}"), "\u{e9}");
    }

    #[test]
    fn marks_are_stored_as_headers_and_are_none_of_the_record() {
        let partition = Partition {
            topic: "order".into(),
            number: 3,
        };
        let head = |names: &[&str]| Head {
            seq: 1,
            record_offset: 9,
            record_timestamp: 5,
            key: b"7".to_vec(),
            value: Some(b"{}".to_vec()),
            header_names: names.iter().map(|name| (*name).to_owned()).collect(),
            header_values: names.iter().map(|_| None).collect(),
            attempts: 0,
            attempts_before: 0,
            mark: None,
            has_discards: false,
        };
        let plain = head(&["x"]).record(&partition);
        assert_eq!(
            (plain.key(), plain.is_stamped_by_broker, plain.lacks_headers),
            (Some(&b"7"[..]), false, false)
        );
        let marked = head(&["x", STAMPED_BY_BROKER, WITHOUT_KEY, LACKS_HEADERS]).record(&partition);
        assert_eq!(
            (
                marked.key(),
                marked.is_stamped_by_broker,
                marked.lacks_headers
            ),
            (None, true, true)
        );
        assert_eq!(marked.headers().len(), 1);
    }
}
