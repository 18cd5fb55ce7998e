//! Deletes what nobody needs any more from the outbox. The leader does, beside its work.
//!
//! A row goes only if *every* relay of the database has published it (its transaction is below the [`Horizon`] of their stored positions), it
//! is old enough, it is no relay's witness, and it is not set aside. In batches: dropping a partition would make publishers wait behind
//! each other. With each batch the *floor* is stored: events of transactions below it may be gone. A relay that would need one of
//! them is refused at its start, and an operator who moves one back is told.
//!
//! Whoever deletes, and whoever moves a relay back, holds the row of the table `retention` meanwhile: so a relay that is being moved is either
//! seen here, or sees what was deleted.

mod horizon;

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row as _, types::Json};
use tokio::time::Instant;

use crate::{
    postgres::seconds,
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::{connect, within},
        monitor::metrics::Observer,
        position::Identity,
    },
};
use horizon::{Horizon, Registered};

/// Rows looked at, and deleted at most, at once: a few tens of milliseconds.
const BATCH: i64 = 10_000;

/// Between two batches while there are more: others need the disk too.
const PAUSE: Duration = Duration::from_millis(100);

/// Between two looks at an outbox in which nothing was to delete.
const EVERY: Duration = Duration::from_secs(30);

/// Before it is tried again after an error, for instance a missing right.
const AGAIN: Duration = Duration::from_secs(300);

/// A relay that was not heard of for this long, and keeps events from being deleted, is reported; and how often.
const SILENT_MAX: Duration = Duration::from_secs(3_600);

/// Longer than this is for ever: Postgres has no time so long ago that it could subtract anything.
const KEEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// Rows whose size is looked at to tell how many fit.
const SAMPLE: i64 = 1_000;

/// What is kept of the published events.
#[derive(Clone, Debug)]
pub struct RetentionOptions {
    /// Whether anything is deleted at all.
    pub enabled: bool,
    /// How long an event is kept after it happened. As long as Kafka keeps them by default: what Kafka loses can be published once more.
    pub keep: Duration,
    /// About how many bytes of rows are kept (without indexes): beyond it published ones go before their time.
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

/// Deletes for as long as the future is polled.
pub(crate) async fn run(
    options: &RelayOptions,
    identity: &Identity,
    epoch: i64,
    observer: &Observer,
) {
    // The rows of a Debezium table are somebody else's.
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
            "published events are not deleted: {}; the relay needs DELETE on the outbox, and SELECT and UPDATE on the table `retention` ([retention] enabled = false if nothing shall be deleted)",
            error.full()
        );
        tokio::time::sleep(AGAIN).await;
    }
}

struct Retention<'s> {
    options: &'s RelayOptions,
    identity: &'s Identity,
    epoch: i64,
    observer: &'s Observer,
    /// Rows up to this `seq` were looked at.
    after: i64,
    told: Option<Instant>,
}

/// What came of a batch.
struct Batch {
    looked_at: i64,
    last: Option<i64>,
    young: i64,
    deleted: i64,
    floor: Option<u64>,
}

impl Retention<'_> {
    /// Deletes until something goes wrong.
    async fn work(&mut self) -> Result<(), Interruption> {
        let mut session = connect(self.options, "relay retention").await?;
        loop {
            let more = self.batch(&mut session).await?;
            tokio::time::sleep(if more { PAUSE } else { EVERY }).await;
        }
    }

    /// One batch in a transaction of its own; whether there may be more.
    async fn batch(&mut self, session: &mut PgConnection) -> Result<bool, Interruption> {
        let doing = "deleting published events";
        // Read committed: what the lock has waited for is seen. Losing the last deletes in a crash loses nothing.
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
                "update \"{}\".retention set floor = greatest(floor, $1::text::xid8), deleted = deleted + $2, deleted_at = now()",
                self.options.schema
            );
            let stored = sqlx::query(AssertSqlSafe(sql))
                .bind(floor.to_string())
                .bind(batch.deleted)
                .execute(&mut *session);
            within(doing, stored).await?;
        }
        within(doing, sqlx::raw_sql("commit").execute(&mut *session)).await?;
        self.observe(session, &batch).await?;
        // A page in which every row is too young is the last one: those after it are younger still. One such row proves
        // nothing: its publisher gives it its time.
        let more = batch.looked_at == BATCH && batch.young < batch.looked_at;
        self.after = if more { batch.last.unwrap_or(0) } else { 0 };
        Ok(more)
    }

    async fn relays(&self, session: &mut PgConnection) -> Result<Vec<Registered>, Interruption> {
        let doing = "reading what the relays have published";
        let sql = format!(
            "select name, epoch, position ->> 'seen' as seen, moved_to ->> 'seen' as moved_to, identity,
                    extract(epoch from now() - coalesce(heartbeat_at, updated_at))::float8 as silent,
                    array_remove(array[position #>> '{{witness,seq}}', moved_to #>> '{{witness,seq}}']::bigint[], null) as witnesses
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
                    // One that cannot be read sees nothing.
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

    /// The last `seq` that is one too many for the size that may be kept; zero if all fit. Numbers that were drawn and rolled back count as
    /// rows: what is kept is at most that much.
    async fn full(&self, session: &mut PgConnection) -> Result<i64, Interruption> {
        let Some(size_max) = self.options.retention.size_max else {
            return Ok(0);
        };
        let sql = format!(
            "select coalesce(max(seq), 0), coalesce(avg(pg_column_size(o.*)), 1)::float8 from (select * from \"{}\".outbox order by seq desc limit {SAMPLE}) o",
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

    /// Deletes what is old. A row whose time is yet to come is as old as a later row that is.
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
                 select seq, xid, occurred_at, occurred_at < now() - make_interval(secs => $3) or seq <= $4 as old
                 from \"{schema}\".outbox where seq > $1 order by seq limit {BATCH}
             ), looked as (
                 select seq, xid, old or (occurred_at > now() and seq < max(seq) filter (where old) over ()) as old from aged
             ), gone as (
                 delete from \"{schema}\".outbox o using looked
                 where o.seq = looked.seq and looked.old and looked.xid < $2::text::xid8 and looked.seq <> all ($5)
                     and not exists (select from \"{schema}\".parked p where p.seq = looked.seq)
                     and not exists (
                         select from \"{schema}\".parked p where p.to_seq is not null and p.aggregatetype = o.aggregatetype
                             and p.aggregateid = o.aggregateid and o.seq between p.seq and p.to_seq)
                 returning o.xid
             )
             select (select count(*) from looked), (select max(seq) from looked), (select count(*) from looked where not old),
                    (select count(*) from gone), (select max(xid)::text from gone)"
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
            "select coalesce((select extract(epoch from case when isfinite(occurred_at) then now() - occurred_at end)::float8
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
            "published events are kept for relay `{name}`, which {why} and was not heard of for {hours} h: start it, or run `tidings relay forget {name}` if it is gone for good",
            name = relay.name,
            hours = relay.silent.as_secs() / 3_600
        );
    }
}
