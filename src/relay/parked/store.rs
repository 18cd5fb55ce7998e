//! The table `parked`: all SQL on it that a relay executes. Every transaction that changes rows
//! checks the epoch, and is durable when it returns. Two exceptions, [`restate`] and
//! [`topics_to_look_at`], only change reasons and decisions.
//!
//! A row is one event or a *range*. A range has `to_seq` and stands for the `events` events of the
//! aggregate in the outbox from `seq` on. A row with `waits_for` waits for a topic rather than with
//! its aggregate.
//!
//! | file | content |
//! |---|---|
//! | `heads` | the first waiting events of an aggregate or a topic |
//! | `decisions` | decisions of operators |
//! | `reasons` | changed reasons of events that stay parked |
//! | `ranges` | ranges, and the listing of their events |

mod decisions;
mod heads;
mod ranges;
mod reasons;

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, Transaction, postgres::PgRow,
};

use super::set::{Aggregate, ParkedSet, Range};
use crate::{
    postgres::encodable::{bytes_of, encodable},
    relay::{
        error::Interruption,
        leadership::relay_store::{RelayStore, within},
    },
};
pub(crate) use decisions::{DISCARDED_AT_ONCE, decided, decisions, discard, topics_to_look_at};
pub(crate) use heads::{Action, Parked, first, first_of_topic};
pub(crate) use ranges::unfold;
pub(crate) use reasons::{Converted, convert, failed, restate};

/// The reason why an event whose row was deleted cannot be released.
pub(crate) const MISSING: &str =
    "its row is no longer in the outbox: another program deleted it; discard the event";

/// Number of events of a range that are listed at once.
const UNFOLDED_AT_ONCE: usize = 1_000;

/// Content of the table at the start of a relay.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Every waiting aggregate: its listed events, its range, and whether its first event is
    /// deliverable.
    pub(crate) aggregates: Vec<(Aggregate, Vec<i64>, Option<Range>, bool)>,
    /// Topics that events wait for: a reason, the number of events, and the waiting time of the
    /// first one in seconds.
    pub(crate) topics: Vec<(String, String, i64, f64)>,
}

/// Reads all waiting events.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn load(relay_store: &mut RelayStore) -> Result<Loaded, Interruption> {
    let doing = "reading parked events";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "select aggregatetype, aggregateid,
                coalesce(array_agg(seq order by seq) filter (where to_seq is null), '{{}}'),
                (array_agg(reason order by seq))[1] is null,
                max(seq) filter (where to_seq is not null), max(to_seq),
                coalesce(sum(events) filter (where to_seq is not null), 0)::bigint,
                (array_agg(id order by seq desc))[1],
                coalesce((array_agg(topic order by seq desc))[1], '')
         from {schema}.parked where relay = $1 and waits_for is null group by 1, 2"
    );
    let read = |row: &PgRow| -> Result<_, sqlx::Error> {
        let aggregate = Aggregate {
            kind: row.try_get(0)?,
            id: row.try_get(1)?,
        };
        let (id, topic) = (row.try_get(7)?, row.try_get(8)?);
        let events = row.try_get::<i64, _>(6)?.cast_unsigned();
        let (from, to): (Option<i64>, Option<i64>) = (row.try_get(4)?, row.try_get(5)?);
        let range = from.zip(to).map(|(from, to)| Range {
            from,
            id,
            to,
            events,
            topic,
        });
        Ok((aggregate, row.try_get(2)?, range, row.try_get(3)?))
    };
    let rows = within(
        doing,
        sqlx::query(AssertSqlSafe(sql))
            .bind(name)
            .fetch_all(&mut *session),
    )
    .await?;
    let aggregates = rows
        .iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(Interruption::sql(doing))?;
    let sql = format!(
        "select waits_for, coalesce(max(reason), ''), count(*),
             extract(epoch from clock_timestamp() - min(parked_at))::float8
         from {schema}.parked where relay = $1 and waits_for is not null group by 1"
    );
    let topics = within(
        doing,
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(name)
            .fetch_all(session),
    )
    .await?;
    Ok(Loaded { aggregates, topics })
}

