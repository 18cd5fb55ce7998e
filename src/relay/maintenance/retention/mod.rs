//! Deletion of published events from the outbox, by the leader.
//!
//! A row is deleted only if all of these conditions hold:
//!
//! - *Every* relay of the database has published it: its transaction is below the [`Horizon`] of
//!   their stored positions.
//! - It is old enough, or the outbox is too large.
//! - It is no relay's witness.
//! - It is not parked.
//!
//! Rows are deleted in batches, because dropping a partition would make publishers wait behind each
//! other. Each batch stores the *floor*: events of transactions below it may be missing. A relay
//! that would need one of them is refused at its start, and `tidings relay rewind` reports it to
//! the operator. It also stores the time of the youngest deleted event, from which `tidings verify`
//! concludes which records may have lost their row.
//!
//! Deletes and moves of a relay both lock the row of the table `retention`. A relay that is being
//! moved is therefore either taken into account here, or its move sees the deletes.

mod horizon;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, types::Json};
use tokio::time::Instant;

use crate::{
    postgres::seconds,
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::{connect, within},
        monitor::metrics::RelayMetrics,
        position::Identity,
    },
};
use horizon::{Horizon, Registered};

/// Number of rows that are examined, and deleted at most, at once. Takes a few tens of
/// milliseconds.
const BATCH: i64 = 10_000;

/// Pause between two batches while more rows remain, because other programs need the disk too.
const PAUSE: Duration = Duration::from_millis(100);

/// Interval between examinations of an outbox without rows to delete.
const EVERY: Duration = Duration::from_secs(30);

/// Delay after an error, for instance a missing right.
const AGAIN: Duration = Duration::from_secs(300);

/// Silence after which a relay that keeps events from being deleted is reported, and the interval
/// of these reports.
const SILENT_MAX: Duration = Duration::from_secs(3_600);

/// Upper bound of `keep`, equivalent to no limit. Postgres has no timestamps old enough to subtract
/// an arbitrary duration.
const KEEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// Number of rows whose size is measured to estimate how many rows fit.
const SAMPLE: i64 = 1_000;

/// Retention of published events.
#[derive(Clone, Debug)]
pub struct RetentionOptions {
    /// Enables deletes.
    pub enabled: bool,
    /// Time for which an event is kept after it happened. Defaults to seven days, as long as Kafka
    /// keeps events by default, so that events that Kafka loses can be published again.
    pub keep: Duration,
    /// Approximate maximum size of the rows in bytes, without indexes. Beyond it, published rows
    /// are deleted before their time.
    pub size_max: Option<u64>,
}

impl Default for RetentionOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            keep: Duration::from_secs(7 * 24 * 3_600),
            size_max: None,
        }
    }
}

/// Deletes events while the future is polled.
pub(crate) async fn run(
    options: &RelayOptions,
    identity: &Identity,
    epoch: i64,
    observer: &RelayMetrics,
) {
    // The rows of a Debezium table belong to other programs.
    if !options.retention.enabled || options.debezium.is_some() {
        std::future::pending::<()>().await;
    }
    let mut retention = Retention {
        options,
        identity,
        epoch,
        observer,
        after: 0,
        told: None,
    };
    loop {
        let error = match retention.work().await {
            Ok(()) => continue,
            Err(error) => error,
        };
        tracing::warn!(
            "published events are not deleted: {}; the relay needs DELETE on the outbox, and \
             SELECT and UPDATE on the table `retention` (set [retention] enabled = false to delete \
             nothing)",
            error.full()
        );
        tokio::time::sleep(AGAIN).await;
    }
}

struct Retention<'s> {
    options: &'s RelayOptions,
    identity: &'s Identity,
    epoch: i64,
    observer: &'s RelayMetrics,
    /// Rows up to this `seq` were examined.
    after: i64,
    told: Option<Instant>,
}

/// Result of a batch.
struct Batch {
    looked_at: i64,
    last: Option<i64>,
    young: i64,
    deleted: i64,
    floor: Option<u64>,
    /// The time of the youngest deleted event.
    deleted_until: Option<DateTime<Utc>>,
}

