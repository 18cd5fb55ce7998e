//! The table `parked`: all SQL on it that a relay executes. Every transaction that changes rows
//! checks the epoch, and is durable when it returns. Two exceptions, [`restate`] and
//! [`topics_to_look_at`], only change reasons and decisions.
//!
//! A row is one event or a *range*. A range has `to_seq` and stands for the `events` events of the
//! aggregate in the outbox from `seq` on. A row with `waits_for` waits for a topic rather than with
//! its aggregate.

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, Transaction, postgres::PgRow,
};

use super::set::{Aggregate, ParkedSet, Range};
use crate::relay::{
    error::Interruption,
    leadership::relay_store::{RelayStore, within},
    position::Position,
};

/// The reason why an event whose row was deleted cannot be released.
pub(crate) const MISSING: &str =
    "its row is no longer in the outbox: another program deleted it; discard the event";

/// Number of events of a range that are listed at once.
const UNFOLDED_AT_ONCE: usize = 1_000;

/// Number of `seq` values that one query scans for the events of a range. Most of them belong to
/// other aggregates.
const LOOKED_THROUGH: i64 = 1_000_000;

/// Number of rows that are discarded at once.
pub(crate) const DISCARDED_AT_ONCE: i64 = 5_000;

/// A parked event or a range, with the decision about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parked {
    pub(crate) seq: i64,
    /// The reason why it is undeliverable. `None` if it waits behind another event.
    pub(crate) reason: Option<String>,
    pub(crate) action: Option<Action>,
    pub(crate) is_range: bool,
    /// The transaction that wrote it. `None` if its row is not in the outbox.
    pub(crate) xid: Option<u64>,
    /// It was parked so recently that its row may not be visible yet: a commit waits for its
    /// synchronous standby after it is streamed.
    pub(crate) lately: bool,
}

/// Decision of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Retry,
    Discard,
}

/// An event that waited for a topic and now waits for another reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Converted {
    seq: i64,
    reason: Option<String>,
    waits_for: Option<String>,
}

/// A discarded row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Discarded {
    pub(crate) seq: i64,
    pub(crate) id: uuid::Uuid,
    pub(crate) aggregate: Aggregate,
    pub(crate) reason: Option<String>,
    pub(crate) events: i64,
    pub(crate) waits_for: Option<String>,
}

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

impl Parked {
    /// Returns `true` if the position has passed the event. An event without a visible row counts
    /// as passed, unless it was parked recently.
    pub(crate) fn is_passed(&self, position: &Position) -> bool {
        self.xid
            .map_or(!self.lately, |xid| position.covers(xid, self.seq))
    }
}

impl Converted {
    /// The event itself is undeliverable.
    pub(crate) fn wrong(seq: i64, reason: String) -> Self {
        Self {
            seq,
            reason: Some(reason),
            waits_for: None,
        }
    }

    /// The event waits behind another one of its aggregate.
    pub(crate) fn behind(seq: i64) -> Self {
        Self {
            seq,
            reason: None,
            waits_for: None,
        }
    }

