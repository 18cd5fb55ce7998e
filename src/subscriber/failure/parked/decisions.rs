//! Decisions of operators about parked events: the owner of a partition finds the marks and
//! executes them on the lane of the aggregate.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, FromRow, Row, postgres::PgRow};

use super::{OF_KEY, ParkedEvents};
use crate::kafka::Partition;
use crate::postgres::begin;

/// Marked aggregates that one read returns. The next read returns the others.
const MARKED_MAX: i64 = 1_000;

/// Events that one transaction discards.
const DISCARDED_MAX: i64 = 500;

/// Decision of an operator about a parked event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Retry,
    Discard,
}

impl Mark {
    pub(super) fn of(word: &str) -> Option<Self> {
        match word {
            "retry" => Some(Self::Retry),
            "discard" => Some(Self::Discard),
            _ => None,
        }
    }
}

/// An event that an operator has discarded.
#[derive(Debug)]
pub(crate) struct Discarded {
    pub(crate) offset: i64,
    pub(crate) event_id: Option<Vec<u8>>,
    pub(crate) event_type: Option<Vec<u8>>,
    pub(crate) error: Option<String>,
    pub(crate) decided_by: Option<String>,
}

/// The statements about marks.
pub(super) struct Statements {
    marked: Arc<str>,
    discard: Arc<str>,
    take_retry: Arc<str>,
}

impl Statements {
    pub(super) fn new(table: &str) -> Self {
        let header = |name: &str| {
            format!("header_values[pg_catalog.array_position(header_names, '{name}')]")
        };
        Self {
            marked: format!(
                "select distinct key from {table} where consumer = $1 and topic = $2 \
                 and partition = $3 and action is not null limit {MARKED_MAX}"
            )
            .into(),
            discard: format!(
                "delete from {table} where seq in (select seq from {table} \
                     where {OF_KEY} and action = 'discard' order by seq limit {DISCARDED_MAX}) \
                 returning record_offset, {} as event_id, {} as event_type, error, decided_by",
                header("ce_id"),
                header("ce_type")
            )
            .into(),
            take_retry: format!(
                "update {table} set action = null, decided_by = null, \
                 next_attempt_at = pg_catalog.now() where seq = $1 and action = 'retry'"
            )
            .into(),
        }
    }
}

impl ParkedEvents {
    /// Returns aggregates of a partition about whose events an operator has decided.
    pub(crate) async fn marked_keys(
        &self,
        partition: &Partition,
    ) -> Result<Vec<Vec<u8>>, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(self.decisions.marked.clone()))
            .persistent(false)
            .bind(&self.consumer)
            .bind(&*partition.topic)
            .bind(partition.number)
            .fetch_all(&self.pool)
            .await
    }

    /// Deletes the events of an aggregate that an operator has discarded, up to a limit. `report`
    /// is called for each before the commit, so that none disappears without a report.
    pub(crate) async fn discard_marked(
        &self,
        partition: &Partition,
        key: &[u8],
        report: impl Fn(&Discarded),
    ) -> Result<(), sqlx::Error> {
        let mut transaction = begin(&self.pool).await?;
        let discarded: Vec<Discarded> =
            sqlx::query_as(AssertSqlSafe(self.decisions.discard.clone()))
                .persistent(false)
                .bind(&self.consumer)
                .bind(&*partition.topic)
                .bind(partition.number)
                .bind(key)
                .fetch_all(&mut *transaction)
                .await?;
        discarded.iter().for_each(report);
        transaction.commit().await
    }

    /// Removes the mark of an event that is retried now. If the member ends before the attempt, the
    /// next owner of the partition makes it.
    pub(crate) async fn take_retry(&self, seq: i64) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(self.decisions.take_retry.clone()))
            .persistent(false)
            .bind(seq)
            .execute(&self.pool)
            .await
            .map(drop)
    }
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for Discarded {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            offset: row.try_get("record_offset")?,
            event_id: row.try_get("event_id")?,
            event_type: row.try_get("event_type")?,
            error: row.try_get("error")?,
            decided_by: row.try_get("decided_by")?,
        })
    }
}