impl Retention<'_> {
    /// Deletes events until an error occurs.
    async fn work(&mut self) -> Result<(), Interruption> {
        let mut session = connect(self.options, "relay retention").await?;
        loop {
            let more = self.batch(&mut session).await?;
            tokio::time::sleep(if more { PAUSE } else { EVERY }).await;
        }
    }

    /// Deletes one batch in its own transaction. Returns `true` if more rows may follow.
    async fn batch(&mut self, session: &mut PgConnection) -> Result<bool, Interruption> {
        let doing = "deleting published events";
        // With read committed, the statements see the changes that the lock waited for. The loss of
        // the last deletes in a crash is harmless.
        let begin = "begin isolation level read committed; set local synchronous_commit = off";
        within(doing, sqlx::raw_sql(begin).execute(&mut *session)).await?;
        let lock = format!(
            "select from \"{}\".retention for update",
            self.options.schema
        );
        within(
            doing,
            sqlx::query(AssertSqlSafe(lock)).fetch_optional(&mut *session),
        )
        .await?;
        let relays = self.relays(session).await?;
        let horizon = Horizon::of(&relays, self.identity);
        self.tell_who_blocks(&horizon);
        let full = self.full(session).await?;
        let batch = self.delete(session, &horizon, full).await?;
        if let Some(floor) = batch.floor {
            let sql = format!(
                "update \"{}\".retention set floor = greatest(floor, $1::text::xid8), deleted = \
                 deleted + $2, deleted_at = now(), deleted_until = greatest(deleted_until, $3)",
                self.options.schema
            );
            let stored = sqlx::query(AssertSqlSafe(sql))
                .bind(floor.to_string())
                .bind(batch.deleted)
                .bind(batch.deleted_until)
                .execute(&mut *session);
            within(doing, stored).await?;
        }
        within(doing, sqlx::raw_sql("commit").execute(&mut *session)).await?;
        self.observe(session, &batch).await?;
        // A page of rows that are all too young is the last one, because later rows are younger. A
        // single young row is no evidence: publishers set the time of their events.
        let more = batch.looked_at == BATCH && batch.young < batch.looked_at;
        self.after = if more { batch.last.unwrap_or(0) } else { 0 };
        Ok(more)
    }

    async fn relays(&self, session: &mut PgConnection) -> Result<Vec<Registered>, Interruption> {
        let doing = "reading what the relays have published";
        let sql = format!(
            "select name, epoch, position ->> 'seen' as seen, moved_to ->> 'seen' as moved_to,
                    identity,
                    extract(epoch from now() - coalesce(heartbeat_at, updated_at))::float8
                        as silent,
                    array_remove(array[position #>> '{{witness,seq}}',
                        moved_to #>> '{{witness,seq}}']::bigint[], null) as witnesses
             from \"{}\".relay",
            self.options.schema
        );
        let rows = within(doing, sqlx::query(AssertSqlSafe(sql)).fetch_all(session)).await?;
        let mut relays = Vec::new();
        for row in rows {
            let read = || -> Result<(Registered, i64), sqlx::Error> {
                let snapshot = |column| {
                    Ok::<_, sqlx::Error>(
                        row.try_get::<Option<String>, _>(column)?
                            .map(|text| text.parse().ok()),
                    )
                };
                let relay = Registered {
                    name: row.try_get("name")?,
                    // A snapshot that cannot be read sees nothing.
                    seen: snapshot("seen")?.flatten(),
                    moved_to: snapshot("moved_to")?,
                    identity: row
                        .try_get::<Option<Json<Identity>>, _>("identity")?
                        .map(|Json(identity)| identity),
                    silent: seconds(row.try_get("silent")?),
                    witnesses: row.try_get("witnesses")?,
                };
                Ok((relay, row.try_get("epoch")?))
            };
            let (relay, epoch) = read().map_err(Interruption::sql(doing))?;
            if relay.name == self.options.name && epoch != self.epoch {
                return Err(Interruption::LeaseLost);
            }
            relays.push(relay);
        }
        Ok(relays)
    }

    /// Returns the last `seq` beyond the maximum size, or zero if all rows fit. Numbers of rolled
    /// back transactions count as rows, so at most the maximum size is kept.
    async fn full(&self, session: &mut PgConnection) -> Result<i64, Interruption> {
        let Some(size_max) = self.options.retention.size_max else {
            return Ok(0);
        };
        let sql = format!(
            "select coalesce(max(seq), 0), coalesce(avg(pg_column_size(o.*)), 1)::float8
                 from (select * from \"{}\".outbox order by seq desc limit {SAMPLE}) o",
            self.options.schema
        );
        let sampled = within(
            "measuring rows",
            sqlx::query_as(AssertSqlSafe(sql)).fetch_one(session),
        )
        .await?;
        let (last, bytes): (i64, f64) = sampled;
        Ok((last - (size_max as f64 / bytes.max(1.0)) as i64).max(0))
    }

    /// Deletes old rows. A row with a time in the future counts as old if a later row is old.
    async fn delete(
        &self,
        session: &mut PgConnection,
        horizon: &Horizon<'_>,
        full: i64,
    ) -> Result<Batch, Interruption> {
        let doing = "deleting published events";
        let schema = &self.options.schema;
        let sql = format!(
            "with aged as (
                 select seq, xid, occurred_at, occurred_at < now() - make_interval(secs => $3)
                     or seq <= $4 as old
                 from \"{schema}\".outbox where seq > $1 order by seq limit {BATCH}
             ), looked as (
                 select seq, xid, old or (occurred_at > now()
                     and seq < max(seq) filter (where old) over ()) as old from aged
             ), gone as (
                 delete from \"{schema}\".outbox o using looked
                 where o.seq = looked.seq and looked.old and looked.xid < $2::text::xid8
                     and looked.seq <> all ($5)
                     and not exists (select from \"{schema}\".parked p where p.seq = looked.seq)
                     and not exists (
                         select from \"{schema}\".parked p
                             where p.to_seq is not null and p.aggregatetype = o.aggregatetype
                             and p.aggregateid = o.aggregateid and o.seq between p.seq and p.to_seq)
                 returning o.xid, o.occurred_at
             )
             select (select count(*) from looked), (select max(seq) from looked),
                    (select count(*) from looked where not old),
                    (select count(*) from gone), (select max(xid)::text from gone),
                    (select max(greatest(least(occurred_at, now()), to_timestamp(0))) from gone)"
        );
        let keep = self.options.retention.keep.min(KEEP_MAX).as_secs_f64();
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(self.after)
            .bind(horizon.below.to_string())
            .bind(keep)
            .bind(full);
        let row = within(doing, query.bind(&horizon.witnesses).fetch_one(session)).await?;
        let read = || -> Result<Batch, sqlx::Error> {
            let last_xid: Option<String> = row.try_get(4)?;
            let floor = last_xid
                .and_then(|xid| xid.parse::<u64>().ok())
                .map(|xid| xid + 1);
            Ok(Batch {
                looked_at: row.try_get(0)?,
                last: row.try_get(1)?,
                young: row.try_get(2)?,
                deleted: row.try_get(3)?,
                floor,
                deleted_until: row.try_get(5)?,
            })
        };
        read().map_err(Interruption::sql(doing))
    }

    async fn observe(&self, session: &mut PgConnection, batch: &Batch) -> Result<(), Interruption> {
        if batch.deleted > 0 {
            tracing::debug!(events = batch.deleted, "deleted published events");
            self.observer.deleted(batch.deleted.cast_unsigned());
        }
        let sql = format!(
            "select coalesce((
                 select extract(epoch from
                     case when isfinite(occurred_at) then now() - occurred_at end)::float8
                 from \"{}\".outbox order by seq limit 1), 0)",
            self.options.schema
        );
        let oldest: f64 = within(
            "looking for the oldest event",
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(session),
        )
        .await?;
        self.observer.oldest_event(seconds(oldest));
        Ok(())
    }

    fn tell_who_blocks(&mut self, horizon: &Horizon<'_>) {
        let Some((relay, why)) = &horizon.held_by else {
            return;
        };
        if relay.silent < SILENT_MAX || self.told.is_some_and(|told| told.elapsed() < SILENT_MAX) {
            return;
        }
        self.told = Some(Instant::now());
        tracing::warn!(
            relay = relay.name,
            silent_seconds = relay.silent.as_secs(),
            "published events are kept for relay `{name}`, which {why} and has not reported for \
             {hours} h: start it, or run `tidings relay forget {name}` if it is no longer needed",
            name = relay.name,
            hours = relay.silent.as_secs() / 3_600
        );
    }
}