    /// The event now goes to another topic, which is unusable too.
    pub(crate) fn other_topic(seq: i64, topic: String, reason: String) -> Self {
        Self {
            seq,
            reason: Some(reason),
            waits_for: Some(topic),
        }
    }
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
         select $1, seq, id, aggregatetype, aggregateid, topic, reason,
             (reason is not null and waits_for is null)::int, waits_for
         from unnest($2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[],
             $8::text[])
             as e (seq, id, aggregatetype, aggregateid, topic, reason, waits_for)
         on conflict do nothing"
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let insert = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(events.iter().map(|event| event.seq).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.id).collect::<Vec<_>>())
        .bind(
            events
                .iter()
                .map(|event| event.aggregate.kind.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            events
                .iter()
                .map(|event| event.aggregate.id.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            events
                .iter()
                .map(|event| event.topic.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            events
                .iter()
                .map(|event| event.reason.as_deref())
                .collect::<Vec<_>>(),
        )
        .bind(
            events
                .iter()
                .map(|event| event.waits_for.as_deref())
                .collect::<Vec<_>>(),
        );
    within(doing, insert.execute(&mut *tx)).await?;
    let grown: Vec<(&Aggregate, &Range)> = set.grown().collect();
    if !grown.is_empty() {
        let sql = format!(
            "insert into {schema}.parked as p (relay, seq, id, aggregatetype, aggregateid, topic,
                 to_seq, events)
             select $1, r.* from unnest($2::bigint[], $3::uuid[], $4::text[], $5::text[],
                 $6::text[], $7::bigint[], $8::bigint[]) r
             on conflict (relay, seq) do update set to_seq = excluded.to_seq,
                 events = excluded.events where p.to_seq is not null"
        );
        let insert = sqlx::query(AssertSqlSafe(sql))
            .bind(name)
            .bind(
                grown
                    .iter()
                    .map(|(_, range)| range.from)
                    .collect::<Vec<_>>(),
            )
            .bind(grown.iter().map(|(_, range)| range.id).collect::<Vec<_>>())
            .bind(
                grown
                    .iter()
                    .map(|(aggregate, _)| aggregate.kind.as_str())
                    .collect::<Vec<_>>(),
            )
            .bind(
                grown
                    .iter()
                    .map(|(aggregate, _)| aggregate.id.as_str())
                    .collect::<Vec<_>>(),
            )
            .bind(
                grown
                    .iter()
                    .map(|(_, range)| range.topic.as_str())
                    .collect::<Vec<_>>(),
            )
            .bind(grown.iter().map(|(_, range)| range.to).collect::<Vec<_>>())
            .bind(
                grown
                    .iter()
                    .map(|(_, range)| range.events.cast_signed())
                    .collect::<Vec<_>>(),
            );
        within(doing, insert.execute(&mut *tx)).await?;
    }
    within(doing, tx.commit()).await
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

/// Returns whether an operator has decided to discard a row, and whether to look up a topic again.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn decisions(relay_store: &mut RelayStore) -> Result<(bool, bool), Interruption> {
    let doing = "reading decisions about parked events";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "select coalesce(bool_or(action = 'discard'), false),
             coalesce(bool_or(action = 'retry' and waits_for is not null), false)
         from {schema}.parked where relay = $1 and action is not null"
    );
    within(
        doing,
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(name)
            .fetch_one(session),
    )
    .await
}

/// Stores a new reason for the first events that wait for a topic. Only these are read.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn restate(
    relay_store: &mut RelayStore,
    topic: &str,
    reason: &str,
) -> Result<(), Interruption> {
    let doing = "storing the reason why events wait for a topic";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "update {schema}.parked set reason = $3 where relay = $1 and seq in (
             select seq from {schema}.parked where relay = $1 and waits_for = $2 order by seq
                 limit {UNFOLDED_AT_ONCE})"
    );
    let update = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(topic)
        .bind(reason)
        .execute(session);
    within(doing, update).await.map(|_| ())
}

/// Discards the rows that an operator decided to discard, if the stored position has passed them. A
/// relay that dies therefore does not read them again.
///
/// # Errors
///
/// Returns [`Interruption::LeaseLost`] if another relay has taken over.
pub(crate) async fn discard(relay_store: &mut RelayStore) -> Result<Vec<Discarded>, Interruption> {
    let doing = "discarding parked events";
    let (session, schema, name, epoch) = relay_store.parts();
    let sql = format!(
        "delete from {schema}.parked gone where gone.relay = $1 and gone.seq in (
             select p.seq from {schema}.parked p join {schema}.relay r on r.name = p.relay
                 left join {schema}.outbox o on o.seq = coalesce(p.to_seq, p.seq)
             where p.relay = $1 and p.action = 'discard'
                 and case when o.seq is null
                          then p.parked_at < clock_timestamp() - interval '10 minutes'
                          else {schema}.is_published(coalesce(r.position, '{{}}'), o.xid, o.seq) end
             order by p.seq limit {DISCARDED_AT_ONCE})
         returning seq, id, aggregatetype, aggregateid, reason, events, waits_for"
    );
    let read = |row: &PgRow| -> Result<Discarded, sqlx::Error> {
        Ok(Discarded {
            seq: row.try_get(0)?,
            id: row.try_get(1)?,
            aggregate: Aggregate {
                kind: row.try_get(2)?,
                id: row.try_get(3)?,
            },
            reason: row.try_get(4)?,
            events: row.try_get(5)?,
            waits_for: row.try_get(6)?,
        })
    };
    let mut tx = begin(session, schema, name, epoch).await?;
    let rows = within(
        doing,
        sqlx::query(AssertSqlSafe(sql))
            .bind(name)
            .fetch_all(&mut *tx),
    )
    .await?;
    within(doing, tx.commit()).await?;
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(Interruption::sql(doing))
}

