//! Ranges of parked events: storing grown ranges, and listing the events of a range one by one.

use sqlx::{AssertSqlSafe, Postgres, Transaction};
use uuid::Uuid;

use super::{UNFOLDED_AT_ONCE, begin, column};
use crate::relay::{
    error::Interruption,
    leadership::relay_store::{RelayStore, within},
    parked::set::{Aggregate, Range},
};

/// Number of `seq` values that one query scans for the events of a range. Most of them belong to
/// other aggregates.
const LOOKED_THROUGH: i64 = 1_000_000;

/// Activity of [`unfold`], for error messages.
const LISTING: &str = "listing the events of a range";

/// An event of a range: its number and its id.
type Listed = (i64, Uuid);

/// Stores new ranges, and the new ends of ranges that have grown.
pub(super) async fn store_grown(
    tx: &mut Transaction<'_, Postgres>,
    schema: &str,
    name: &str,
    grown: &[(&Aggregate, &Range)],
) -> Result<(), Interruption> {
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
        .bind(column(grown, |(_, range)| range.from))
        .bind(column(grown, |(_, range)| range.id))
        .bind(column(grown, |(aggregate, _)| aggregate.kind.as_str()))
        .bind(column(grown, |(aggregate, _)| aggregate.id.as_str()))
        .bind(column(grown, |(_, range)| range.topic.as_str()))
        .bind(column(grown, |(_, range)| range.to))
        .bind(column(grown, |(_, range)| range.events.cast_signed()));
    within("parking events", insert.execute(&mut **tx))
        .await
        .map(|_| ())
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
    let (session, schema, name, epoch) = relay_store.parts();
    let mut tx = begin(session, schema, name, epoch).await?;
    let mut found = first_of_range(&mut tx, schema, aggregate, range).await?;
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
    replace(
        &mut tx,
        (schema, name),
        aggregate,
        range,
        &found,
        rest.as_ref(),
    )
    .await?;
    within(LISTING, tx.commit()).await?;
    Ok((found.into_iter().map(|(seq, _)| seq).collect(), rest))
}

/// Returns the first events of a range: at most one more than are listed at once.
async fn first_of_range(
    tx: &mut Transaction<'_, Postgres>,
    schema: &str,
    aggregate: &Aggregate,
    range: &Range,
) -> Result<Vec<Listed>, Interruption> {
    let sql = format!(
        "select seq, id from {schema}.outbox
             where seq between $1 and $2 and aggregatetype = $3 and aggregateid = $4
         order by seq limit $5"
    );
    let mut found: Vec<Listed> = Vec::new();
    let mut low = range.from;
    while low <= range.to && found.len() < UNFOLDED_AT_ONCE + 1 {
        let through = range.to.min(low.saturating_add(LOOKED_THROUGH));
        let select = sqlx::query_as::<_, Listed>(AssertSqlSafe(sql.clone()))
            .bind(low)
            .bind(through)
            .bind(&aggregate.kind)
            .bind(&aggregate.id);
        let select = select.bind((UNFOLDED_AT_ONCE + 1 - found.len()) as i64);
        found.extend(within(LISTING, select.fetch_all(&mut **tx)).await?);
        low = through + 1;
    }
    Ok(found)
}

/// Replaces the row of a range by one row for each listed event and one for the rest of the range.
/// The new rows keep the operator's decision about the range.
async fn replace(
    tx: &mut Transaction<'_, Postgres>,
    (schema, name): (&str, &str),
    aggregate: &Aggregate,
    range: &Range,
    found: &[Listed],
    rest: Option<&Range>,
) -> Result<(), Interruption> {
    let sql = format!(
        "delete from {schema}.parked where relay = $1 and seq = $2 and to_seq is not null
             returning action"
    );
    let deleted = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(name)
        .bind(range.from)
        .fetch_optional(&mut **tx);
    let action: Option<Option<String>> = within(LISTING, deleted).await?;
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
    let all: Vec<(i64, Uuid, Option<i64>, i64)> = found
        .iter()
        .map(|(seq, id)| (*seq, *id, None, 1))
        .chain(tail)
        .collect();
    let insert = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(column(&all, |row| row.0))
        .bind(column(&all, |row| row.1))
        .bind(&aggregate.kind)
        .bind(&aggregate.id)
        .bind(&range.topic)
        .bind(action.flatten())
        .bind(column(&all, |row| row.2))
        .bind(column(&all, |row| row.3));
    within(LISTING, insert.execute(&mut **tx)).await.map(|_| ())
}
