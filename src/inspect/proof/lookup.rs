//! Records whose event is not among the events of the snapshot.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::VerifyError;
use super::baseline::Baseline;
use super::compare::Compared;
use super::entry::{Id, Origin, TopicRecord};
use super::report::{Fault, Kind};
use super::selection::Since;
use super::sorter::Sorter;
use crate::inspect::Database;
use crate::relay::position::{Position, Snapshot};

/// Number of events per query.
const BATCH: usize = 1_000;

/// Maximum time to wait for transactions that may contain a row.
const PATIENCE: Duration = Duration::from_secs(30);

const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Circumstances of a lookup.
pub(super) struct Lookup<'l> {
    pub(super) database: &'l Database,
    pub(super) baseline: &'l Baseline,
    /// Only events from this time on are verified.
    pub(super) since: Option<&'l Since>,
    /// Events of earlier rounds.
    pub(super) settled: Option<&'l Position>,
    pub(super) exactly_once: bool,
}

/// The records of one event.
struct Records {
    id: Id,
    first: TopicRecord,
    last: TopicRecord,
    count: u64,
}

/// A row that was looked up.
struct Row {
    xid: u64,
    seq: i64,
    occurred_at: DateTime<Utc>,
}

impl Lookup<'_> {
    /// Looks up the unknown records, and adds the results to the comparison.
    ///
    /// # Errors
    ///
    /// Returns the error of a query or of a temporary file.
    pub(super) async fn resolve(
        &self,
        compared: &mut Compared,
        unknown: Sorter<TopicRecord>,
        folder: &std::path::Path,
    ) -> Result<(), VerifyError> {
        let mut suspects = Sorter::new(folder);
        self.each_batch(unknown, compared, |compared, records, row, _| {
            match row {
                Some(row) => self.found(compared, &records, &row)?,
                None if records.first.origin == Origin::Other => {
                    compared.tally.foreign += records.count;
                }
                None => {
                    suspects.push(records.first)?;
                    if records.count > 1 {
                        suspects.push(records.last)?;
                    }
                }
            }
            Ok(())
        })
        .await?;
        if suspects.len() == 0 {
            return Ok(());
        }
        let all_ended = self.wait_for_transactions().await?;
        self.each_batch(
            suspects,
            compared,
            |compared, records, row, deleted_until| {
                match row {
                    Some(row) => self.found(compared, &records, &row)?,
                    None if deleted_until.is_some_and(|until| records.first.time <= until) => {
                        compared.tally.without_row += 1;
                    }
                    None if !all_ended => compared.tally.not_visible += 1,
                    None => {
                        compared.tally.never_committed += 1;
                        compared.findings.add(Fault {
                            kind: Kind::NeverCommitted,
                            id: records.id,
                            place: Some((records.first.place, records.first.offset)),
                            other: None,
                            copies: records.count,
                        });
                    }
                }
                Ok(())
            },
        )
        .await
    }

    /// Passes each event with its row, and the time of the youngest deleted event in milliseconds.
    async fn each_batch(
        &self,
        records: Sorter<TopicRecord>,
        compared: &mut Compared,
        mut each: impl FnMut(&mut Compared, Records, Option<Row>, Option<i64>) -> io::Result<()>,
    ) -> Result<(), VerifyError> {
        let mut batch: Vec<Records> = Vec::new();
        let mut sorted = records.sorted()?;
        loop {
            let next = sorted.next().transpose()?;
            match (&next, batch.last_mut()) {
                (Some(record), Some(last)) if last.id == record.id => {
                    last.count += 1;
                    last.last = *record;
                    continue;
                }
                _ => {}
            }
            if batch.len() == BATCH || next.is_none() {
                let (mut rows, deleted_until) = self.rows(&batch).await?;
                for records in batch.drain(..) {
                    let row = rows.remove(&records.id);
                    each(compared, records, row, deleted_until)?;
                }
            }
            let Some(record) = next else { return Ok(()) };
            batch.push(Records {
                id: record.id,
                first: record,
                last: record,
                count: 1,
            });
        }
    }

    /// Queries the rows first and the deletes afterwards, so that a row that is deleted in between
    /// is not missed by both.
    async fn rows(
        &self,
        batch: &[Records],
    ) -> Result<(HashMap<Id, Row>, Option<i64>), VerifyError> {
        let ids: Vec<Uuid> = batch
            .iter()
            .map(|records| Uuid::from_bytes(records.id))
            .collect();
        let sql = self.database.sql(
            "select id, xid::text::bigint, seq,
                 least(greatest(occurred_at, to_timestamp(0)), now())
             from \"{schema}\".outbox where id = any ($1)",
        );
        let rows: Vec<(Uuid, i64, i64, DateTime<Utc>)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(ids)
            .fetch_all(&self.database.pool)
            .await
            .map_err(|error| self.database.error(error))?;
        let sql = self
            .database
            .sql("select deleted_until from \"{schema}\".retention");
        let deleted_until: Option<Option<DateTime<Utc>>> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_optional(&self.database.pool)
            .await
            .map_err(|error| self.database.error(error))?;
        let row = |(id, xid, seq, occurred_at): (Uuid, i64, i64, _)| {
            let row = Row {
                xid: xid.cast_unsigned(),
                seq,
                occurred_at,
            };
            (id.into_bytes(), row)
        };
        // Records have milliseconds, and rows have microseconds.
        let deleted_until = deleted_until
            .flatten()
            .map(|time| time.timestamp_millis() + 1);
        Ok((rows.into_iter().map(row).collect(), deleted_until))
    }

    /// Adds records of an event that is not among the events of the snapshot: it committed later,
    /// or an earlier round has verified it, or it occurred before the verified range.
    fn found(&self, compared: &mut Compared, records: &Records, row: &Row) -> io::Result<()> {
        let is_settled = self
            .settled
            .is_some_and(|settled| settled.covers(row.xid, row.seq));
        // A later round reads the event if this snapshot does not see it, whatever its time is.
        let is_before = self.baseline.visible.sees(row.xid)
            && self
                .since
                .is_some_and(|since| since.is_after(row.occurred_at, row.xid));
        compared.tally.outside += records.count;
        let (_, on_purpose) =
            self.baseline
                .decisions
                .state(&self.baseline.position, (row.xid, row.seq), 0);
        // The first record of a settled event was in an earlier round.
        let copies = records.count - u64::from(!is_settled);
        compared.repeats(
            copies,
            on_purpose,
            records.id,
            records.last,
            self.exactly_once,
        );
        if !is_settled && !is_before {
            compared.open_records.push(records.first)?;
            if records.count > 1 {
                compared.open_records.push(records.last)?;
            }
        }
        Ok(())
    }

    /// Waits until every transaction that runs now has ended. Returns `false` if one does not end
    /// in time.
    async fn wait_for_transactions(&self) -> Result<bool, VerifyError> {
        let end = self.snapshot().await?.xmax();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.snapshot().await?.xmin() >= end {
                return Ok(true);
            }
            if Instant::now() > deadline {
                tracing::warn!(
                    seconds = PATIENCE.as_secs(),
                    "a transaction is open for long; records whose row it may contain are not \
                     decided"
                );
                return Ok(false);
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn snapshot(&self) -> Result<Snapshot, VerifyError> {
        let text: String = sqlx::query_scalar("select pg_current_snapshot()::text")
            .fetch_one(&self.database.pool)
            .await
            .map_err(|error| self.database.error(error))?;
        text.parse().map_err(|error| {
            VerifyError::Refused(format!("the server returned an invalid snapshot: {error}"))
        })
    }
}