/// Records that an event of the aggregate is still or newly undeliverable. It waits again, and so
/// do the events that were to follow it.
///
/// # Errors
///
/// Returns [`Interruption::LeaseLost`] if another relay has taken over.
pub(crate) async fn failed(
    relay_store: &mut RelayStore,
    aggregate: &Aggregate,
    seq: i64,
    reason: &str,
) -> Result<(), Interruption> {
    let doing = "parking an event again";
    let (session, schema, name, epoch) = relay_store.parts();
    let sql = format!(
        "update {schema}.parked set action = nullif(action, 'retry'),
             tries = tries + (seq = $4)::int,
             reason = case when seq = $4 then $5 else reason end
         where relay = $1 and aggregatetype = $2 and aggregateid = $3 and waits_for is null
             and (seq = $4 or action = 'retry')"
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let update = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(&aggregate.kind)
        .bind(&aggregate.id)
        .bind(seq)
        .bind(reason);
    within(doing, update.execute(&mut *tx)).await?;
    within(doing, tx.commit()).await
}

/// Records that these events no longer wait for their topic but for another reason.
///
/// # Errors
///
/// Returns [`Interruption::LeaseLost`] if another relay has taken over.
pub(crate) async fn convert(
    relay_store: &mut RelayStore,
    converted: &[Converted],
) -> Result<(), Interruption> {
    let doing = "parking events that waited for a topic";
    let (session, schema, name, epoch) = relay_store.parts();
    let sql = format!(
        "update {schema}.parked p set reason = c.reason, waits_for = c.waits_for,
             action = nullif(action, 'retry'), tries = tries + 1
         from unnest($2::bigint[], $3::text[], $4::text[]) as c (seq, reason, waits_for)
             where p.relay = $1 and p.seq = c.seq"
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let update = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(converted.iter().map(|one| one.seq).collect::<Vec<_>>())
        .bind(
            converted
                .iter()
                .map(|one| one.reason.as_deref())
                .collect::<Vec<_>>(),
        )
        .bind(
            converted
                .iter()
                .map(|one| one.waits_for.as_deref())
                .collect::<Vec<_>>(),
        );
    within(doing, update.execute(&mut *tx)).await?;
    within(doing, tx.commit()).await
}

/// Returns the aggregates that an operator decided to retry.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn decided(relay_store: &mut RelayStore) -> Result<Vec<Aggregate>, Interruption> {
    let doing = "reading decisions about parked events";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "select distinct aggregatetype, aggregateid from {schema}.parked
         where relay = $1 and action = 'retry' and waits_for is null limit 1000"
    );
    let rows: Vec<(String, String)> = within(
        doing,
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(name)
            .fetch_all(session),
    )
    .await?;
    Ok(rows
        .into_iter()
        .map(|(kind, id)| Aggregate { kind, id })
        .collect())
}

/// Returns the topics with waiting events that an operator decided to retry. Each decision is
/// returned once.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn topics_to_look_at(
    relay_store: &mut RelayStore,
) -> Result<Vec<String>, Interruption> {
    let doing = "reading decisions about events that wait for a topic";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "with decided as (
             update {schema}.parked set action = null
                 where relay = $1 and action = 'retry' and waits_for is not null returning waits_for
         )
         select distinct waits_for from decided"
    );
    within(
        doing,
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(name)
            .fetch_all(session),
    )
    .await
}

const PARKED: &str = "p.seq, p.reason, p.action, o.xid::text, p.parked_at > clock_timestamp() - \
                      interval '10 minutes', p.to_seq is not null";

fn parked(row: &PgRow) -> Result<Parked, sqlx::Error> {
    let action = row.try_get::<Option<String>, _>(2)?;
    let action = action.map(|word| {
        if word == "discard" {
            Action::Discard
        } else {
            Action::Retry
        }
    });
    let xid = row
        .try_get::<Option<String>, _>(3)?
        .and_then(|xid| xid.parse().ok());
    Ok(Parked {
        seq: row.try_get(0)?,
        reason: row.try_get(1)?,
        action,
        xid,
        lately: row.try_get(4)?,
        is_range: row.try_get(5)?,
    })
}

/// Returns the first waiting events of an aggregate, in order.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn first(
    relay_store: &mut RelayStore,
    aggregate: &Aggregate,
    limit: usize,
) -> Result<Vec<Parked>, Interruption> {
    let doing = "reading an aggregate's parked events";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "select {PARKED} from {schema}.parked p left join {schema}.outbox o on o.seq = p.seq
         where p.relay = $1 and p.aggregatetype = $2 and p.aggregateid = $3 and p.waits_for is null
             order by p.seq limit $4"
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(&aggregate.kind)
        .bind(&aggregate.id)
        .bind(limit as i64);
    let rows = within(doing, query.fetch_all(session)).await?;
    rows.iter()
        .map(parked)
        .collect::<Result<_, _>>()
        .map_err(Interruption::sql(doing))
}