/// Stores the pending events and the grown ranges of the set.
///
/// # Errors
///
/// Returns [`Interruption::LeaseLost`] if another relay has taken over.
pub(crate) async fn store(
    relay_store: &mut RelayStore,
    set: &ParkedSet,
) -> Result<(), Interruption> {
    let doing = "parking events";
    let (session, schema, name, epoch) = relay_store.parts();
    let events = set.pending();
    let sql = format!(
        "insert into {schema}.parked (relay, seq, id, aggregatetype, aggregateid, topic, reason,
             tries, waits_for)
         select $1, seq, id, aggregatetype, aggregateid, topic, {},
             (reason is not null and waits_for is null)::int, waits_for
         from unnest($2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::bytea[],
             $8::text[])
             as e (seq, id, aggregatetype, aggregateid, topic, reason, waits_for)
         on conflict do nothing",
        encodable("reason")
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let insert = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(column(events, |event| event.seq))
        .bind(column(events, |event| event.id))
        .bind(column(events, |event| event.aggregate.kind.as_str()))
        .bind(column(events, |event| event.aggregate.id.as_str()))
        .bind(column(events, |event| event.topic.as_str()))
        .bind(column(events, |event| {
            event.reason.as_deref().map(bytes_of)
        }))
        .bind(column(events, |event| event.waits_for.as_deref()));
    within(doing, insert.execute(&mut *tx)).await?;
    let grown: Vec<(&Aggregate, &Range)> = set.grown().collect();
    if !grown.is_empty() {
        ranges::store_grown(&mut tx, schema, name, &grown).await?;
    }
    within(doing, tx.commit()).await
}

/// Returns one column of rows, for a statement with `unnest`.
fn column<'r, R, T>(rows: &'r [R], read: impl Fn(&'r R) -> T) -> Vec<T> {
    rows.iter().map(read).collect()
}

/// Deletes events that are published.
///
/// # Errors
///
/// Returns [`Interruption::LeaseLost`] if another relay has taken over.
pub(crate) async fn delete(relay_store: &mut RelayStore, seqs: &[i64]) -> Result<(), Interruption> {
    let doing = "deleting released events from the parked ones";
    let (session, schema, name, epoch) = relay_store.parts();
    let sql = format!("delete from {schema}.parked where relay = $1 and seq = any ($2)");
    let mut tx = begin(session, schema, name, epoch).await?;
    within(
        doing,
        sqlx::query(AssertSqlSafe(sql))
            .bind(name)
            .bind(seqs)
            .execute(&mut *tx),
    )
    .await?;
    within(doing, tx.commit()).await
}

/// Begins a transaction that is durable, also on a synchronous standby, when it has committed: the
/// position passes the parked events, so a lost row would be a lost event. The transaction locks
/// the relay's row, so that no other relay takes over in between.
async fn begin<'s>(
    session: &'s mut PgConnection,
    schema: &str,
    name: &str,
    epoch: i64,
) -> Result<Transaction<'s, Postgres>, Interruption> {
    let doing = "checking that this relay leads";
    let mut tx = within(doing, session.begin()).await?;
    within(
        doing,
        sqlx::raw_sql("set local synchronous_commit = on").execute(&mut *tx),
    )
    .await?;
    let sql =
        format!("update {schema}.relay set heartbeat_at = now() where name = $1 and epoch = $2");
    let held = within(
        doing,
        sqlx::query(AssertSqlSafe(sql))
            .bind(name)
            .bind(epoch)
            .execute(&mut *tx),
    )
    .await?;
    if held.rows_affected() == 1 {
        Ok(tx)
    } else {
        Err(Interruption::LeaseLost)
    }
}
