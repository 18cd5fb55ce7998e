//! Decisions of operators about parked events, and the discarding of events.

use sqlx::{AssertSqlSafe, Row as _, postgres::PgRow};

use super::begin;
use crate::relay::{
    error::Interruption,
    leadership::relay_store::{RelayStore, within},
    parked::set::Aggregate,
};

/// Number of rows that are discarded at once.
pub(crate) const DISCARDED_AT_ONCE: i64 = 5_000;

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