/// Returns the first events that wait for a topic, in order.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn first_of_topic(
    relay_store: &mut RelayStore,
    topic: &str,
    limit: usize,
) -> Result<Vec<(Aggregate, Parked)>, Interruption> {
    let doing = "reading the events that wait for a topic";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "select {PARKED}, p.aggregatetype, p.aggregateid from {schema}.parked p
             left join {schema}.outbox o on o.seq = p.seq
         where p.relay = $1 and p.waits_for = $2 order by p.seq limit $3"
    );
    let read = |row: &PgRow| -> Result<_, sqlx::Error> {
        Ok((
            Aggregate {
                kind: row.try_get(6)?,
                id: row.try_get(7)?,
            },
            parked(row)?,
        ))
    };
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(topic)
        .bind(limit as i64);
    let rows = within(doing, query.fetch_all(session)).await?;
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(Interruption::sql(doing))
}

/// Lists the first events of a range one by one. Returns their numbers and the rest of the range.
///
/// # Errors
///
/// Returns [`Interruption::LeaseLost`] if another relay has taken over.
pub(crate) async fn unfold(
    relay_store: &mut RelayStore,
    aggregate: &Aggregate,
    range: &Range,
) -> Result<(Vec<i64>, Option<Range>), Interruption> {
    let doing = "listing the events of a range";
    let (session, schema, name, epoch) = relay_store.parts();
    let sql = format!(
        "select seq, id from {schema}.outbox
             where seq between $1 and $2 and aggregatetype = $3 and aggregateid = $4
         order by seq limit $5"
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let mut found: Vec<(i64, uuid::Uuid)> = Vec::new();
    let mut low = range.from;
    while low <= range.to && found.len() < UNFOLDED_AT_ONCE + 1 {
        let through = range.to.min(low.saturating_add(LOOKED_THROUGH));
        let select = sqlx::query_as::<_, (i64, uuid::Uuid)>(AssertSqlSafe(sql.clone()))
            .bind(low)
            .bind(through)
            .bind(&aggregate.kind)
            .bind(&aggregate.id);
        let select = select.bind((UNFOLDED_AT_ONCE + 1 - found.len()) as i64);
        found.extend(within(doing, select.fetch_all(&mut *tx)).await?);
        low = through + 1;
    }
    // The rest starts with an event of its own, because any other number may belong to another
    // parked event.
    let next = if found.len() > UNFOLDED_AT_ONCE {
        found.pop()
    } else {
        None
    };
    let events = range.events.saturating_sub(found.len() as u64).max(1);
    let rest = next.map(|(from, id)| Range {
        from,
        id,
        events,
        ..range.clone()
    });
    let sql = format!(
        "delete from {schema}.parked where relay = $1 and seq = $2 and to_seq is not null
             returning action"
    );
    let gone = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(name)
        .bind(range.from)
        .fetch_optional(&mut *tx);
    let action: Option<Option<String>> = within(doing, gone).await?;
    let sql = format!(
        "insert into {schema}.parked (relay, seq, id, aggregatetype, aggregateid, topic, action,
             to_seq, events)
         select $1, e.seq, e.id, $4, $5, $6, $7, e.to_seq, e.events
         from unnest($2::bigint[], $3::uuid[], $8::bigint[], $9::bigint[])
             as e (seq, id, to_seq, events) on conflict do nothing"
    );
    let tail = rest
        .iter()
        .map(|rest| (rest.from, rest.id, Some(rest.to), rest.events.cast_signed()));
    let all: Vec<_> = found
        .iter()
        .map(|(seq, id)| (*seq, *id, None, 1))
        .chain(tail)
        .collect();
    let insert = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(all.iter().map(|row| row.0).collect::<Vec<_>>())
        .bind(all.iter().map(|row| row.1).collect::<Vec<_>>())
        .bind(&aggregate.kind)
        .bind(&aggregate.id)
        .bind(&range.topic)
        .bind(action.flatten())
        .bind(all.iter().map(|row| row.2).collect::<Vec<Option<i64>>>())
        .bind(all.iter().map(|row| row.3).collect::<Vec<_>>());
    within(doing, insert.execute(&mut *tx)).await?;
    within(doing, tx.commit()).await?;
    Ok((found.into_iter().map(|(seq, _)| seq).collect(), rest))
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
